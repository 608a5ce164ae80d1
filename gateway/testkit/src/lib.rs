//! Real servers and the means to break them: what the tests of every crate of this workspace are written with.
//!
//! Everything here panics when something is not as it should be: a test then fails with the reason.

#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods)] // The proxy ends its tasks itself.
#![allow(missing_docs)] // The tests are the only readers, and the names say what the items are.

pub mod events;
pub mod ports;
#[cfg(target_os = "linux")] // /proc, and faults that only Linux has
pub mod postgres;
#[cfg(target_os = "linux")] // /proc, and faults that only Linux has
pub mod process;
pub mod proxy;
#[cfg(target_os = "linux")] // /proc, and faults that only Linux has
pub mod redis;
#[cfg(target_os = "linux")]
pub mod redis_cluster;
pub mod resp;
#[cfg(target_os = "linux")]
pub mod sentinel;
pub mod tls;
pub mod token;
pub mod wait;

use std::path::PathBuf;

/// A key or a certificate of the tests: PEM.
pub fn key(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/keys")).join(name)
}
