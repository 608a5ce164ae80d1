//! `soak`: browsers come and go for hours under a steady load; what the gateway holds must neither grow nor stay.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use super::{Bounds, Crowd, Findings, Gateways, Redis, duration};
use crate::chart::{Chart, Series, Unit};
use crate::dialler::Dialler;
use crate::driver::Farewell;
use crate::holdings::Holdings;
use crate::load::{Load, Session};
use crate::outcome::Outcome;
use crate::process;
use crate::scrape::Scrape;
use crate::slope::slope;
use crate::sockets::Sockets;

/// Load one gateway with browsers that come and go; fail when what it holds grows, or is not given back at the end.
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
    /// The gateway's internal port, host:port.
    #[arg(long, default_value = "127.0.0.1:9090")]
    internal: String,
    /// Events a second of each tenant.
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// How long.
    #[arg(long, default_value = "1h", value_parser = duration)]
    duration: Duration,
    /// How long a browser stays, on average.
    #[arg(long, default_value = "30s", value_parser = duration)]
    life: Duration,
    /// Between two looks at what the gateway holds.
    #[arg(long, default_value = "2s", value_parser = duration)]
    every: Duration,
    /// Fail when resident memory grows faster than this, after a warm-up of a quarter of the time.
    #[arg(long, default_value = "1MB/h", value_parser = bytes_per_hour)]
    max_rss_slope: BytesPerHour,
}

#[derive(Debug, Clone, Copy)]
struct BytesPerHour(f64);

/// Reads `500kB/h` or `1MB/h`.
fn bytes_per_hour(text: &str) -> anyhow::Result<BytesPerHour> {
    let size = text.strip_suffix("/h").context("a slope is a size an hour, such as 1MB/h")?;
    let (number, unit) = match (size.strip_suffix("MB"), size.strip_suffix("kB")) {
        (Some(number), _) => (number, 1e6),
        (_, Some(number)) => (number, 1e3),
        _ => anyhow::bail!("a size is a number followed by kB or MB"),
    };
    Ok(BytesPerHour(number.parse::<f64>().context("a size starts with a number")? * unit))
}

/// What the gateway held at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
struct Look {
    at_seconds: f64,
    rss_bytes: u64,
    tasks: f64,
    #[serde(flatten)]
    holdings: Holdings,
}

#[derive(Serialize)]
struct Report {
    /// Browsers that came after the first ones.
    replaced: usize,
    failed_attempts: u64,
    before: Holdings,
    after: Holdings,
    /// Growth an hour, after the warm-up.
    rss_bytes_per_hour: f64,
    files_per_hour: f64,
    rooms_per_hour: f64,
    subscriptions_per_hour: f64,
    tasks_per_hour: f64,
    looks: Vec<Look>,
    #[serde(flatten)]
    outcome: Outcome,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replaced, failed_attempts, before, after, rss_bytes_per_hour, files_per_hour, .. } = self;
        writeln!(f, "browsers      {replaced} came and went, {failed_attempts} attempts failed")?;
        writeln!(f, "before        {before}")?;
        writeln!(f, "after         {after}")?;
        writeln!(
            f,
            "an hour       RSS {:+.0} kB   files {files_per_hour:+.1}   rooms {:+.1}   subscriptions {:+.1}   tasks {:+.1}",
            rss_bytes_per_hour / 1e3,
            self.rooms_per_hour,
            self.subscriptions_per_hour,
            self.tasks_per_hour
        )?;
        write!(f, "{}", self.outcome)
    }
}

