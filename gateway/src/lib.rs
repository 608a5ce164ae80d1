//! The CrecheBooks dashboard gateway: events from Redis to the sockets of the right tenant.
//!
//! An event walks [`engine`] → [`hub`] (its shard, its [`hub::room`]) → [`socket`]; a join walks [`socket`] → [`hub`] →
//! [`hub::room`] → [`engine`], and back the same way. With a database it starts from [`snapshots`], [`figures`] keeps it live, and
//! the outbox' relay (`publisher::outbox`) publishes through the [`engine`].

pub mod audit;
pub mod commands;
pub mod config;
pub mod database;
pub mod engine;
pub mod figures;
pub mod gateway;
pub mod http;
pub mod hub;
pub mod log;
pub mod metrics;
pub mod pulse;
pub mod shutdown;
pub mod snapshots;
pub mod socket;
mod systemd;
pub mod tokens;
