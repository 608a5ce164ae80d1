//! What the binary can be asked to do: one module a subcommand.

pub mod check;
pub mod demo;
pub mod healthcheck;
pub mod migrate;
pub mod serve;
pub mod token;
