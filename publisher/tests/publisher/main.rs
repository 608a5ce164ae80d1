//! The publisher against a real redis-server. The names with a number are rows of the catalogue of faults (f) and of
//! bad inputs (b) that this project is built against.
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
