//! `fanout`: publishes to many tenants and checks the promises on every socket.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::options::{Bounds, Crowd, Gateways, Pace, Redis, duration};
use crate::load::{self, Load};
use crate::publishing::door::{Target, Via};
use crate::report::findings::Findings;

/// Publish to many tenants; check order, exactly-once, isolation and the limit on every socket.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    gateways: Gateways,
    #[command(flatten)]
    redis: Redis,
    #[command(flatten)]
    crowd: Crowd,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    bounds: Bounds,
    /// How events are published.
    #[arg(long, value_enum, default_value_t = Way::Redis)]
    via: Way,
    /// With `--via http`: a gateway's internal port, host:port; repeat it for several gateways.
    #[arg(long, default_value = "127.0.0.1:9090")]
    internal: Vec<String>,
    /// With `--via http`: the gateways' PUBLISH_API_KEY.
    #[arg(long, env, hide_env_values = true)]
    publish_api_key: Option<String>,
    /// With `--via outbox`: the gateways' DATABASE_URL.
    #[arg(long, env, hide_env_values = true)]
    database_url: Option<String>,
    /// Publishers; each tenant's events go to all of them in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    publishers: u16,
    /// Kill every Redis subscription at this interval.
    #[arg(long, value_name = "EVERY", value_parser = duration)]
    kill_pubsub: Option<Duration>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    /// Directly to Redis, with the publisher crate.
    Redis,
    /// Through the publish API of the gateways' internal ports.
    Http,
    /// Through the outbox in the database and the gateways' relay.
    Outbox,
}

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let Options { gateways, redis, crowd, pace, bounds, publishers, kill_pubsub, .. } = options;
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
    let load = crowd.load(&gateways, redis);
    let target = Target { via, ..load.target };
    let load = Load { target, publishers: publishers.into(), kill_pubsub, ..load };
    let outcome = load::run(load, pace.rate, pace.duration)?;
    Ok(Findings::new(&outcome, bounds.failures(&outcome, limit))?.with(outcome.charts()))
}
