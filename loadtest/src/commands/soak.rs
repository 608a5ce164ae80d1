//! `soak`: browsers connect and leave for hours under a steady load. The gateway's resources must not grow, and must be
//! freed at the end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use super::options::{Bounds, Crowd, Gateways, Internal, Pace, Redis, duration};
use crate::load::outcome::Outcome;
use crate::load::{Load, Session};
use crate::machine::process;
use crate::measure::holdings::Holdings;
use crate::measure::slope::slope;
use crate::report::chart::{Chart, Series, Unit};
use crate::report::findings::Findings;
use crate::sockets::Sockets;
use crate::sockets::dialler::Dialler;
use crate::sockets::driver::Farewell;
use crate::wire::scrape::Scrape;

/// Load one gateway with browsers that connect and leave; fail when its memory grows, or when it does not free everything at
/// the end.
#[derive(Debug, Args)]
#[command(mut_arg("rate", |arg| arg.default_value("1")), mut_arg("duration", |arg| arg.default_value("1h")))]
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
    #[command(flatten)]
    internal: Internal,
    /// The average time that a browser stays connected.
    #[arg(long, default_value = "30s", value_parser = duration)]
    life: Duration,
    /// Interval between two measurements of the gateway's resources.
    #[arg(long, default_value = "2s", value_parser = duration)]
    every: Duration,
    /// Fail when resident memory grows faster than this; the first quarter of the time is a warm-up and does not count.
    #[arg(long, default_value = "1MB/h", value_parser = bytes_per_hour)]
    max_rss_slope: BytesPerHour,
}

#[derive(Debug, Clone, Copy)]
struct BytesPerHour(f64);

/// Reads `500kB/h` or `1MB/h`.
fn bytes_per_hour(text: &str) -> anyhow::Result<BytesPerHour> {
    let size = text.strip_suffix("/h").context("a slope is a size per hour, such as 1MB/h")?;
    let (number, unit) = match (size.strip_suffix("MB"), size.strip_suffix("kB")) {
        (Some(number), _) => (number, 1e6),
        (_, Some(number)) => (number, 1e3),
        _ => anyhow::bail!("a size is a number followed by kB or MB"),
    };
    Ok(BytesPerHour(number.parse::<f64>().context("a size starts with a number")? * unit))
}

/// The gateway's resources at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
struct Reading {
    at_seconds: f64,
    rss_bytes: u64,
    tasks: f64,
    #[serde(flatten)]
    holdings: Holdings,
}

