//! `floor`: the gateway and a bare write loop side by side, under the same load, so that its cost is a ratio.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use super::{Verdict, conclude, duration};
use crate::fleet::Fleet;
use crate::load::{self, Load};
use crate::process;
use crate::redis_server::RedisServer;
use crate::server::{Kind, Server};
use crate::token::Mint;

/// Compare the gateway with a bare write loop: the same load, one after the other, each on one core.
#[derive(Debug, Args)]
pub struct Options {
    /// A release build of the gateway.
    #[arg(long, default_value = "target/release/gateway")]
    gateway_bin: PathBuf,
    /// Sockets, dealt over the tenants.
    #[arg(long, default_value_t = 1000)]
    sockets: usize,
    /// Tenants.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    tenants: u32,
    /// Events a second of each tenant; 10 is the specified maximum.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How long to publish in each run.
    #[arg(long, default_value = "20s", value_parser = duration)]
    duration: Duration,
    /// Runs of each server, in turn: what the machine does meanwhile hits both.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Fail when the gateway's CPU per delivery is more than this many times that of the floor.
    #[arg(long)]
    max_ratio: Option<f64>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    runs: Vec<Run>,
    /// The gateway's CPU per delivery over the floor's, over all rounds.
    ratio: f64,
}

#[derive(Serialize)]
struct Run {
    server: Kind,
    cpu_us_per_delivery: f64,
    p50_us: u64,
    p99_us: u64,
    kib_per_socket: f64,
    deliveries_per_second: f64,
    generator_cores: f64,
    broken: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "server    CPU/delivery      p50        p99   RSS/socket  deliveries/s  generator")?;
        for run in &self.runs {
            let Run { server, cpu_us_per_delivery, p50_us, p99_us, kib_per_socket, deliveries_per_second, .. } = run;
            write!(
                f,
                "{server:<8} {cpu_us_per_delivery:>9.2} µs {p50_us:>8} µs {p99_us:>7} µs {kib_per_socket:>8.1} KiB"
            )?;
            writeln!(f, " {deliveries_per_second:>13.0} {:>5.2} cores", run.generator_cores)?;
        }
        write!(f, "ratio     {:.2} × the floor", self.ratio)
    }
}

/// The server's own core; everything else shares the others.
const SERVER_CORE: usize = 0;
const PREFIX: &str = "floor";
const SECRET: &str = "a key for load tests, known to everyone";

pub fn run(options: Options) -> anyhow::Result<Verdict> {
    ensure!(process::cores() >= 2, "the server needs a core of its own, and the generator another");
    ensure!(options.gateway_bin.is_file(), "{} is not there: cargo build --release", options.gateway_bin.display());
    process::pin(1..process::cores())?;

    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        for kind in [Kind::Bare, Kind::Gateway] {
            eprintln!("round {round} of {}: {kind}", options.rounds);
            runs.push(measure(kind, &options)?);
        }
    }

    let mean = |kind| {
        let costs: Vec<f64> = runs.iter().filter(|run| run.server == kind).map(|run| run.cpu_us_per_delivery).collect();
        costs.iter().sum::<f64>() / costs.len() as f64
    };
    let ratio = mean(Kind::Gateway) / mean(Kind::Bare);
    let broken = |run: &Run| -> Vec<String> { run.broken.iter().map(|why| format!("{}: {why}", run.server)).collect() };
    let mut failures: Vec<_> = runs.iter().flat_map(broken).collect();
    if let Some(max) = options.max_ratio.filter(|&max| ratio > max) {
        failures.push(format!("{ratio:.2} × the floor is above {max}"));
    }
    conclude(&Report { runs, ratio }, options.json, &failures)
}

/// One run on a fresh Redis and a fresh server.
fn measure(kind: Kind, options: &Options) -> anyhow::Result<Run> {
    let redis = RedisServer::start()?;
    let server = match kind {
        Kind::Bare => Server::bare(SERVER_CORE, redis.url(), PREFIX, options.tenants)?,
        Kind::Gateway => {
            Server::gateway(SERVER_CORE, &options.gateway_bin, redis.url(), PREFIX, SECRET, options.sockets)?
        }
    };
    let fleet = Fleet { gateways: vec![server.url.clone()], tenants: options.tenants, mint: Mint::new(SECRET) };
    let outcome = load::run(Load {
        fleet,
        sockets: options.sockets,
        redis_url: redis.url().to_owned(),
        redis_prefix: PREFIX.to_owned(),
        rate: options.rate.into(),
        limit: options.rate,
        duration: options.duration,
        publishers: 1,
        kill_pubsub: None,
        pids: vec![server.pid()],
    })?;
    Ok(Run {
        server: kind,
        cpu_us_per_delivery: outcome.cpu_micros_per_delivery(),
        p50_us: outcome.latency.p50_us,
        p99_us: outcome.latency.p99_us,
        kib_per_socket: outcome.bytes_per_socket() / 1024.0,
        deliveries_per_second: outcome.deliveries_per_second,
        generator_cores: outcome.generator_cores,
        broken: outcome.failures(options.rate),
    })
}
