//! `gateway check`: would `gateway serve` work here? One line for each thing looked at, and one for each fault, which says what to write
//! instead.

mod numbers;
mod plans;
mod ports;
mod postgres;
mod redis;
mod report;
mod rights;
mod views;

use crate::config::Config;
use crate::tokens::Tokens;
use report::Report;

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
