//! What the binary can be asked to do: one module a subcommand.

pub mod check;
pub mod demo;
pub mod healthcheck;
pub mod migrate;
pub mod serve;
pub mod token;

use std::io::{self, Write};

use anyhow::Context;

/// Writes a line of a command's answer. An output that can't be written is the command's failure, and no panic.
fn say(line: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("standard output")
}