/// The part of the run in which caches and allocators fill.
const WARM_UP: f64 = 0.25;
/// The last events of a socket that is about to be judged.
const SETTLE: Duration = Duration::from_secs(5);

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let Options { gateways, redis, crowd, bounds, internal, rate, duration, life, every, max_rss_slope } = options;
    let &[pid] = crowd.pids.as_slice() else { anyhow::bail!("soak looks at one gateway: give its process with --pid") };
    ensure!(!life.is_zero(), "--life must be above 0");
    let (limit, sockets) = (crowd.limit, crowd.sockets);
    let Redis { redis_url, redis_prefix } = &redis;
    let holdings = {
        let (internal, redis_url, redis_prefix) = (internal.clone(), redis_url.clone(), redis_prefix.clone());
        move || Holdings::of(&internal, pid, &redis_url, &redis_prefix)
    };
    let before = holdings()?;
    ensure!(before.connections == 0 && before.tenants == 0, "the gateway is in use: {before}");

    let mut session = Session::open(Load { settle: SETTLE, ..crowd.load(gateways, redis) })?;
    let dialler = Dialler::start(session.fleet.clone(), session.served.clone());
    let (stop_lives, lives_end) = mpsc::channel();
    let (stop_looks, looks_end) = mpsc::channel();
    let lives = {
        let (served, dialler) = (session.served.clone(), dialler.clone());
        thread::spawn(move || live_and_leave(&served, &dialler, sockets, life, &lives_end))
    };
    let looking = {
        let holdings = holdings.clone();
        thread::spawn(move || look(&internal, pid, holdings, every, &looks_end))
    };
    let outcome = session.publish("a soak", rate, duration)?;
    drop((stop_lives, stop_looks));
    lives.join().expect("the browsers' thread does not panic");
    let looks = looking.join().expect("the onlooker does not panic")?;
    let returns = dialler.stop();
    session.served.ask(|driver, _| driver.leave_all().map_err(Into::into))?;
    let after = before.restored(&holdings)?;

    let warm: Vec<&Look> = looks.iter().filter(|look| look.at_seconds > duration.as_secs_f64() * WARM_UP).collect();
    let an_hour = |of: fn(&Look) -> f64| {
        let points: Vec<(f64, f64)> = warm.iter().map(|look| (look.at_seconds / 3600.0, of(look))).collect();
        slope(&points)
    };
    let report = Report {
        replaced: returns.back.len(),
        failed_attempts: returns.failed,
        before,
        after,
        rss_bytes_per_hour: an_hour(|look| look.rss_bytes as f64),
        files_per_hour: an_hour(|look| look.holdings.files as f64),
        rooms_per_hour: an_hour(|look| look.holdings.tenants as f64),
        subscriptions_per_hour: an_hour(|look| look.holdings.subscriptions as f64),
        tasks_per_hour: an_hour(|look| look.tasks),
        looks,
        outcome,
    };
    let mut failures = bounds.failures(&report.outcome, limit);
    if report.rss_bytes_per_hour > max_rss_slope.0 {
        let (grows, max) = (report.rss_bytes_per_hour / 1e6, max_rss_slope.0 / 1e6);
        failures.push(format!("memory grows by {grows:.2} MB an hour, more than {max:.2}"));
    }
    if !after.is_back_at(&before) {
        failures.push(format!("what was left is {after}, not {before}"));
    }
    let charts = [charts(&report.looks), report.outcome.charts()].concat();
    Ok(Findings::new(&report, failures)?.with(charts))
}

/// Ends each socket when its life is over, in one of the ways that browsers go, and has another take its place.
fn live_and_leave(served: &Sockets, dialler: &Dialler, sockets: usize, life: Duration, end: &Receiver<()>) {
    // The time between independent departures.
    let life = || life.mul_f64(-(1.0 - rand::random::<f64>()).ln());
    let mut ends: BinaryHeap<_> = (0..sockets).map(|socket| Reverse((Instant::now() + life(), socket))).collect();
    while let Some(&Reverse((at, socket))) = ends.peek() {
        if end.recv_timeout(at.saturating_duration_since(Instant::now())) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        let farewell = match rand::random_range(0..10) {
            0..5 => Farewell::Close,
            5..9 => Farewell::Reset,
            _ => Farewell::Silence,
        };
        let next = dialler.clone();
        served.order(move |driver, _| {
            // A socket that is being dialled still can't leave; its turn comes again.
            if driver.leave(socket, farewell)? {
                next.replace(socket);
            }
            Ok(())
        });
        ends.pop();
        ends.push(Reverse((Instant::now() + life(), socket)));
    }
}

fn look(
    internal: &str,
    pid: u32,
    holdings: impl Fn() -> anyhow::Result<Holdings>,
    every: Duration,
    end: &Receiver<()>,
) -> anyhow::Result<Vec<Look>> {
    let began = Instant::now();
    let mut looks = Vec::new();
    while end.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        looks.push(Look {
            at_seconds: began.elapsed().as_secs_f64(),
            rss_bytes: process::resident_bytes(pid)?,
            tasks: Scrape::of(internal)?.value("gateway_tasks")?,
            holdings: holdings()?,
        });
    }
    Ok(looks)
}

fn charts(looks: &[Look]) -> Vec<Chart> {
    let line = |name: &str, of: fn(&Look) -> f64| Series {
        name: name.to_owned(),
        points: looks.iter().map(|look| (look.at_seconds, of(look))).collect(),
    };
    let chart = |title: &str, y, series| Chart { title: title.to_owned(), x: Unit::Seconds, y, series };
    vec![
        chart("Resident memory of the gateway", Unit::Bytes, vec![line("RSS", |look| look.rss_bytes as f64)]),
        chart(
            "What the gateway holds",
            Unit::Count,
            vec![
                line("sockets", |look| look.holdings.connections as f64),
                line("files", |look| look.holdings.files as f64),
                line("rooms", |look| look.holdings.tenants as f64),
                line("subscriptions", |look| look.holdings.subscriptions as f64),
                line("tasks", |look| look.tasks),
            ],
        ),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_slope_has_a_size_and_an_hour() {
        assert!((bytes_per_hour("1MB/h").unwrap().0 - 1e6).abs() < 1.0);
        assert!((bytes_per_hour("1.5kB/h").unwrap().0 - 1500.0).abs() < 1.0);
        for bad in ["1MB", "1/h", "MB/h", "1GB/h"] {
            assert!(bytes_per_hour(bad).is_err(), "{bad}");
        }
    }
}
