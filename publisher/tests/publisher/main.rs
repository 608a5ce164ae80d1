//! The publisher against a real redis-server. A test's name that starts with f and a number is a row of the catalogue of faults, one with
//! b of the catalogue of bad inputs (gateway/tests/README.md).
#![allow(clippy::unwrap_used)]
// A task of a test that panics fails the test.
#![allow(clippy::disallowed_methods)]

mod bad_inputs;
mod faults;
mod fence;
mod harness;
mod limit;
mod position;
mod publishing;
