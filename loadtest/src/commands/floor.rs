//! `floor`: the ratio of the gateway's cost to that of a bare write loop under the same load.

use std::fmt;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::bench::Bench;
use super::options::{Compared, duration};
use crate::load;
use crate::report::findings::Findings;
use crate::servers::server::Kind;

/// Compare the gateway with a bare write loop: the same load, one after the other, each on one core.
#[derive(Debug, Args)]
#[command(mut_arg("sockets", |arg| arg.default_value("1000")), mut_arg("tenants", |arg| arg.default_value("20")))]
pub struct Options {
    #[command(flatten)]
    compared: Compared,
    /// Events a second of each tenant; 10 is the specified maximum.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How long to publish in each run.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Rounds: each runs both servers, one after the other, and the next round in the other order, so that a slow phase of
    /// the machine affects both. The median round counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Fail when the ratio of the CPU per delivery, gateway to floor, is above this.
    #[arg(long)]
    max_ratio: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    runs: Vec<Run>,
    /// The ratio of the CPU per delivery, gateway to floor, in the median round.
    ratio: f64,
    /// The ratio of the p99, gateway to floor, in the median round.
    p99_ratio: f64,
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
        write!(f, "ratio     {:.2} × the floor, p99 {:.2} ×", self.ratio, self.p99_ratio)
    }
}

pub fn run(options: Options) -> anyhow::Result<Findings> {
    options.compared.gateway_bin()?;
    Bench::reserve_core()?;

    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        let order = if round % 2 == 1 { [Kind::Bare, Kind::Gateway] } else { [Kind::Gateway, Kind::Bare] };
        for kind in order {
            eprintln!("round {round} of {}: {kind}", options.rounds);
            runs.push(measure(kind, &options)?);
        }
    }

    let ratio = median_ratio(&runs, |run| run.cpu_us_per_delivery);
    let p99_ratio = median_ratio(&runs, |run| run.p99_us as f64);
    let broken = |run: &Run| -> Vec<String> { run.broken.iter().map(|why| format!("{}: {why}", run.server)).collect() };
    let mut failures: Vec<_> = runs.iter().flat_map(broken).collect();
    if let Some(max) = options.max_ratio.filter(|&max| ratio > max) {
        failures.push(format!("{ratio:.2} × the floor is above {max}"));
    }
    Findings::new(&Report { runs, ratio, p99_ratio }, failures)
}

/// The median over the rounds of the ratio gateway to floor.
fn median_ratio(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    let of = |round: &[Run], kind| round.iter().find(|run| run.server == kind).map_or(f64::NAN, &of);
    let mut ratios: Vec<_> = runs.chunks(2).map(|round| of(round, Kind::Gateway) / of(round, Kind::Bare)).collect();
    ratios.sort_by(f64::total_cmp);
    let middle = ratios.len() / 2;
    if ratios.len() % 2 == 1 { ratios[middle] } else { (ratios[middle - 1] + ratios[middle]) / 2.0 }
}

/// One run on a new Redis and a new server.
fn measure(kind: Kind, options: &Options) -> anyhow::Result<Run> {
    let bench = Bench::start(kind, &options.compared, options.rate)?;
    let outcome = load::run(bench.load(), options.rate.into(), options.duration)?;
    Ok(Run {
        server: kind,
        cpu_us_per_delivery: outcome.cpu_micros_per_delivery(),
        p50_us: outcome.latency.p50_us,
        p99_us: outcome.latency.p99_us,
        kib_per_socket: outcome.bytes_per_socket() / 1024.0,
        deliveries_per_second: outcome.deliveries_per_second,
        generator_cores: outcome.generator_cores,
        broken: outcome.failures(options.rate, 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disturbed_round_does_not_count() {
        let run = |server, cpu_us_per_delivery| Run {
            server,
            cpu_us_per_delivery,
            p50_us: 0,
            p99_us: 0,
            kib_per_socket: 0.0,
            deliveries_per_second: 0.0,
            generator_cores: 0.0,
            broken: Vec::new(),
        };
        let round = |bare, gateway| [run(Kind::Bare, bare), run(Kind::Gateway, gateway)];
        let ratio = |rounds: &[[Run; 2]]| median_ratio(rounds.as_flattened(), |run| run.cpu_us_per_delivery);
        assert!((ratio(&[round(5.0, 5.5), round(4.0, 8.0), round(8.0, 8.8)]) - 1.1).abs() < 1e-9);
        assert!((ratio(&[round(5.0, 5.5), round(5.0, 6.5)]) - 1.2).abs() < 1e-9);
    }
}
