//! Publishing outside of a run's schedule: to test `retry_after`, and to fill a log.

use std::time::{Duration, Instant};

use tokio::runtime;

use super::door::{Door, Sent, Target};
use super::{Billing, Tally, event, send};
use crate::schedule::{Clock, Stamp, tenant_name};

/// Publishes to the first tenant until it is throttled. Returns `retry_after`, and whether the event is accepted after
/// that wait. No other publisher may be active. The events are not part of a run.
pub fn wait_as_told(target: &Target) -> anyhow::Result<(Duration, bool)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (door, tenant) = (Door::open(target).await?, tenant_name(0).parse()?);
        let attempt = async |number| door.send(&tenant, &event(Stamp { tenant: 0, number, due_micros: 0 })).await;
        let mut number = 0;
        // The limit's number of events is accepted, and a few more on a slow machine.
        while number < 10 * target.limit {
            if let Sent::Throttled { retry_after } = attempt(number).await {
                tokio::time::sleep(retry_after).await;
                return Ok((retry_after, matches!(attempt(number).await, Sent::Accepted)));
            }
            number += 1;
        }
        anyhow::bail!("{number} events in a row were accepted: is --limit the gateways' EVENTS_PER_SECOND?")
    })
}

/// Publishes this many events to one tenant, at the highest limit. They are not part of a run.
pub fn fill(target: &Target, tenant: &str, events: u32) -> anyhow::Result<()> {
    const LIMIT: u32 = 1000;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (tenant, due_micros) = (tenant.parse()?, Clock::new().micros());
    let (end, tally) = (Instant::now() + Billing::RETRY_LIMIT, Tally::default());
    runtime.block_on(async {
        let door = Door::open(&Target { limit: LIMIT, ..target.clone() }).await?;
        for number in 0..events {
            let stamp = Stamp { tenant: u32::MAX, number, due_micros };
            anyhow::ensure!(send(&door, &tenant, stamp, end, &tally).await, "{tenant}'s events could not be published");
        }
        Ok(())
    })
}