#[derive(Serialize)]
struct Report {
    /// Browsers that took the place of another.
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
    #[serde(rename = "looks")]
    readings: Vec<Reading>,
    #[serde(flatten)]
    outcome: Outcome,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replaced, failed_attempts, before, after, rss_bytes_per_hour, files_per_hour, .. } = self;
        writeln!(f, "browsers      {replaced} left and were replaced, {failed_attempts} attempts failed")?;
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
    let Options { gateways, redis, crowd, pace, bounds, internal, life, every, max_rss_slope } = options;
    let (Pace { rate, duration }, Internal { internal }) = (pace, internal);
    let &[pid] = crowd.pids.as_slice() else { anyhow::bail!("soak measures one gateway: give its process with --pid") };
    ensure!(!life.is_zero(), "--life must be above 0");
    let (limit, sockets) = (crowd.limit, crowd.dashboards.sockets);
    let holdings = {
        let (internal, redis_url, redis_prefix) =
            (internal.clone(), redis.redis_url.clone(), redis.redis_prefix.clone());
        move || Holdings::of(&internal, pid, &redis_url, &redis_prefix)
    };
    let before = holdings()?;
    ensure!(before.connections == 0 && before.tenants == 0, "the gateway is in use: {before}");

    let mut session = Session::open(Load { settle: SETTLE, ..crowd.load(&gateways, redis) })?;
    let dialler = session.dialler();
    let (stop_browsers, browsers_end) = mpsc::channel();
    let (stop_readings, readings_end) = mpsc::channel();
    let browsers = {
        let (served, dialler) = (session.served.clone(), dialler.clone());
        thread::spawn(move || replace_browsers(&served, &dialler, sockets, life, &browsers_end))
    };
    let readings = {
        let holdings = holdings.clone();
        thread::spawn(move || read_resources(&internal, pid, holdings, every, &readings_end))
    };
    let outcome = session.publish("a soak", rate, duration)?;
    drop((stop_browsers, stop_readings));
    browsers.join().expect("the browsers' thread does not panic");
    let readings = readings.join().expect("the reading thread does not panic")?;
    let reconnects = dialler.stop();
    session.served.ask(|driver, _| driver.leave_all().map_err(Into::into))?;
    let after = before.wait_until_restored(&holdings)?;

    let warm = || readings.iter().filter(|reading| reading.at_seconds > duration.as_secs_f64() * WARM_UP);
    let per_hour = |of: fn(&Reading) -> f64| {
        let points: Vec<(f64, f64)> = warm().map(|reading| (reading.at_seconds / 3600.0, of(reading))).collect();
        slope(&points)
    };
    let report = Report {
        replaced: reconnects.back.len(),
        failed_attempts: reconnects.failed,
        before,
        after,
        rss_bytes_per_hour: per_hour(|reading| reading.rss_bytes as f64),
        files_per_hour: per_hour(|reading| reading.holdings.files as f64),
        rooms_per_hour: per_hour(|reading| reading.holdings.tenants as f64),
        subscriptions_per_hour: per_hour(|reading| reading.holdings.subscriptions as f64),
        tasks_per_hour: per_hour(|reading| reading.tasks),
        readings,
        outcome,
    };
    let mut failures = bounds.failures(&report.outcome, limit);
    if report.rss_bytes_per_hour > max_rss_slope.0 {
        let (grows, max) = (report.rss_bytes_per_hour / 1e6, max_rss_slope.0 / 1e6);
        failures.push(format!("memory grows by {grows:.2} MB an hour, more than {max:.2}"));
    }
    if !after.is_back_at(&before) {
        failures.push(format!("the gateway holds {after} afterwards, not {before}"));
    }
    let charts = [charts(&report.readings), report.outcome.charts()].concat();
    Ok(Findings::new(&report, failures)?.with(charts))
}

/// Ends each socket after a random time, in one of the ways of browsers, and replaces it, until `end`.
fn replace_browsers(served: &Sockets, dialler: &Dialler, sockets: usize, life: Duration, end: &Receiver<()>) {
    // Exponential, as independent departures are.
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
        served.queue(move |driver, _| {
            // A socket that is still connecting can't leave; it does so in a later turn.
            if driver.leave(socket, farewell)? {
                next.replace(socket);
            }
            Ok(())
        });
        ends.pop();
        ends.push(Reverse((Instant::now() + life(), socket)));
    }
}

fn read_resources(
    internal: &str,
    pid: u32,
    holdings: impl Fn() -> anyhow::Result<Holdings>,
    interval: Duration,
    end: &Receiver<()>,
) -> anyhow::Result<Vec<Reading>> {
    let began = Instant::now();
    let mut readings = Vec::new();
    while end.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        readings.push(Reading {
            at_seconds: began.elapsed().as_secs_f64(),
            rss_bytes: process::resident_bytes(pid)?,
            tasks: Scrape::of(internal)?.value("gateway_tasks")?,
            holdings: holdings()?,
        });
    }
    Ok(readings)
}

fn charts(readings: &[Reading]) -> Vec<Chart> {
    let line = |name: &str, of: fn(&Reading) -> f64| Series {
        name: name.to_owned(),
        points: readings.iter().map(|reading| (reading.at_seconds, of(reading))).collect(),
    };
    let chart = |title: &str, y, series| Chart { title: title.to_owned(), x: Unit::Seconds, y, series };
    vec![
        chart("Resident memory of the gateway", Unit::Bytes, vec![line("RSS", |reading| reading.rss_bytes as f64)]),
        chart(
            "What the gateway holds",
            Unit::Count,
            vec![
                line("sockets", |reading| reading.holdings.connections as f64),
                line("files", |reading| reading.holdings.files as f64),
                line("rooms", |reading| reading.holdings.tenants as f64),
                line("subscriptions", |reading| reading.holdings.subscriptions as f64),
                line("tasks", |reading| reading.tasks),
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
