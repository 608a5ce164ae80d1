//! The answer of a command, on standard output.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Context;

/// Writes a line of a command's answer.
///
/// # Errors
/// When the output can't be written.
pub(super) fn say(line: impl Display) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("standard output")
}
