//! `gateway check`: whether `gateway serve` would work here. One line for each thing that is checked, and one for each fault, which says
//! what to write instead.

mod numbers;
mod plans;
mod ports;
mod postgres;
mod redis;
mod report;
mod rights;
mod views;

use self::report::Report;
use crate::config::Settings;
use crate::tokens::Tokens;

/// Checks everything that a valid configuration points at.
///
/// # Errors
/// When a part can't be used or reached.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let mut report = Report::default();
    report.good("configuration: valid")?;
    for warning in &settings.warnings {
        report.good(format!("warning: {warning}"))?;
    }
    numbers::check(settings, &mut report)?;
    match Tokens::load(&settings.jwt).await?.describe() {
        Ok(keys) => report.good(format!("keys: {keys}"))?,
        Err(reason) => report.unreachable(format!("keys: JWT_JWKS {reason}"))?,
    }
    ports::check(settings, &mut report)?;
    postgres::check(settings, &mut report).await?;
    redis::check(settings, &mut report).await?;
    report.conclude()
}
