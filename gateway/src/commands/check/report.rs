//! The lines of a check, and its result.

use std::fmt::Display;

use anyhow::bail;

use crate::commands::output::say;
use crate::config::ConfigError;

/// Counts what was found wrong.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Faults that only another configuration can mend.
    faults: usize,
    /// Servers and keys that may be there later.
    unreachable: usize,
}

impl Report {
    pub(super) fn good(&mut self, line: impl Display) -> anyhow::Result<()> {
        say(line)
    }

    pub(super) fn fault(&mut self, line: impl Display) -> anyhow::Result<()> {
        self.faults += 1;
        say(line)
    }

    pub(super) fn unreachable(&mut self, line: impl Display) -> anyhow::Result<()> {
        self.unreachable += 1;
        say(line)
    }

    /// # Errors
    /// When there was a fault, or something could not be reached; the exit codes differ.
    pub(super) fn conclude(self) -> anyhow::Result<()> {
        match (self.faults, self.unreachable) {
            (0, 0) => Ok(()),
            (0, unreachable) => bail!("check: cannot be used or reached: {unreachable}"),
            (faults, 0) => Err(ConfigError::new("check", format!("faults: {faults}")).into()),
            (faults, unreachable) => {
                let counts = format!("faults: {faults}, cannot be used or reached: {unreachable}");
                Err(ConfigError::new("check", counts).into())
            }
        }
    }
}
