//! The subcommands, and what several of them ask for.

pub mod churn;
pub mod fanout;
pub mod floor;
pub mod idle;
pub mod payments;
pub mod relay;
pub mod snapshot;

use std::fmt::Display;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::client::GatewayUrl;

/// What a run came to: the exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every bound held.
    Passed,
    /// A stated bound failed.
    Failed,
}

/// The gateways to load, and the key their tokens are signed with.
#[derive(Debug, Args)]
pub struct Gateways {
    /// Where a gateway listens, ws://host:port; several times for several gateways.
    #[arg(long = "gateway", default_value = "ws://127.0.0.1:8080")]
    pub urls: Vec<GatewayUrl>,
    /// The gateways' HS256 key.
    #[arg(long, env, hide_env_values = true)]
    pub jwt_secret: String,
}

/// The Redis behind the gateways.
#[derive(Debug, Args)]
pub struct Redis {
    /// The gateways' REDIS_URL.
    #[arg(long, env, hide_env_values = true, default_value = "redis://127.0.0.1:6379")]
    pub redis_url: String,
    /// The gateways' REDIS_PREFIX.
    #[arg(long, env, default_value = "dash")]
    pub redis_prefix: String,
}

/// Shows a report, then each bound that failed.
fn conclude(report: &(impl Display + Serialize), json: bool, failures: &[String]) -> anyhow::Result<Verdict> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        println!("{report}");
    }
    failures.iter().for_each(|failure| eprintln!("FAILED: {failure}"));
    Ok(if failures.is_empty() { Verdict::Passed } else { Verdict::Failed })
}

/// Reads `250us`, `10ms`, `2s` or `1.5s`.
fn duration(text: &str) -> anyhow::Result<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => anyhow::bail!("a duration is a number followed by us, ms or s"),
    };
    let number: f64 = digits.parse().context("a duration starts with a number")?;
    Duration::try_from_secs_f64(number * unit).context("a duration can't be negative")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration("250us").unwrap(), Duration::from_micros(250));
        assert_eq!(duration("10ms").unwrap(), Duration::from_millis(10));
        assert_eq!(duration("1.5s").unwrap(), Duration::from_millis(1500));
        for bad in ["10", "ms", "-1s", "1h", ""] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
