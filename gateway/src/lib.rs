//! The CrecheBooks dashboard gateway: brings events from Redis to the sockets of the right tenant.
//!
//! Modules import downwards only: `commands` → `http` → `session` → `hub`, `snapshots`, `metrics_refresh`, `relay` → `socket` → `engine` → `tokens`
//! → `config` and its neighbours. `gateway/docs/architecture.md` has the picture, and the way of an event and of a join.

mod clock;
pub mod commands;
pub mod config;
mod database;
mod engine;
mod http;
mod hub;
pub mod logging;
mod metrics;
mod metrics_refresh;
mod relay;
mod session;
mod shutdown;
mod snapshots;
pub mod socket;
mod systemd;
pub mod tokens;
