//! `ramp`: raises the rate step by step until a bound fails. The last step that held is the knee.

use std::fmt;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use super::options::{Bounds, Crowd, Gateways, Redis, duration};
use crate::load::outcome::Outcome;
use crate::load::{Load, Session};
use crate::report::chart::{Chart, Series, Unit};
use crate::report::findings::Findings;

/// Raise the rate step by step until latency, losses or throughput break a bound; report the last step that held.
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
    #[command(flatten)]
    steps: Steps,
    /// Fail when the knee is at fewer deliveries a second than this.
    #[arg(long)]
    min_knee: Option<f64>,
}

/// How steep the ramp is.
#[derive(Debug, Clone, Args)]
pub struct Steps {
    /// Events a second of each tenant in the first step.
    #[arg(long, default_value_t = 1.0)]
    pub start: f64,
    /// The factor from the rate of one step to that of the next.
    #[arg(long, default_value_t = 1.25)]
    pub factor: f64,
    /// The duration of a step.
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub step: Duration,
}

/// The steps of a ramp and its end.
#[derive(Debug, Serialize)]
pub struct Climb {
    pub steps: Vec<Step>,
    /// The last step that held.
    pub knee: Option<Step>,
    /// Why the ramp ended.
    pub ended: String,
    /// Set when the generator was the limit and not the servers: the reason.
    pub generator_limit: Option<String>,
}

impl Climb {
    /// Whether the last step failed: otherwise the ramp ended at the tenants' limit.
    pub fn broke(&self) -> bool {
        self.steps.last().is_some_and(|step| step.broken.is_some())
    }

    /// What was the limit at the end, as far as the use of the cores tells.
    fn limited_by(&self) -> String {
        let Some(Step { server_cores, sockets_cores, .. }) = self.steps.last() else { return "no step ran".to_owned() };
        match &self.generator_limit {
            Some(why) => format!("the generator was the limit: {why}"),
            None if *server_cores > 0.0 && *server_cores < BUSY => format!(
                "neither the servers ({server_cores:.2} cores) nor the generator ({sockets_cores:.2}) were busy: \
                 another process on this machine may have been"
            ),
            None => "the generator had time left".to_owned(),
        }
    }
}

/// One rate and its result.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub events_per_second_of_a_tenant: f64,
    pub offered_per_second: f64,
    pub deliveries_per_second: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub server_cores: f64,
    pub sockets_cores: f64,
    /// The bound that failed.
    pub broken: Option<String>,
}

/// The bound on a step's p99 unless one is given: a fifth of what a dashboard is promised.
const MAX_P99: Duration = Duration::from_millis(100);
/// Publishing before the first step, without bounds: connections are made, caches and allocators fill.
const WARM_UP: Duration = Duration::from_secs(1);
/// Cores from which a server counts as busy.
const BUSY: f64 = 0.7;
/// The part of the offered deliveries that must be made.
const REACHED: f64 = 0.95;
/// Longest time until a step's last delivery: far above any acceptable latency.
pub const SETTLE: Duration = Duration::from_secs(5);

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let Options { gateways, redis, crowd, bounds, steps, min_knee } = options;
    let limit = crowd.limit;
    let load = Load { settle: SETTLE, ..crowd.load(&gateways, redis) };
    let climb = climb(load, limit, &steps, &bounds)?;
    let mut failures = Vec::new();
    let knee = climb.knee.as_ref().map_or(0.0, |knee| knee.deliveries_per_second);
    if climb.knee.is_none() {
        failures.push(format!("the first step failed: {}", climb.ended));
    }
    if let Some(min) = min_knee.filter(|&min| knee < min) {
        failures.push(format!("the knee is at {knee:.0} deliveries a second, below {min:.0}"));
    }
    let charts = charts(&[("", &climb)]);
    Ok(Findings::new(&climb, failures)?.with(charts))
}

/// Raises the rate until a bound fails or the tenants' limit is reached.
pub fn climb(load: Load, limit: u32, steps: &Steps, bounds: &Bounds) -> anyhow::Result<Climb> {
    ensure!(steps.start > 0.0 && steps.factor > 1.0, "--start must be above 0 and --factor above 1");
    let sockets_of_a_tenant = load.sockets as f64 / f64::from(load.fleet.tenants);
    let mut session = Session::open(load)?;
    session.publish("warming up", steps.start, WARM_UP)?;
    let (mut climbed, mut generator_limit) = (Vec::<Step>::new(), None);
    let mut rate = steps.start;
    while rate < f64::from(limit) * steps.factor {
        let asked = rate.min(limit.into());
        let outcome = session.publish(&format!("{asked:.0} events/s a tenant"), asked, steps.step)?;
        let offered = outcome.offered_per_second * sockets_of_a_tenant;
        let step = Step {
            events_per_second_of_a_tenant: asked,
            offered_per_second: offered,
            deliveries_per_second: outcome.deliveries_per_second,
            p50_us: outcome.latency.p50_us,
            p99_us: outcome.latency.p99_us,
            server_cores: outcome.servers.iter().map(|server| server.cores).sum(),
            sockets_cores: outcome.sockets_cores,
            broken: broken(&outcome, offered, bounds),
        };
        let over = step.broken.is_some();
        climbed.push(step);
        if over {
            generator_limit = outcome.generator_limit;
            break;
        }
        rate *= steps.factor;
    }
    let ended = climbed.last().and_then(|step| step.broken.clone());
    let ended = ended.unwrap_or_else(|| format!("the tenants' limit of {limit} events a second is reached"));
    Ok(Climb { knee: knee(&climbed).cloned(), steps: climbed, ended, generator_limit })
}

