//! The answer of `gateway check`: a line for each thing, and the exit code in the end.

use std::fmt::Display;

use anyhow::bail;

use crate::commands::say;
use crate::config::ConfigError;

/// What was said, and how it ends.
#[derive(Debug, Default)]
pub struct Report {
    /// Things that only another configuration mends.
    faults: usize,
    /// Things that may work later.
    unreachable: usize,
}

impl Report {
    /// Something that is as it should be.
    pub fn good(&mut self, line: impl Display) -> anyhow::Result<()> {
        say(line)
    }

    /// Something that only another configuration mends.
    pub fn fault(&mut self, line: impl Display) -> anyhow::Result<()> {
        self.faults += 1;
        say(line)
    }

    /// Something that may work later.
    pub fn unreachable(&mut self, line: impl Display) -> anyhow::Result<()> {
        self.unreachable += 1;
        say(line)
    }

    /// # Errors
    /// When there was a fault, or something could not be reached; the exit codes differ.
    pub fn conclude(self) -> anyhow::Result<()> {
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
