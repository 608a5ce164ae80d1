//! `limit`: many publishers press on one tenant; its dashboards must get as many events as the limit allows, and no more.

use std::fmt;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::options::{Crowd, Dashboards, Gateways, Redis, duration};
use crate::load::outcome::Outcome;
use crate::load::{Load, Session};
use crate::publishing::probe::wait_as_told;
use crate::report::findings::Findings;

/// Press on one tenant with many publishers; check the limit by Redis' clock, and that it is used up.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    gateways: Gateways,
    #[command(flatten)]
    redis: Redis,
    /// Sockets of the tenant.
    #[arg(long, default_value_t = 5)]
    sockets: usize,
    /// Publishers, each with a connection of its own.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    publishers: u16,
    /// The limit that publishers keep: EVENTS_PER_SECOND.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// How long to publish.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
}

#[derive(Serialize)]
struct Report {
    events_per_second: f64,
    /// The least and the most events that are right for this time.
    allowed: [u64; 2],
    /// The `retry_after` of a publisher that was alone.
    told_to_wait: Duration,
    /// Whether its event was accepted after that wait.
    told_the_truth: bool,
    #[serde(flatten)]
    outcome: Outcome,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events_per_second, allowed: [least, most], told_to_wait, told_the_truth, outcome } = self;
        writeln!(
            f,
            "allowed       {least} to {most} events in this time; {events_per_second:.2} a second were accepted"
        )?;
        let truth = if *told_the_truth { "then accepted" } else { "then throttled again" };
        writeln!(f, "told to wait  {told_to_wait:?} when alone, {truth}")?;
        write!(f, "{outcome}")
    }
}

/// The part of the limit that the publishers must use. It is below 1 because each waits as long as it was told.
const USED: f64 = 0.9;

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let Options { gateways, redis, sockets, publishers, limit, duration } = options;
    let crowd = Crowd { dashboards: Dashboards { sockets, tenants: 1 }, limit, pids: Vec::new() };
    let load = crowd.load(&gateways, redis);
    let target = load.target.clone();
    let outcome = Session::open(Load { publishers: publishers.into(), ..load })?.press("pressing", duration)?;
    let (told_to_wait, told_the_truth) = wait_as_told(&target)?;

    let accepted = outcome.publishing.accepted;
    let full = f64::from(limit) * duration.as_secs_f64();
    let allowed = [(full * USED) as u64, full as u64 + u64::from(limit)];
    let mut failures = outcome.failures(limit, 0);
    if accepted < allowed[0] || accepted > allowed[1] {
        failures.push(format!("{accepted} events were accepted, not {} to {}", allowed[0], allowed[1]));
    }
    if outcome.publishing.throttled == 0 {
        failures.push("no publisher was throttled: use more --publishers".to_owned());
    }
    let longest = Duration::from_micros(outcome.publishing.longest_retry_after_us);
    if longest > Duration::from_secs(1) {
        failures.push(format!("a publisher was told to wait {longest:?}, though every token returns after a second"));
    }
    if !told_the_truth {
        failures.push(format!("a publisher that waited {told_to_wait:?}, as told, was throttled again"));
    }
    let charts = outcome.charts();
    let events_per_second = accepted as f64 / duration.as_secs_f64();
    Ok(Findings::new(&Report { events_per_second, allowed, told_to_wait, told_the_truth, outcome }, failures)?
        .with(charts))
}
