//! `knee`: how far the gateway's ramp goes, as a ratio to that of a bare write loop that joins waiting events.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::ramp::{self, Climb, SETTLE, Steps, climb};
use super::{Bounds, Findings};
use crate::bench::Bench;
use crate::load::Load;
use crate::server::Kind;

/// Ramp a bare write loop that joins waiting events, then the gateway with its limit lifted, each on one core.
#[derive(Debug, Args)]
pub struct Options {
    /// A release build of the gateway.
    #[arg(long, default_value = "target/release/gateway")]
    gateway_bin: PathBuf,
    /// Sockets, dealt over the tenants.
    #[arg(long, default_value_t = 3000)]
    sockets: usize,
    /// Tenants, each of which may have 1000 events a second.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    tenants: u32,
    #[command(flatten)]
    steps: Steps,
    #[command(flatten)]
    bounds: Bounds,
    /// Fail when the gateway's knee is below this part of the bare loop's.
    #[arg(long)]
    min_ratio: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    joining: Climb,
    gateway: Climb,
    /// The gateway's deliveries a second at its knee over the bare loop's.
    ratio: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { joining, gateway, ratio } = self;
        write!(f, "the bare loop that joins\n{joining}\n\nthe gateway\n{gateway}\n\nratio         {ratio:.2}")
    }
}

/// The highest that a gateway can be set to.
const LIMIT: u32 = 1000;

pub fn run(options: Options) -> anyhow::Result<Findings> {
    Bench::reserve_core(&options.gateway_bin)?;
    let [joining, gateway] = [climb_of(Kind::Joining, &options)?, climb_of(Kind::Gateway, &options)?];
    let at = |climb: &Climb| climb.knee.as_ref().map_or(0.0, |knee| knee.deliveries_per_second);
    let ratio = if joining.knee.is_some() { at(&gateway) / at(&joining) } else { 0.0 };
    let mut failures = Vec::new();
    for (kind, climb) in [(Kind::Joining, &joining), (Kind::Gateway, &gateway)] {
        if climb.knee.is_none() {
            failures.push(format!("{kind}: not even the first step held: {}", climb.ended));
        }
    }
    if !joining.broke() {
        failures.push("the bare loop was never at its limit: give it more --sockets".to_owned());
    }
    if let Some(min) = options.min_ratio.filter(|&min| ratio < min) {
        failures.push(format!("the gateway's knee is at {ratio:.2} of the bare loop's, below {min}"));
    }
    let charts = ramp::charts(&[("bare loop", &joining), ("gateway", &gateway)]);
    Ok(Findings::new(&Report { joining, gateway, ratio }, failures)?.with(charts))
}

fn climb_of(kind: Kind, options: &Options) -> anyhow::Result<Climb> {
    eprintln!("{kind}");
    let bench = Bench::start(kind, &options.gateway_bin, options.sockets, options.tenants, LIMIT)?;
    climb(Load { settle: SETTLE, ..bench.load() }, LIMIT, &options.steps, &options.bounds)
}
