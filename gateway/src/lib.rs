//! The CrecheBooks dashboard gateway: events from Redis to the sockets of the right tenant.
//!
//! An event walks [`engine`] → [`hub`] (its shard, its [`hub::room`]) → [`socket`]; a join walks [`socket`] → [`hub`] →
//! [`hub::room`] → [`engine`], and back the same way.

pub mod commands;
pub mod config;
pub mod database;
pub mod engine;
pub mod figures;
pub mod gateway;
pub mod http;
pub mod hub;
pub mod metrics;
pub mod shutdown;
pub mod snapshots;
pub mod socket;
pub mod tokens;