fn broken(outcome: &Outcome, offered: f64, bounds: &Bounds) -> Option<String> {
    let (p99, max) = (outcome.latency.p99(), bounds.latency.max_p99.unwrap_or(MAX_P99));
    let delivered = outcome.deliveries_per_second;
    if let Some(failure) = outcome.verdict.failures(bounds.max_missed).into_iter().next() {
        return Some(failure);
    }
    if p99 > max {
        return Some(format!("p99 is {p99:?}, above {max:?}"));
    }
    // The schedule ends one interval after the last event, which matters in a short step.
    (delivered < offered * REACHED).then(|| format!("{delivered:.0} of {offered:.0} deliveries a second"))
}

/// The last step before the first that failed.
fn knee(steps: &[Step]) -> Option<&Step> {
    steps.iter().take_while(|step| step.broken.is_none()).last()
}

impl fmt::Display for Climb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "events/s a tenant    offered  deliveries/s        p50        p99   servers  generator")?;
        for step in &self.steps {
            let Step { events_per_second_of_a_tenant, offered_per_second, deliveries_per_second, .. } = step;
            write!(
                f,
                "{events_per_second_of_a_tenant:>17.1} {offered_per_second:>10.0} {deliveries_per_second:>13.0}"
            )?;
            write!(
                f,
                " {:>7} µs {:>7} µs {:>9.2} {:>10.2}",
                step.p50_us, step.p99_us, step.server_cores, step.sockets_cores
            )?;
            writeln!(f, "{}", step.broken.as_ref().map(|why| format!("  {why}")).unwrap_or_default())?;
        }
        match &self.knee {
            Some(Step { deliveries_per_second, p99_us, server_cores, .. }) => write!(
                f,
                "knee          {deliveries_per_second:.0} deliveries a second, p99 {p99_us} µs, servers {server_cores:.2} cores"
            )?,
            None => write!(f, "knee          none")?,
        }
        write!(f, "\nended         {}; {}", self.ended, self.limited_by())
    }
}

/// Latency and cores over deliveries a second, with a line for each climb.
pub fn charts(climbs: &[(&str, &Climb)]) -> Vec<Chart> {
    let line = |of: fn(&Step) -> f64| {
        move |(name, climb): &(&str, &Climb)| {
            let points = climb.steps.iter().map(|step| (step.deliveries_per_second, of(step))).collect();
            Series { name: (*name).to_owned(), points }
        }
    };
    let name =
        |suffix: &'static str| move |series: Series| Series { name: format!("{} {suffix}", series.name), ..series };
    let p50 = climbs.iter().map(line(|step| step.p50_us as f64)).map(name("p50"));
    let p99 = climbs.iter().map(line(|step| step.p99_us as f64)).map(name("p99"));
    let servers = climbs.iter().map(line(|step| step.server_cores)).map(name("servers"));
    let generator = climbs.iter().map(line(|step| step.sockets_cores)).map(name("generator"));
    let chart = |title: &str, y, series| Chart { title: title.to_owned(), x: Unit::PerSecond, y, series };
    vec![
        chart("Latency over deliveries a second", Unit::Micros, p50.chain(p99).collect()),
        chart("Processor cores over deliveries a second", Unit::Cores, servers.chain(generator).collect()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(deliveries_per_second: f64, broken: Option<&str>) -> Step {
        Step {
            events_per_second_of_a_tenant: 1.0,
            offered_per_second: deliveries_per_second,
            deliveries_per_second,
            p50_us: 1,
            p99_us: 2,
            server_cores: 0.5,
            sockets_cores: 0.1,
            broken: broken.map(str::to_owned),
        }
    }

    #[test]
    fn the_knee_is_the_last_step_that_held() {
        let steps = [step(100.0, None), step(125.0, None), step(156.0, Some("p99"))];
        assert_eq!(knee(&steps).map(|step| step.deliveries_per_second), Some(125.0));
        assert!(knee(&steps[2..]).is_none());
        assert!(knee(&[]).is_none());
    }
}
