//! Black-box tests of the gateway: the built binary on a real Redis, seen through real sockets.
//!
//! A test named `f…` injects a fault and one named `b…` a bad input, each after its row in the catalogues of faults
//! and inputs; the others are named after what they promise.
// The harness reads /proc, and its faults are Linux' own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]
// A test notices how its tasks end, and prints its measurements.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

mod balancers;
mod billing_api;
mod chaos;
mod check;
mod claims;
mod client_faults;
mod cluster;
mod configuration;
mod cross_origin;
mod demo;
mod documents;
mod emit;
mod engine;
mod frames;
mod gateway_faults;
mod handshake;
mod harness;
mod internal;
mod joins;
mod kicks;
mod live_figures;
mod log_lines;
mod messages;
mod migrate;
mod node;
mod observability;
mod oracle;
mod process_faults;
mod publish_api;
mod redis_access;
mod redis_cluster;
mod redis_faults;
mod redis_way;
mod relay;
mod relay_backlogs;
mod relay_faults;
mod relay_lock;
mod relay_pooled;
mod seats;
mod sentinel;
mod session;
mod signatures;
mod snapshots;
mod sockets;
mod storms;
mod strict;
mod warnings;
