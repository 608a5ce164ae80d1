//! `fanout`: publishes to many tenants and holds every socket to the promises.

use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use super::{Gateways, Redis, Verdict, conclude, duration};
use crate::fleet::Fleet;
use crate::load::{self, Load};
use crate::token::Mint;

/// Publish to many tenants; verify order, exactly-once, isolation and the limit on every socket.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    gateways: Gateways,
    #[command(flatten)]
    redis: Redis,
    /// Sockets, dealt over tenants and gateways.
    #[arg(long, default_value_t = 300)]
    sockets: usize,
    /// Tenants, named l0001, l0002 …
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    tenants: u32,
    /// Events a second of each tenant; kept 1 % under the limit, so that one late event can't delay all others.
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// The limit that publishers keep for each tenant: EVENTS_PER_SECOND.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// How long to publish.
    #[arg(long, default_value = "60s", value_parser = duration)]
    duration: Duration,
    /// Publishers; each tenant's events are dealt over all of them.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    publishers: u16,
    /// Kill every Redis subscription this often.
    #[arg(long, value_name = "EVERY", value_parser = duration)]
    kill_pubsub: Option<Duration>,
    /// A gateway process of this machine, to measure CPU and memory of; several times for several.
    #[arg(long = "pid")]
    pids: Vec<u32>,
    /// Fail when the 99th percentile of the latency, from the intended moment of sending, is above this.
    #[arg(long, value_parser = duration)]
    max_p99: Option<Duration>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options) -> anyhow::Result<Verdict> {
    ensure!(options.rate > 0.0, "--rate must be above 0");
    let fleet = Fleet {
        gateways: options.gateways.urls,
        tenants: options.tenants,
        mint: Mint::new(&options.gateways.jwt_secret),
    };
    let outcome = load::run(Load {
        fleet,
        sockets: options.sockets,
        redis_url: options.redis.redis_url,
        redis_prefix: options.redis.redis_prefix,
        rate: options.rate,
        limit: options.limit,
        duration: options.duration,
        publishers: options.publishers.into(),
        kill_pubsub: options.kill_pubsub,
        pids: options.pids,
    })?;
    let mut failures = outcome.failures(options.limit);
    if let Some(max) = options.max_p99.filter(|&max| outcome.latency.p99() > max) {
        failures.push(format!("p99 is {:?}, above {max:?}", outcome.latency.p99()));
    }
    conclude(&outcome, options.json, &failures)
}
