//! The CrecheBooks dashboard gateway: events from Redis to the sockets of the right tenant.
//!
//! An event walks [`engine`] → [`hub`] (its shard, its [`hub::stream`]) → [`socket`]; a join walks [`socket`] → [`hub`] →
//! [`hub::stream`] → [`engine`], and back the same way. With a database it starts from [`snapshots`], [`metrics_refresh`] keeps it live, and
//! the outbox' relay (`publisher::outbox`) publishes through the [`engine`].

pub mod clock;
pub mod commands;
pub mod config;
pub mod database;
pub mod engine;
pub mod http;
pub mod hub;
pub mod logging;
pub mod metrics;
pub mod metrics_refresh;
pub mod session;
pub mod shutdown;
pub mod snapshots;
pub mod socket;
mod systemd;
pub mod tokens;
