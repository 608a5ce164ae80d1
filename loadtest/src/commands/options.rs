//! The options that several subcommands share, each written once. A subcommand changes a default with `mut_arg`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, value_parser};
use sqlx::{Connection, PgConnection};

use crate::client::fleet::Fleet;
use crate::client::token::Mint;
use crate::client::{GatewayUrl, Resume};
use crate::load::outcome::Outcome;
use crate::load::{Load, SETTLE};
use crate::publishing::door::{Target, Via};

/// The gateways to load, and the key of their tokens.
#[derive(Debug, Args)]
pub struct Gateways {
    /// A gateway's address, ws://host:port; repeat it for several gateways.
    #[arg(long = "gateway", default_value = "ws://127.0.0.1:8080")]
    pub urls: Vec<GatewayUrl>,
    /// The gateways' HS256 key.
    #[arg(long, env, hide_env_values = true)]
    pub jwt_secret: String,
}

impl Gateways {
    pub fn mint(&self) -> Mint {
        Mint::new(&self.jwt_secret)
    }

    /// Dashboards of this many tenants on all gateways.
    pub fn fleet(&self, tenants: u32) -> Fleet {
        Fleet { gateways: self.urls.clone(), tenants, mint: self.mint(), resume: Resume::Handshake }
    }

    /// The gateway of client number `index`.
    pub fn of(&self, index: usize) -> &GatewayUrl {
        &self.urls[index % self.urls.len()]
    }
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

/// The database behind the gateways.
#[derive(Debug, Args)]
pub struct Database {
    /// The gateways' DATABASE_URL.
    #[arg(long, env, hide_env_values = true)]
    database_url: String,
}

impl Database {
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect_with(&publisher::internals::database::options(&self.database_url)?).await?)
    }
}

/// The internal port of one gateway.
#[derive(Debug, Args)]
pub struct Internal {
    /// The gateway's internal port, host:port.
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub internal: String,
}

/// The process of one gateway, and the tenants of its sockets.
#[derive(Debug, Args)]
pub struct OneGateway {
    /// The gateway's process.
    #[arg(long)]
    pub pid: u32,
    /// Tenants that the sockets are distributed over.
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u32).range(1..))]
    pub tenants: u32,
}

/// The dashboards of a run.
#[derive(Debug, Args)]
pub struct Dashboards {
    /// Sockets, distributed over tenants and gateways.
    #[arg(long, default_value_t = 300)]
    pub sockets: usize,
    /// Tenants, named l0001, l0002 …
    #[arg(long, default_value_t = 30, value_parser = value_parser!(u32).range(1..))]
    pub tenants: u32,
}

/// The dashboards of a run, the limit of their tenants, and the processes behind them.
#[derive(Debug, Args)]
pub struct Crowd {
    #[command(flatten)]
    pub dashboards: Dashboards,
    /// The limit that publishers keep for each tenant: EVENTS_PER_SECOND.
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// A gateway process of this machine whose CPU and memory are measured; repeat it for several.
    #[arg(long = "pid")]
    pub pids: Vec<u32>,
}

impl Crowd {
    /// A run of these dashboards on these gateways, with events published directly to Redis.
    pub fn load(self, gateways: &Gateways, redis: Redis) -> Load {
        let Redis { redis_url, redis_prefix } = redis;
        Load {
            fleet: gateways.fleet(self.dashboards.tenants),
            sockets: self.dashboards.sockets,
            target: Target { via: Via::Redis, redis_url, redis_prefix, limit: self.limit },
            publishers: 3,
            kill_pubsub: None,
            pids: self.pids,
            settle: SETTLE,
        }
    }
}

/// How fast and how long a run publishes.
#[derive(Debug, Args)]
pub struct Pace {
    /// Events a second of each tenant. Rates at the limit are lowered by 1 %, so that one late event does not delay all
    /// others.
    #[arg(long, default_value_t = 10.0, value_parser = positive)]
    pub rate: f64,
    /// How long to publish.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub duration: Duration,
}

/// How fast and how long events are written to the database, for which tenants.
#[derive(Debug, Args)]
pub struct Writing {
    /// Tenants that events are written for, in turn.
    #[arg(long, default_value_t = 50, value_parser = value_parser!(u32).range(1..))]
    pub tenants: u32,
    /// Events a second of all tenants together.
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..))]
    pub rate: u32,
    /// How long to write.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub duration: Duration,
}

/// The bound on the latency.
#[derive(Debug, Args)]
pub struct MaxP99 {
    /// Fail when the 99th percentile of the latency, counted from the moment at which an event was due, is above this.
    #[arg(long, value_parser = duration)]
    pub max_p99: Option<Duration>,
}

impl MaxP99 {
    /// The failure, if `p99` is above the bound.
    pub fn failure(&self, p99: Duration) -> Option<String> {
        self.max_p99.filter(|&max| p99 > max).map(|max| format!("p99 is {p99:?}, above {max:?}"))
    }
}

/// The bounds of a run.
#[derive(Debug, Args)]
pub struct Bounds {
    #[command(flatten)]
    pub latency: MaxP99,
    /// Fail when more deliveries than this are missed; duplicates and events of other tenants always fail.
    #[arg(long, default_value_t = 0)]
    pub max_missed: u64,
}

impl Bounds {
    /// The bounds and promises that this run broke.
    pub fn failures(&self, outcome: &Outcome, limit: u32) -> Vec<String> {
        let mut failures = outcome.failures(limit, self.max_missed);
        failures.extend(self.latency.failure(outcome.latency.p99()));
        failures
    }
}

/// The servers that `floor` and `knee` compare.
#[derive(Debug, Args)]
pub struct Compared {
    /// A release build of the gateway.
    #[arg(long, default_value = "target/release/gateway")]
    gateway_bin: PathBuf,
    #[command(flatten)]
    pub dashboards: Dashboards,
}

impl Compared {
    /// The gateway's program, which must have been built.
    pub fn gateway_bin(&self) -> anyhow::Result<&Path> {
        ensure!(self.gateway_bin.is_file(), "{} does not exist: cargo build --release", self.gateway_bin.display());
        Ok(&self.gateway_bin)
    }
}

/// Reads `250us`, `10ms`, `1.5s`, `5m` or `2h`.
pub fn duration(text: &str) -> anyhow::Result<Duration> {
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

/// Reads a number above 0.
pub fn positive(text: &str) -> anyhow::Result<f64> {
    let number: f64 = text.parse()?;
    ensure!(number > 0.0, "must be above 0");
    Ok(number)
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

    #[test]
    fn a_rate_is_above_zero() {
        assert!((positive("0.5").unwrap() - 0.5).abs() < f64::EPSILON);
        for bad in ["0", "-1", "NaN", "ten"] {
            assert!(positive(bad).is_err(), "{bad}");
        }
    }
}
