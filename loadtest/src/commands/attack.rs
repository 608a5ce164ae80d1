//! `attack`: measures what attackers cost the dashboards beside them.

use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::options::{Bounds, Crowd, Gateways, Pace, Redis, duration, positive};
use crate::client::attackers::{self, Attack, Kind, Tally, Target};
use crate::load::Session;
use crate::load::outcome::Outcome;
use crate::machine::process;
use crate::measure::latency::Latency;
use crate::publishing::probe::fill;
use crate::report::findings::Findings;
use crate::sockets::Sockets;
use crate::sockets::dialler::Reconnects;
use crate::sockets::driver::{Driver, Farewell, Handler};

/// Attack the gateways beside well-behaved dashboards, some of which reconnect again and again; report what the dashboards
/// notice. Run it only against gateways of your own.
#[derive(Debug, Args)]
#[command(mut_arg("sockets", |arg| arg.default_value("100")), mut_arg("tenants", |arg| arg.default_value("10")))]
#[command(mut_arg("duration", |arg| arg.default_value("20s")
    .help("How long to publish without the attackers, and then again beside them")))]
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
    /// The kinds of attackers, separated by commas; all kinds unless given.
    #[arg(long, value_enum, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// The factor on each attacker's size: with 0.1, strangers open 100 sockets instead of 1000.
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    scale: f64,
    /// Interval at which one of the dashboards is cut off; it reconnects.
    #[arg(long, default_value = "100ms", value_parser = duration)]
    cut_every: Duration,
    /// Fail when the 99th percentile of the dashboards' reconnects beside the attackers, from the first attempt to `joined`, is above this.
    #[arg(long, value_parser = duration)]
    max_reconnect_p99: Option<Duration>,
}

/// How long the attackers run before the dashboards are measured.
const BUILD_UP: Duration = Duration::from_secs(3);
/// Longest time until the last dashboard has reconnected.
const RECONNECT_LIMIT: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Report {
    attackers: Vec<Tally>,
    /// The dashboards without the attackers.
    alone: Figures,
    /// The dashboards beside the attackers.
    attacked: Figures,
    /// Of the run beside the attackers.
    #[serde(flatten)]
    outcome: Outcome,
}

/// What well-behaved dashboards notice.
#[derive(Serialize)]
struct Figures {
    /// Of the events, on the half of the dashboards that is never cut off.
    latency: Latency,
    reconnected: u64,
    /// Dashboards that had not reconnected in time.
    missing: usize,
    /// From the first attempt to `joined`.
    reconnects: Latency,
    failed_attempts: u64,
    last_failure: Option<String>,
}

impl Figures {
    fn new(outcome: &Outcome, result: Reconnects, missing: usize) -> Self {
        Self {
            latency: outcome.latency,
            reconnected: result.reconnects.count(),
            missing,
            reconnects: result.reconnects.summary(),
            failed_attempts: result.failed,
            last_failure: result.last_failure,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { latency, reconnected, missing, reconnects, failed_attempts, last_failure } = self;
        writeln!(f, "latency      {latency}")?;
        write!(f, "   {reconnected} reconnects, {missing} missing, {failed_attempts} attempts failed")?;
        if let Some(why) = last_failure {
            write!(f, ", the last: {why}")?;
        }
        write!(f, "\n   reconnects   {reconnects}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Tally { kind, opened, refused, closed, held } in &self.attackers {
            writeln!(f, "{kind:<18}{opened} opened, {refused} refused, {closed} closed, {held} open at the end")?;
        }
        writeln!(f, "without\n   {}", self.alone)?;
        writeln!(f, "beside them\n   {}", self.attacked)?;
        write!(f, "{}", self.outcome)
    }
}

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let Options { gateways, redis, crowd, pace, bounds, scale, cut_every, .. } = options;
    ensure!(!cut_every.is_zero(), "--cut-every must be above 0");
    let kinds = if options.kinds.is_empty() { Kind::value_variants().to_vec() } else { options.kinds };
    let files = process::raise_file_limit()?;
    let needed = crowd.dashboards.sockets + kinds.iter().map(|kind| kind.files(scale)).sum::<usize>() + 200;
    ensure!(needed <= files, "these attackers need {needed} files, and this process may open {files}: lower --scale");

    let limit = crowd.limit;
    let target = Target { mint: gateways.mint(), scale, gateways: gateways.urls.clone() };
    let load = crowd.load(&gateways, redis);
    if kinds.contains(&Kind::SlowReaders) {
        fill(&load.target, attackers::TENANT, attackers::REPLAYED + 1)?;
    }
    let mut session = Session::open(load)?;
    let (_, alone) = stage(&mut session, "without attackers", &pace, cut_every)?;

    let attack = Attack::start(target, &kinds);
    thread::sleep(BUILD_UP);
    let (outcome, attacked) = stage(&mut session, "beside attackers", &pace, cut_every)?;
    let attackers = attack.stop();

    let mut failures = bounds.failures(&outcome, limit);
    let p99 = attacked.reconnects.p99();
    if let Some(max) = options.max_reconnect_p99.filter(|&max| p99 > max) {
        failures.push(format!("p99 of the reconnects is {p99:?}, above {max:?}"));
    }
    if attacked.missing > 0 {
        let missing = attacked.missing;
        failures.push(format!("{missing} dashboards had not reconnected {RECONNECT_LIMIT:?} after the last event"));
    }
    let charts = outcome.charts();
    Ok(Findings::new(&Report { attackers, alone, attacked, outcome }, failures)?.with(charts))
}

/// Publishes while half of the dashboards are cut off, one after the other, and reconnect.
fn stage(session: &mut Session, what: &str, pace: &Pace, cut_every: Duration) -> anyhow::Result<(Outcome, Figures)> {
    let dialler = session.dialler();
    let reconnect = Box::new(dialler.clone());
    session.served.ask(move |driver, watch| {
        watch.reconnect = Some(reconnect);
        watch.set_apart(never_cut(driver));
        Ok(())
    })?;
    let (stop, end) = mpsc::channel();
    let served = session.served.clone();
    let cutter = thread::spawn(move || cut(&served, cut_every, &end));
    let outcome = session.publish(what, pace.rate, pace.duration);
    drop(stop);
    cutter.join().expect("the cutter does not panic");
    let mut outcome = outcome?;
    // Events that a dashboard gets late because it was cut off are not the gateways' delay.
    outcome.latency = session.served.ask(|_, watch| Ok(watch.set_apart(0)))?.summary();
    let missing = dialler.wait_for_all(Instant::now() + RECONNECT_LIMIT);
    outcome.verdict = session.judge(Vec::new())?;
    let figures = Figures::new(&outcome, dialler.stop(), missing);
    Ok((outcome, figures))
}

/// The number of dashboards that are never cut off: the first half.
fn never_cut(driver: &Driver) -> usize {
    driver.len() / 2
}

/// Cuts one dashboard off at a time, in turn, until `end`.
fn cut(served: &Sockets, interval: Duration, end: &Receiver<()>) {
    let mut next = 0;
    while end.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        served.queue(move |driver, watch| {
            let first = never_cut(driver);
            let socket = first + next % (driver.len() - first);
            if driver.leave(socket, Farewell::Reset)? {
                watch.ended(socket);
            }
            Ok(())
        });
        next += 1;
    }
}
