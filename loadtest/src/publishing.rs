//! Publishes a schedule through several publishers, open loop: a slow answer delays no other event.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use publisher::{DashboardEvent, EventData, Money, PaymentReceived, TenantId};
use serde::Serialize;
use tokio::runtime::{self, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::door::{Door, Sent};
use crate::latency::Recorder;
use crate::schedule::{Clock, Schedule, Stamp, tenant_name};

/// How events get to the gateways.
#[derive(Debug, Clone)]
pub enum Via {
    /// Published directly.
    Redis,
    /// Through the gateways' internal ports, host:port, with their PUBLISH_API_KEY.
    Http { internal: Vec<String>, key: String },
    /// Through the outbox in this database, and the gateways' relay.
    Outbox { database_url: String },
}

/// Where publishers publish to.
#[derive(Debug, Clone)]
pub struct Target {
    pub via: Via,
    pub redis_url: String,
    pub redis_prefix: String,
    /// Events a second that are allowed a tenant.
    pub limit: u32,
}

/// Several billing processes in one: each lane has a connection, a runtime and a thread of its own.
pub struct Billing {
    lanes: Vec<(Runtime, Door)>,
    tenants: Arc<[TenantId]>,
}

/// What became of the schedule.
#[derive(Debug, Default, Serialize)]
pub struct Publishing {
    /// Events that Redis, the API or the outbox took.
    pub accepted: u64,
    /// Answers `Throttled`; the event was sent again when its token had come back.
    pub throttled: u64,
    /// Answers that were no outcome (Redis away, reply lost); the same event was sent again.
    pub retried: u64,
    /// Events given up after [`Billing::PERSISTENCE`]: nobody knows whether they were published.
    pub given_up: u64,
    /// How long after its moment an event began to be sent, at the 99th percentile: the generator's own delay.
    pub late_p99_us: u64,
    /// The longest that a publisher was told to wait for a token.
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
    const PERSISTENCE: Duration = Duration::from_secs(30);
    /// Between two attempts at a Redis that does not answer.
    const PAUSE: Duration = Duration::from_millis(20);

    /// Prepares `lanes` publishers. Their connections come up in the background, before the first event is due.
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

    /// Publishes every event at its moment, a tenant's events dealt over all lanes, and waits for the last answer.
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

        // The pace is kept here and not by the runtimes, whose timers count in milliseconds.
        for stamp in schedule.events(start_micros) {
            thread::sleep(clock.instant(stamp.intended_micros).saturating_duration_since(Instant::now()));
            let lane = (stamp.tenant as usize + stamp.number as usize) % lanes.len();
            lanes[lane].send(stamp).expect("a lane runs until its sender is dropped");
        }
        drop(lanes);

        let results = running.into_iter().map(|lane| lane.join().expect("a lane does not panic"));
        Publishing::sum(results, &tally)
    }

    /// Every lane publishes to the first tenant as fast as it is let, for a while: a closed loop, which is what bulk
    /// runs of billing are.
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
                        let stamp = Stamp { tenant: 0, number, intended_micros: clock.micros() };
                        let sent = send(&door, &tenant, stamp, end, &tally).await;
                        // What is still refused at the end was told so, and nobody waits for it.
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

/// What one lane did.
struct Lane {
    accepted: Vec<Stamp>,
    given_up: u64,
    lateness: Recorder,
}

impl Lane {
    fn new() -> Self {
        Self { accepted: Vec::new(), given_up: 0, lateness: Recorder::new() }
    }

    fn book(&mut self, sent: Option<Stamp>) {
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

/// Publishes what comes.
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
                    lane.lateness.record(clock.micros().saturating_sub(stamp.intended_micros));
                    let (door, tally) = (door.clone(), tally.clone());
                    let tenant = tenants[stamp.tenant as usize].clone();
                    let deadline = Instant::now() + Billing::PERSISTENCE;
                    sending.spawn(async move { send(&door, &tenant, stamp, deadline, &tally).await.then_some(stamp) });
                }
                None => break,
            },
            Some(sent) = sending.join_next() => lane.book(sent.expect("a send does not panic")),
        }
    }
    while let Some(sent) = sending.join_next().await {
        lane.book(sent.expect("a send does not panic"));
    }
    lane
}

/// Sends one event, the same event, until it is accepted; `false` when time is over.
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

/// How long a lone publisher of the first tenant is told to wait, and whether it is let in after that. What it
/// publishes is no part of a run.
pub fn wait_that_was_told(target: &Target) -> anyhow::Result<(Duration, bool)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (door, tenant) = (Door::open(target).await?, tenant_name(0).parse()?);
        let attempt = async |number| door.send(&tenant, &event(Stamp { tenant: 0, number, intended_micros: 0 })).await;
        let mut number = 0;
        // As many as the limit allows are let in; the clock of a slow machine may give a few more.
        while number < 10 * target.limit {
            if let Sent::Throttled { retry_after } = attempt(number).await {
                tokio::time::sleep(retry_after).await;
                return Ok((retry_after, matches!(attempt(number).await, Sent::Accepted)));
            }
            number += 1;
        }
        anyhow::bail!("{number} events in a row were let in: is --limit the gateways' EVENTS_PER_SECOND?")
    })
}

/// Publishes so many events to one tenant, at the highest limit that there is. They are no part of a run.
pub fn fill(target: &Target, tenant: &str, events: u32) -> anyhow::Result<()> {
    const LIMIT: u32 = 1000;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (tenant, intended_micros) = (tenant.parse()?, Clock::new().micros());
    let (end, tally) = (Instant::now() + Billing::PERSISTENCE, Tally::default());
    runtime.block_on(async {
        let door = Door::open(&Target { limit: LIMIT, ..target.clone() }).await?;
        for number in 0..events {
            let stamp = Stamp { tenant: u32::MAX, number, intended_micros };
            anyhow::ensure!(send(&door, &tenant, stamp, end, &tally).await, "{tenant}'s events could not be published");
        }
        Ok(())
    })
}

/// A payment of the usual size, which carries its stamp as id.
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
