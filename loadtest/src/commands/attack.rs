//! `attack`: what strangers, users and readers that take all they can cost the dashboards beside them.

use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Bounds, Crowd, Findings, Gateways, Redis, duration};
use crate::attackers::{self, Attack, Ground, Kind, Tally};
use crate::dialler::{Dialler, Returns};
use crate::driver::{Audience, Driver, Farewell};
use crate::latency::Latency;
use crate::load::Session;
use crate::outcome::Outcome;
use crate::process;
use crate::publishing::fill;
use crate::sockets::Sockets;
use crate::token::Mint;

/// Attack the gateways beside well-behaved dashboards, some of which come and go; report what those notice. Only against gateways of your own.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    gateways: Gateways,
    #[command(flatten)]
    redis: Redis,
    #[command(flatten)]
    bounds: Bounds,
    /// What the attackers do, separated by commas; all of it unless given.
    #[arg(long, value_enum, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// The part of each attacker's size: 0.1 opens 100 strangers' sockets and not 1000.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Well-behaved dashboards, dealt over tenants and gateways.
    #[arg(long, default_value_t = 100)]
    sockets: usize,
    /// Their tenants.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    tenants: u32,
    /// The limit that publishers keep for each tenant: EVENTS_PER_SECOND.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Events a second of each of these tenants; kept 1 % under the limit.
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// How long to publish without the attackers, and then again beside them.
    #[arg(long, default_value = "20s", value_parser = duration)]
    duration: Duration,
    /// How often one of the dashboards is cut off and comes back.
    #[arg(long, default_value = "100ms", value_parser = duration)]
    cut_every: Duration,
    /// Fail when the 99th percentile of their reconnects, from the first attempt to `joined`, is above this beside the attackers.
    #[arg(long, value_parser = duration)]
    max_reconnect_p99: Option<Duration>,
    /// A gateway process of this machine, to measure CPU and memory of; several times for several.
    #[arg(long = "pid")]
    pids: Vec<u32>,
}

/// How long attackers take to be there before the dashboards are measured.
const BUILD_UP: Duration = Duration::from_secs(3);
/// How long the last dashboards may take to be back.
const RETURN: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Report {
    attackers: Vec<Tally>,
    /// What the dashboards notice without the attackers.
    alone: Figures,
    /// The same beside them.
    attacked: Figures,
    /// Beside them.
    #[serde(flatten)]
    outcome: Outcome,
}

/// What well-behaved dashboards notice.
#[derive(Serialize)]
struct Figures {
    /// Of the events, at the half of the dashboards that is never cut off.
    latency: Latency,
    reconnected: u64,
    /// Dashboards that were not back in time.
    missing: usize,
    /// From the first attempt to `joined`.
    reconnects: Latency,
    failed_attempts: u64,
    last_failure: Option<String>,
}

impl Figures {
    fn new(outcome: &Outcome, returns: Returns, missing: usize) -> Self {
        Self {
            latency: outcome.latency,
            reconnected: returns.reconnects.count(),
            missing,
            reconnects: returns.reconnects.summary(),
            failed_attempts: returns.failed,
            last_failure: returns.last_failure,
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
    let Options { gateways, redis, bounds, sockets, tenants, limit, rate, duration, cut_every, pids, .. } = options;
    ensure!(options.scale > 0.0 && !cut_every.is_zero(), "--scale and --cut-every must be above 0");
    let kinds = if options.kinds.is_empty() { Kind::value_variants().to_vec() } else { options.kinds };
    let files = process::raise_file_limit()?;
    let needed = sockets + kinds.iter().map(|kind| kind.files(options.scale)).sum::<usize>() + 200;
    ensure!(needed <= files, "these attackers need {needed} files, and this process may open {files}: lower --scale");

    let ground =
        Ground { gateways: gateways.urls.clone(), mint: Mint::new(&gateways.jwt_secret), scale: options.scale };
    let load = Crowd { sockets, tenants, limit, pids }.load(gateways, redis);
    if kinds.contains(&Kind::SlowReaders) {
        fill(&load.target, attackers::TENANT, attackers::REPLAYED + 1)?;
    }
    let mut session = Session::open(load)?;
    let (_, alone) = stage(&mut session, "without attackers", rate, duration, cut_every)?;

    let attack = Attack::start(ground, &kinds);
    thread::sleep(BUILD_UP);
    let (outcome, attacked) = stage(&mut session, "beside attackers", rate, duration, cut_every)?;
    let attackers = attack.stop();

    let mut failures = bounds.failures(&outcome, limit);
    let p99 = attacked.reconnects.p99();
    if let Some(max) = options.max_reconnect_p99.filter(|&max| p99 > max) {
        failures.push(format!("p99 of the reconnects is {p99:?}, above {max:?}"));
    }
    if attacked.missing > 0 {
        failures.push(format!("{} dashboards were not back {RETURN:?} after the last event", attacked.missing));
    }
    let charts = outcome.charts();
    Ok(Findings::new(&Report { attackers, alone, attacked, outcome }, failures)?.with(charts))
}

/// Publishes for so long while half of the dashboards are cut off, one after the other, and come back.
fn stage(
    session: &mut Session,
    what: &str,
    rate: f64,
    duration: Duration,
    cut_every: Duration,
) -> anyhow::Result<(Outcome, Figures)> {
    let dialler = Dialler::start(session.fleet.clone(), session.served.clone());
    let returning = dialler.clone();
    session.served.ask(move |driver, watch| {
        watch.dialler = Some(returning);
        watch.set_apart(staying(driver));
        Ok(())
    })?;
    let (stop, end) = mpsc::channel();
    let served = session.served.clone();
    let cutter = thread::spawn(move || cut(&served, cut_every, &end));
    let outcome = session.publish(what, rate, duration);
    drop(stop);
    cutter.join().expect("the cutter does not panic");
    let mut outcome = outcome?;
    // What those who were away get late is no delay of the gateways'.
    outcome.latency = session.served.ask(|_, watch| Ok(watch.set_apart(0)))?.summary();
    let deadline = Instant::now() + RETURN;
    while dialler.missing() > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    outcome.verdict = session.judge(Vec::new())?;
    let missing = dialler.missing();
    let figures = Figures::new(&outcome, dialler.stop(), missing);
    Ok((outcome, figures))
}

/// The first half of the dashboards is never cut off.
fn staying(driver: &Driver) -> usize {
    driver.len() / 2
}

/// Cuts one dashboard off at a time, in turn, until `end`.
fn cut(served: &Sockets, every: Duration, end: &Receiver<()>) {
    let mut next = 0;
    while end.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        served.order(move |driver, watch| {
            let stay = staying(driver);
            let socket = stay + next % (driver.len() - stay);
            if driver.leave(socket, Farewell::Reset)? {
                watch.ended(socket);
            }
            Ok(())
        });
        next += 1;
    }
}
