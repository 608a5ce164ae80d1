//! `knee`: the ratio of the gateway's knee to that of a bare write loop that joins waiting events.

use std::fmt;

use clap::Args;
use serde::Serialize;

use super::bench::Bench;
use super::options::{Bounds, Compared};
use super::ramp::{self, Climb, SETTLE, Steps, climb};
use crate::load::Load;
use crate::report::findings::Findings;
use crate::servers::server::Kind;

/// Ramp a bare write loop that joins waiting events, then the gateway with its limit lifted, each on one core.
#[derive(Debug, Args)]
#[command(mut_arg("sockets", |arg| arg.default_value("3000")), mut_arg("tenants", |arg| arg.default_value("4")))]
pub struct Options {
    #[command(flatten)]
    compared: Compared,
    #[command(flatten)]
    steps: Steps,
    #[command(flatten)]
    bounds: Bounds,
    /// Fail when the ratio of the knees, gateway to bare loop, is below this.
    #[arg(long)]
    min_ratio: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    joining: Climb,
    gateway: Climb,
    /// The ratio of the deliveries a second at the knees, gateway to bare loop.
    ratio: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { joining, gateway, ratio } = self;
        write!(f, "the bare loop that joins\n{joining}\n\nthe gateway\n{gateway}\n\nratio         {ratio:.2}")
    }
}

/// The highest EVENTS_PER_SECOND.
const LIMIT: u32 = 1000;

pub fn run(options: Options) -> anyhow::Result<Findings> {
    options.compared.gateway_bin()?;
    Bench::reserve_core()?;
    let [joining, gateway] = [climb_of(Kind::Joining, &options)?, climb_of(Kind::Gateway, &options)?];
    let at = |climb: &Climb| climb.knee.as_ref().map_or(0.0, |knee| knee.deliveries_per_second);
    let ratio = if joining.knee.is_some() { at(&gateway) / at(&joining) } else { 0.0 };
    let mut failures = Vec::new();
    for (kind, climb) in [(Kind::Joining, &joining), (Kind::Gateway, &gateway)] {
        if climb.knee.is_none() {
            failures.push(format!("{kind}: the first step failed: {}", climb.ended));
        }
    }
    if !joining.broke() {
        failures.push("the bare loop did not reach its limit: use more --sockets".to_owned());
    }
    if let Some(min) = options.min_ratio.filter(|&min| ratio < min) {
        failures.push(format!("the gateway's knee is at {ratio:.2} of the bare loop's, below {min}"));
    }
    let charts = ramp::charts(&[("bare loop", &joining), ("gateway", &gateway)]);
    Ok(Findings::new(&Report { joining, gateway, ratio }, failures)?.with(charts))
}

fn climb_of(kind: Kind, options: &Options) -> anyhow::Result<Climb> {
    eprintln!("{kind}");
    let bench = Bench::start(kind, &options.compared, LIMIT)?;
    climb(Load { settle: SETTLE, ..bench.load() }, LIMIT, &options.steps, &options.bounds)
}
