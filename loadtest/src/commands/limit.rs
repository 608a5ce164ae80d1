//! `limit`: many publishers press on one tenant, and its dashboards get what the limit allows: no more, and no less.

use std::fmt;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Crowd, Findings, Gateways, Redis, duration};
use crate::load::{Load, Session};
use crate::outcome::Outcome;
use crate::publishing::wait_that_was_told;

/// Press on one tenant with many publishers; verify the limit by Redis' clock, and that all it allows is used.
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
    /// For how long.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
}

#[derive(Serialize)]
struct Report {
    events_per_second: f64,
    /// The least and the most that the limit makes of the time.
    allowed: [u64; 2],
    /// Alone, and told to wait, a publisher waited so long …
    told_to_wait: Duration,
    /// … and was then let in.
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
        let truth = if *told_the_truth { "then let in" } else { "and refused again" };
        writeln!(f, "told to wait  {told_to_wait:?} when alone, {truth}")?;
        write!(f, "{outcome}")
    }
}

/// The part of what is allowed that pressing publishers must get: each asks again only when it was told to.
const USED: f64 = 0.9;

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let Options { gateways, redis, sockets, publishers, limit, duration } = options;
    let load = Crowd { sockets, tenants: 1, limit, pids: Vec::new() }.load(gateways, redis);
    let target = load.target.clone();
    let outcome = Session::open(Load { publishers: publishers.into(), ..load })?.press("pressing", duration)?;
    let (told_to_wait, told_the_truth) = wait_that_was_told(&target)?;

    let accepted = outcome.publishing.accepted;
    let full = f64::from(limit) * duration.as_secs_f64();
    let allowed = [(full * USED) as u64, full as u64 + u64::from(limit)];
    let mut failures = outcome.failures(limit, 0);
    if accepted < allowed[0] || accepted > allowed[1] {
        failures.push(format!("{accepted} events were accepted, not {} to {}", allowed[0], allowed[1]));
    }
    if outcome.publishing.throttled == 0 {
        failures.push("nobody was throttled: more publishers must press".to_owned());
    }
    let longest = Duration::from_micros(outcome.publishing.longest_retry_after_us);
    if longest > Duration::from_secs(1) {
        failures.push(format!("a publisher was told to wait {longest:?}, though each token is back after a second"));
    }
    if !told_the_truth {
        failures.push(format!("a publisher that waited {told_to_wait:?}, as it was told, was refused again"));
    }
    let charts = outcome.charts();
    let events_per_second = accepted as f64 / duration.as_secs_f64();
    Ok(Findings::new(&Report { events_per_second, allowed, told_to_wait, told_the_truth, outcome }, failures)?
        .with(charts))
}
