//! `storm`: all sockets, or all but some, are cut at once and reconnect as browsers do. It measures how long that takes,
//! checks that no socket misses an event, and measures the latency of the sockets that were not cut.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::options::{Bounds, Crowd, Gateways, Pace, Redis, duration};
use crate::client::Resume;
use crate::load::outcome::{Outcome, generator_limit};
use crate::load::{Load, Session};
use crate::measure::latency::{Latency, Recorder};
use crate::report::chart::{Chart, Series, Unit};
use crate::report::findings::Findings;
use crate::sockets::driver::{Farewell, Handler};

/// Cut all sockets at once, or all but some, while events are published; report how they reconnect, check that each gets the
/// events that it missed, and report the latency of the others.
#[derive(Debug, Args)]
#[command(mut_arg("rate", |arg| arg.default_value("1")), mut_arg("duration", |arg| arg.default_value("30s")))]
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
    /// Time from the first event to the cut.
    #[arg(long, default_value = "3s", value_parser = duration)]
    cut_after: Duration,
    /// Cut the sockets by killing this process, a gateway or a balancer, instead of resetting each.
    #[arg(long, value_name = "PID")]
    kill: Option<u32>,
    /// Number of sockets that are not cut; their latency is reported.
    #[arg(long, default_value_t = 0, conflicts_with = "kill")]
    untouched: usize,
    /// Fail when the 99th percentile of their latency, from the cut until all others have reconnected, is above this.
    #[arg(long, value_parser = duration, requires = "untouched")]
    max_untouched_p99: Option<Duration>,
    /// Fail when it takes longer than this until all sockets have reconnected.
    #[arg(long, default_value = "60s", value_parser = duration)]
    max_return: Duration,
    /// How the sockets send their position.
    #[arg(long, value_enum, default_value_t = Resume::Handshake)]
    resume: Resume,
    /// Fail when more sockets than this are told to start anew instead of getting the events that they missed.
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
    /// From the TCP connect to `joined`, without the wait before it.
    connects: Latency,
    /// Sockets that reconnected in each second after the cut.
    back_in_second: Vec<u64>,
    /// Of the sockets that were not cut, from the cut until all others had reconnected.
    untouched: Option<Latency>,
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
        writeln!(f, "dial→joined   {}", self.connects)?;
        writeln!(f, "each second   {}", self.back_in_second.iter().map(u64::to_string).collect::<Vec<_>>().join(" "))?;
        if let Some(untouched) = &self.untouched {
            writeln!(f, "untouched     {untouched}")?;
        }
        write!(f, "{outcome}")
    }
}

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let Options { gateways, redis, crowd, pace, bounds, cut_after, kill, max_return, max_told, .. } = options;
    let Options { untouched, max_untouched_p99, .. } = options;
    let (limit, sockets) = (crowd.limit, crowd.dashboards.sockets);
    anyhow::ensure!(untouched < sockets, "--untouched {untouched} of --sockets {sockets} leaves none to cut");
    // A socket that has not reconnected by then will not receive its events any more.
    let mut load = Load { settle: max_return, ..crowd.load(&gateways, redis) };
    load.fleet.resume = options.resume;
    let mut session = Session::open(load)?;
    let dialler = session.dialler();
    let reconnect = Box::new(dialler.clone());
    session.served.ask(move |_, watch| {
        watch.reconnect = Some(reconnect);
        Ok(())
    })?;

    let (served, storm) = (session.served.clone(), dialler.clone());
    let cutter = thread::spawn(move || {
        thread::sleep(cut_after);
        let at = Instant::now();
        match kill {
            Some(pid) => kill_pid(pid)?,
            None => served.ask(move |driver, watch| {
                watch.set_apart(untouched);
                for socket in untouched..driver.len() {
                    driver.leave(socket, Farewell::Reset)?;
                    watch.ended(socket);
                }
                Ok(())
            })?,
        }
        storm.wait_for_all(at + max_return);
        let latencies = served.ask(|_, watch| Ok(watch.set_apart(0)))?;
        anyhow::Ok((at, (latencies.count() > 0).then(|| latencies.summary())))
    });
    let mut outcome = session.publish("a storm", pace.rate, pace.duration)?;
    let (cut_at, untouched_latency) = cutter.join().expect("the cutter does not panic")?;
    let missing = dialler.wait_for_all(cut_at + max_return);
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
        failures.push(format!("{missing} sockets had not reconnected {max_return:?} after the cut: {why}"));
    }
    if last > max_return {
        failures.push(format!("the last socket reconnected after {last:?}, later than {max_return:?}"));
    }
    if outcome.verdict.told > max_told {
        failures.push(format!("{} sockets were told to start anew, more than {max_told}", outcome.verdict.told));
    }
    if let Some(max) = max_untouched_p99 {
        match untouched_latency.map(|latency| latency.p99()) {
            Some(p99) if p99 <= max => {}
            Some(p99) => failures.push(format!("p99 of the untouched sockets is {p99:?}, above {max:?}")),
            None => failures.push("the untouched sockets received nothing during the storm".to_owned()),
        }
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
        cut: sockets - untouched,
        back: returns.back.len(),
        failed_attempts: returns.failed,
        last_failure: returns.last_failure,
        all_back_after_seconds: last.as_secs_f64(),
        returns: times.summary(),
        connects: returns.connects.summary(),
        back_in_second,
        untouched: untouched_latency,
        outcome,
    };
    Ok(Findings::new(&report, failures)?.with(charts))
}

fn kill_pid(pid: u32) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("--kill is not a process id")?;
    kill_process(pid, Signal::KILL).context("killing the process of --kill")
}
