//! Black-box tests of the gateway: the built binary on a real Redis, seen through real sockets.
//!
//! A test named `f…` injects a fault and one named `b…` a bad input, each after its row in the catalogues of faults
//! and inputs; the others are named after what they promise.
// The harness reads /proc, and its faults are Linux' own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]
// A test notices how its tasks end, and prints its measurements.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

mod chaos;
mod cluster;
mod database;
mod engine;
mod harness;
mod http;
mod operation;
mod oracle;
mod redis;
mod socket;
mod storms;
mod tokens;
