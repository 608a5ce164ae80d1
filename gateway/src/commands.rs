//! The subcommands of the binary, a module each.

pub mod check;
pub mod demo;
pub mod healthcheck;
mod instance;
pub mod migrate;
mod output;
pub mod serve;
pub mod token;
