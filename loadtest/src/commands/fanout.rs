//! `fanout`: publishes to many tenants and holds every socket to the promises.

use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};

use super::{Bounds, Crowd, Findings, Gateways, Redis, duration};
use crate::load::{self, Load};
use crate::publishing::{Target, Via};

/// Publish to many tenants; verify order, exactly-once, isolation and the limit on every socket.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    gateways: Gateways,
    #[command(flatten)]
    redis: Redis,
    #[command(flatten)]
    crowd: Crowd,
    #[command(flatten)]
    bounds: Bounds,
    /// How events are published.
    #[arg(long, value_enum, default_value_t = Way::Redis)]
    via: Way,
    /// With `--via http`: a gateway's internal port, host:port; several times for several.
    #[arg(long, default_value = "127.0.0.1:9090")]
    internal: Vec<String>,
    /// With `--via http`: the gateways' PUBLISH_API_KEY.
    #[arg(long, env, hide_env_values = true)]
    publish_api_key: Option<String>,
    /// With `--via outbox`: the gateways' DATABASE_URL.
    #[arg(long, env, hide_env_values = true)]
    database_url: Option<String>,
    /// Events a second of each tenant; kept 1 % under the limit, so that one late event can't delay all others.
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// How long to publish.
    #[arg(long, default_value = "60s", value_parser = duration)]
    duration: Duration,
    /// Publishers; each tenant's events are dealt over all of them.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    publishers: u16,
    /// Kill every Redis subscription this often.
    #[arg(long, value_name = "EVERY", value_parser = duration)]
    kill_pubsub: Option<Duration>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    /// Directly, as Rust code does with the publisher crate.
    Redis,
    /// With the publish API of the gateways' internal ports.
    Http,
    /// In a transaction, and from there by the gateways' relay.
    Outbox,
}

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let Options { gateways, redis, crowd, bounds, rate, duration, publishers, kill_pubsub, .. } = options;
    ensure!(rate > 0.0, "--rate must be above 0");
    let limit = crowd.limit;
    let via = match options.via {
        Way::Redis => Via::Redis,
        Way::Http => {
            let key = options.publish_api_key.context("--via http needs --publish-api-key or PUBLISH_API_KEY")?;
            Via::Http { internal: options.internal, key }
        }
        Way::Outbox => {
            let database_url = options.database_url.context("--via outbox needs --database-url or DATABASE_URL")?;
            Via::Outbox { database_url }
        }
    };
    let load = crowd.load(gateways, redis);
    let target = Target { via, ..load.target };
    let outcome = load::run(Load { target, publishers: publishers.into(), kill_pubsub, ..load }, rate, duration)?;
    Ok(Findings::new(&outcome, bounds.failures(&outcome, limit))?.with(outcome.charts()))
}
