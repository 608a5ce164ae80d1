//! `gateway check`: would `gateway serve` work here? One line for each thing looked at, and one for each fault, which says what to write
//! instead.

mod numbers;
mod plans;
mod ports;
mod postgres;
mod redis;
mod rights;
mod views;

use std::fmt::Display;

use anyhow::bail;

use super::say;
use crate::config::{Config, ConfigError};
use crate::tokens::Tokens;

/// Checks what an already valid configuration points at, all of it. Fails when something can't be used or reached.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let mut report = Report::default();
    report.good("configuration: valid")?;
    for warning in config.warnings() {
        report.good(format!("warning: {warning}"))?;
    }
    numbers::check(config, &mut report)?;
    match Tokens::load(&config.jwt).await?.describe() {
        Ok(keys) => report.good(format!("keys: {keys}"))?,
        Err(reason) => report.unreachable(format!("keys: JWT_JWKS {reason}"))?,
    }
    ports::check(config, &mut report)?;
    postgres::check(config, &mut report).await?;
    redis::check(config, &mut report).await?;
    report.conclude()
}

/// What was said, and how it ends.
#[derive(Debug, Default)]
struct Report {
    /// Things that only another configuration mends.
    faults: usize,
    /// Things that may work later.
    unreachable: usize,
}

impl Report {
    fn good(&mut self, line: impl Display) -> anyhow::Result<()> {
        say(line)
    }

    fn fault(&mut self, line: impl Display) -> anyhow::Result<()> {
        self.faults += 1;
        say(line)
    }

    fn unreachable(&mut self, line: impl Display) -> anyhow::Result<()> {
        self.unreachable += 1;
        say(line)
    }

    /// # Errors
    /// When there was a fault, or something could not be reached; the exit codes differ.
    fn conclude(self) -> anyhow::Result<()> {
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
