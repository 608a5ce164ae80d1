//! Publishes a schedule through several publishers. Each event is sent when it is due: a slow answer delays no other
//! event.

pub mod door;
pub mod probe;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use publisher::{DashboardEvent, EventData, Money, PaymentReceived, TenantId};
use serde::Serialize;
use tokio::runtime::{self, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use self::door::{Door, Sent, Target};
use crate::measure::latency::Recorder;
use crate::schedule::{Clock, Schedule, Stamp, tenant_name};

/// Plays several billing processes: each lane has a connection, a runtime and a thread of its own.
pub struct Billing {
    lanes: Vec<(Runtime, Door)>,
    tenants: Arc<[TenantId]>,
}

/// The result of publishing a schedule.
#[derive(Debug, Default, Serialize)]
pub struct Publishing {
    /// Events that Redis, the API or the outbox accepted.
    pub accepted: u64,
    /// Answers `Throttled`; the event was sent again after the wait that the answer named.
    pub throttled: u64,
    /// Attempts without an outcome (Redis unreachable, reply lost); the same event was sent again.
    pub retried: u64,
    /// Events given up after [`Billing::RETRY_LIMIT`]: it is unknown whether they were published.
    pub given_up: u64,
    /// How late events were sent, at the 99th percentile: the generator's own delay.
    pub late_p99_us: u64,
    /// The longest `retry_after` of a `Throttled`.
    pub longest_retry_after_us: u64,
    #[serde(skip)]
    pub stamps: Vec<Stamp>,
}

#[derive(Default)]
struct Tally {
    throttled: AtomicU64,
    retried: AtomicU64,
    longest_retry_after_us: AtomicU64,
}

impl Billing {
    /// How long an event is retried.
    const RETRY_LIMIT: Duration = Duration::from_secs(30);
    /// Wait after an attempt without an outcome.
    const PAUSE: Duration = Duration::from_millis(20);

    /// Connects `lanes` publishers.
    pub fn connect(target: &Target, lanes: usize, tenants: u32) -> anyhow::Result<Self> {
        let tenants = (0..tenants).map(|tenant| Ok(tenant_name(tenant).parse()?)).collect::<anyhow::Result<_>>()?;
        let lane = |_| {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let door = runtime.block_on(Door::open(target))?;
            anyhow::Ok((runtime, door))
        };
        let lanes = (0..lanes).map(lane).collect::<anyhow::Result<_>>()?;
        Ok(Self { lanes, tenants })
    }

    /// Publishes every event when it is due, each tenant's events over all lanes in turn, and waits for the last answer.
    pub fn publish(self, schedule: &Schedule, clock: Clock, start_micros: u64) -> Publishing {
        let tally = Arc::new(Tally::default());
        let mut lanes: Vec<UnboundedSender<Stamp>> = Vec::new();
        let running: Vec<_> = (self.lanes.into_iter())
            .map(|(runtime, door)| {
                let (lane, planned) = unbounded_channel();
                lanes.push(lane);
                let (tenants, tally) = (self.tenants.clone(), tally.clone());
                thread::spawn(move || runtime.block_on(run_lane(door, tenants, planned, clock, tally)))
            })
            .collect();

        // The pace is kept here and not by the runtimes: their timers have a resolution of one millisecond.
        for stamp in schedule.events(start_micros) {
            thread::sleep(clock.instant(stamp.due_micros).saturating_duration_since(Instant::now()));
            let lane = (stamp.tenant as usize + stamp.number as usize) % lanes.len();
            lanes[lane].send(stamp).expect("a lane runs until its sender is dropped");
        }
        drop(lanes);

        let results = running.into_iter().map(|lane| lane.join().expect("a lane does not panic"));
        Publishing::sum(results, &tally)
    }

    /// Every lane publishes to the first tenant as fast as the limit allows, each event after the answer to the last
    /// one, as bulk runs of billing do.
    pub fn press(self, clock: Clock, duration: Duration) -> Publishing {
        let tally = Arc::new(Tally::default());
        let next = Arc::new(AtomicU32::new(0));
        let end = Instant::now() + duration;
        let running: Vec<_> = (self.lanes.into_iter())
            .map(|(runtime, door)| {
                let (tenant, tally, next) = (self.tenants[0].clone(), tally.clone(), next.clone());
                let press = async move {
                    let mut lane = Lane::new();
                    while Instant::now() < end {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let stamp = Stamp { tenant: 0, number, due_micros: clock.micros() };
                        let sent = send(&door, &tenant, stamp, end, &tally).await;
                        // An event that is still throttled at the end is not published, and not expected.
                        lane.accepted.extend(sent.then_some(stamp));
                    }
                    lane
                };
                thread::spawn(move || runtime.block_on(press))
            })
            .collect();
        let results = running.into_iter().map(|lane| lane.join().expect("a lane does not panic"));
        Publishing::sum(results, &tally)
    }
}

/// The result of one lane.
struct Lane {
    accepted: Vec<Stamp>,
    given_up: u64,
    lateness: Recorder,
}

impl Lane {
    fn new() -> Self {
        Self { accepted: Vec::new(), given_up: 0, lateness: Recorder::new() }
    }

    fn count(&mut self, sent: Option<Stamp>) {
        match sent {
            Some(stamp) => self.accepted.push(stamp),
            None => self.given_up += 1,
        }
    }
}

impl Publishing {
    fn sum(lanes: impl Iterator<Item = Lane>, tally: &Tally) -> Self {
        let mut all = Lane::new();
        for mut lane in lanes {
            all.accepted.append(&mut lane.accepted);
            all.given_up += lane.given_up;
            all.lateness.absorb(&mut lane.lateness);
        }
        Self {
            accepted: all.accepted.len() as u64,
            throttled: tally.throttled.load(Ordering::Relaxed),
            retried: tally.retried.load(Ordering::Relaxed),
            given_up: all.given_up,
            late_p99_us: all.lateness.summary().p99_us,
            longest_retry_after_us: tally.longest_retry_after_us.load(Ordering::Relaxed),
            stamps: all.accepted,
        }
    }
}

/// Publishes the events that are due, as they come from the channel.
async fn run_lane(
    door: Door,
    tenants: Arc<[TenantId]>,
    mut planned: UnboundedReceiver<Stamp>,
    clock: Clock,
    tally: Arc<Tally>,
) -> Lane {
    let mut lane = Lane::new();
    let mut sending = JoinSet::new();
    loop {
        tokio::select! {
            stamp = planned.recv() => match stamp {
                Some(stamp) => {
                    lane.lateness.record(clock.micros().saturating_sub(stamp.due_micros));
                    let (door, tally) = (door.clone(), tally.clone());
                    let tenant = tenants[stamp.tenant as usize].clone();
                    let deadline = Instant::now() + Billing::RETRY_LIMIT;
                    sending.spawn(async move { send(&door, &tenant, stamp, deadline, &tally).await.then_some(stamp) });
                }
                None => break,
            },
            Some(sent) = sending.join_next() => lane.count(sent.expect("a send does not panic")),
        }
    }
    while let Some(sent) = sending.join_next().await {
        lane.count(sent.expect("a send does not panic"));
    }
    lane
}

/// Sends one event until it is accepted; `false` when the deadline is over first.
async fn send(door: &Door, tenant: &TenantId, stamp: Stamp, deadline: Instant, tally: &Tally) -> bool {
    let event = event(stamp);
    while Instant::now() < deadline {
        let pause = match door.send(tenant, &event).await {
            Sent::Accepted => return true,
            Sent::Throttled { retry_after } => {
                tally.throttled.fetch_add(1, Ordering::Relaxed);
                tally.longest_retry_after_us.fetch_max(retry_after.as_micros() as u64, Ordering::Relaxed);
                retry_after
            }
            Sent::Unknown => {
                tally.retried.fetch_add(1, Ordering::Relaxed);
                Billing::PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
    false
}

/// A payment of the usual size, with the stamp as its id.
fn event(stamp: Stamp) -> DashboardEvent {
    let payment = PaymentReceived {
        payment_id: format!("payment-{}-{}", stamp.tenant, stamp.number),
        amount: Money::from_cents(150_000 + i64::from(stamp.number)).expect("a modest amount"),
        parent_name: "Nomvula Dlamini".to_owned(),
        child_name: "Thandi Dlamini".to_owned(),
        invoice_number: format!("INV-2026-{:06}", stamp.number),
    };
    let mut event = DashboardEvent::new(EventData::PaymentReceived(payment));
    event.id = stamp.event_id().parse().expect("a stamp is a valid id");
    event
}
