//! The subcommands, and what several of them ask for.

pub mod attack;
pub mod churn;
pub mod fanout;
pub mod floor;
pub mod idle;
pub mod knee;
pub mod limit;
pub mod payments;
pub mod ramp;
pub mod relay;
pub mod snapshot;
pub mod soak;
pub mod storm;

use std::fmt::Display;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::chart::Chart;
use crate::client::{GatewayUrl, Resume};
use crate::fleet::Fleet;
use crate::load::{Load, SETTLE};
use crate::outcome::Outcome;
use crate::publishing::{Target, Via};
use crate::token::Mint;

/// What a subcommand found.
pub struct Findings {
    /// For a terminal.
    pub text: String,
    /// For programs.
    pub figures: Value,
    /// The bounds that failed, one line for each.
    pub failures: Vec<String>,
    /// For a page.
    pub charts: Vec<Chart>,
}

impl Findings {
    pub fn new(report: &(impl Display + Serialize), failures: Vec<String>) -> anyhow::Result<Self> {
        Ok(Self { text: report.to_string(), figures: serde_json::to_value(report)?, failures, charts: Vec::new() })
    }

    pub fn with(self, charts: Vec<Chart>) -> Self {
        Self { charts, ..self }
    }
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

/// What a run must keep to.
#[derive(Debug, Args)]
pub struct Bounds {
    /// Fail when the 99th percentile of the latency, from the intended moment of sending, is above this.
    #[arg(long, value_parser = duration)]
    pub max_p99: Option<Duration>,
    /// Fail when more deliveries than this never came; duplicates and foreign events always fail.
    #[arg(long, default_value_t = 0)]
    pub max_missed: u64,
}

impl Bounds {
    /// The bounds that this run broke, and the promises.
    fn failures(&self, outcome: &Outcome, limit: u32) -> Vec<String> {
        let mut failures = outcome.failures(limit, self.max_missed);
        let p99 = outcome.latency.p99();
        failures.extend(self.max_p99.filter(|&max| p99 > max).map(|max| format!("p99 is {p99:?}, above {max:?}")));
        failures
    }
}

/// The dashboards of a run, and the processes behind them.
#[derive(Debug, Args)]
pub struct Crowd {
    /// Sockets, dealt over tenants and gateways.
    #[arg(long, default_value_t = 300)]
    pub sockets: usize,
    /// Tenants, named l0001, l0002 …
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub tenants: u32,
    /// The limit that publishers keep for each tenant: EVENTS_PER_SECOND.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// A gateway process of this machine, to measure CPU and memory of; several times for several.
    #[arg(long = "pid")]
    pub pids: Vec<u32>,
}

impl Crowd {
    /// A run of theirs on these gateways, published directly.
    fn load(self, gateways: Gateways, redis: Redis) -> Load {
        let mint = Mint::new(&gateways.jwt_secret);
        let Redis { redis_url, redis_prefix } = redis;
        Load {
            fleet: Fleet { gateways: gateways.urls, tenants: self.tenants, mint, resume: Resume::Handshake },
            sockets: self.sockets,
            target: Target { via: Via::Redis, redis_url, redis_prefix, limit: self.limit },
            publishers: 3,
            kill_pubsub: None,
            pids: self.pids,
            settle: SETTLE,
        }
    }
}

/// Reads `250us`, `10ms`, `1.5s`, `5m` or `2h`.
fn duration(text: &str) -> anyhow::Result<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => anyhow::bail!("a duration is a number followed by us, ms, s, m or h"),
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
        for bad in ["10", "ms", "-1s", "1d", ""] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
