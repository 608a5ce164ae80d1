//! `storm`: all sockets are cut at once and return as browsers do; how long that takes, and that nobody misses a thing.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::{Bounds, Crowd, Findings, Gateways, Redis, duration};
use crate::chart::{Chart, Series, Unit};
use crate::dialler::Dialler;
use crate::driver::{Audience, Farewell};
use crate::latency::{Latency, Recorder};
use crate::load::{Load, Session};
use crate::outcome::{Outcome, generator_limit};

/// Cut all sockets at once while events are published; report how they return, and hold each to what it missed.
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
    /// Events a second of each tenant.
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// How long to publish.
    #[arg(long, default_value = "30s", value_parser = duration)]
    duration: Duration,
    /// How long after the first event the sockets are cut.
    #[arg(long, default_value = "3s", value_parser = duration)]
    cut_after: Duration,
    /// Cut them by killing this process, a gateway or a balancer, instead of resetting each.
    #[arg(long, value_name = "PID")]
    kill: Option<u32>,
    /// Fail when it takes longer until all are back.
    #[arg(long, default_value = "60s", value_parser = duration)]
    max_return: Duration,
    /// Fail when more sockets than this are told to start anew rather than get what they missed.
    #[arg(long, default_value_t = 0)]
    max_told: u64,
}

#[derive(Serialize)]
struct Report {
    cut: usize,
    back: usize,
    failed_attempts: u64,
    last_failure: Option<String>,
    all_back_after_seconds: f64,
    /// From the cut to each socket's `joined`.
    returns: Latency,
    /// Sockets that came back in each second after the cut.
    back_in_second: Vec<u64>,
    #[serde(flatten)]
    outcome: Outcome,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cut, back, failed_attempts, all_back_after_seconds, returns, outcome, .. } = self;
        writeln!(f, "cut           {cut} sockets, {back} back, the last after {all_back_after_seconds:.2} s")?;
        writeln!(
            f,
            "attempts      {failed_attempts} failed{}",
            self.last_failure.as_ref().map(|why| format!(", the last: {why}")).unwrap_or_default()
        )?;
        writeln!(f, "returns       {returns}")?;
        writeln!(f, "each second   {}", self.back_in_second.iter().map(u64::to_string).collect::<Vec<_>>().join(" "))?;
        write!(f, "{outcome}")
    }
}

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let Options { gateways, redis, crowd, bounds, rate, duration, cut_after, kill, max_return, max_told } = options;
    let (limit, sockets) = (crowd.limit, crowd.sockets);
    // What nobody is back to receive need not be waited for any longer.
    let mut session = Session::open(Load { settle: max_return, ..crowd.load(gateways, redis) })?;
    let dialler = Dialler::start(session.fleet.clone(), session.served.clone());
    let returning = dialler.clone();
    session.served.ask(move |_, watch| {
        watch.dialler = Some(returning);
        Ok(())
    })?;

    let served = session.served.clone();
    let cutter = thread::spawn(move || {
        thread::sleep(cut_after);
        let at = Instant::now();
        match kill {
            Some(pid) => kill_pid(pid)?,
            None => served.ask(|driver, watch| {
                for socket in 0..driver.len() {
                    driver.leave(socket, Farewell::Reset)?;
                    watch.ended(socket);
                }
                Ok(())
            })?,
        }
        anyhow::Ok(at)
    });
    let mut outcome = session.publish("a storm", rate, duration)?;
    let cut_at = cutter.join().expect("the cutter does not panic")?;
    while dialler.missing() > 0 && cut_at.elapsed() < max_return {
        thread::sleep(Duration::from_millis(50));
    }
    let missing = dialler.missing();
    outcome.verdict = session.judge(Vec::new())?;
    let returns = dialler.stop();

    let mut times = Recorder::new();
    let mut back_in_second = Vec::new();
    for at in &returns.back {
        let time = at.saturating_duration_since(cut_at);
        times.record(time.as_micros() as u64);
        let second = time.as_secs() as usize;
        back_in_second.resize(back_in_second.len().max(second + 1), 0);
        back_in_second[second] += 1;
    }
    let last = returns.back.iter().max().map_or(Duration::ZERO, |last| last.saturating_duration_since(cut_at));
    let late = returns.lateness.summary().p99_us;
    outcome.generator_limit = outcome.generator_limit.or(generator_limit(0.0, late, times.summary().p99_us));

    let mut failures = bounds.failures(&outcome, limit);
    if missing > 0 {
        let why = returns.last_failure.as_deref().unwrap_or("no attempt ended");
        failures.push(format!("{missing} sockets were not back {max_return:?} after the cut: {why}"));
    }
    if last > max_return {
        failures.push(format!("the last socket was back after {last:?}, later than {max_return:?}"));
    }
    if outcome.verdict.told > max_told {
        failures.push(format!("{} sockets were told to start anew, more than {max_told}", outcome.verdict.told));
    }
    let curve = back_in_second.iter().scan(0.0, |back, &count| {
        *back += count as f64;
        Some(*back)
    });
    let points = std::iter::once(0.0).chain(curve).enumerate().map(|(second, back)| (second as f64, back)).collect();
    let series = vec![Series { name: "sockets back".to_owned(), points }];
    let title = "Sockets back, over seconds since the cut".to_owned();
    let mut charts = vec![Chart { title, x: Unit::Seconds, y: Unit::Count, series }];
    charts.extend(outcome.charts());
    let report = Report {
        cut: sockets,
        back: returns.back.len(),
        failed_attempts: returns.failed,
        last_failure: returns.last_failure,
        all_back_after_seconds: last.as_secs_f64(),
        returns: times.summary(),
        back_in_second,
        outcome,
    };
    Ok(Findings::new(&report, failures)?.with(charts))
}

fn kill_pid(pid: u32) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("--kill is no process id")?;
    kill_process(pid, Signal::KILL).context("killing the process of --kill")
}
