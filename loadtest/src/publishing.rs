//! Publishes a schedule through several publishers, open loop: a slow answer delays no other event.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use publisher::{
    DashboardEvent, EventData, Money, Outcome, PaymentReceived, PublishError, Publisher, PublisherConfig, TenantId,
};
use serde::Serialize;
use tokio::runtime::{self, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::schedule::{Clock, Schedule, Stamp, tenant_name};

/// Several billing processes in one: each lane has a publisher, a runtime and a thread of its own.
pub struct Billing {
    lanes: Vec<(Runtime, Publisher)>,
    tenants: Arc<[TenantId]>,
}

/// What became of the schedule.
#[derive(Debug, Serialize)]
pub struct Publishing {
    /// Events that Redis took.
    pub accepted: u64,
    /// Answers `Throttled`; the event was sent again when its token had come back.
    pub throttled: u64,
    /// Answers that were no outcome (Redis away, reply lost); the same event was sent again.
    pub retried: u64,
    /// Events given up after [`Billing::PERSISTENCE`]: nobody knows whether they were published.
    pub given_up: u64,
    #[serde(skip)]
    pub stamps: Vec<Stamp>,
}

#[derive(Default)]
struct Tally {
    throttled: AtomicU64,
    retried: AtomicU64,
}

impl Billing {
    /// How long an event is retried.
    const PERSISTENCE: Duration = Duration::from_secs(30);
    /// Between two attempts at a Redis that does not answer.
    const PAUSE: Duration = Duration::from_millis(20);

    /// Prepares `lanes` publishers. Their connections come up in the background, before the first event is due.
    pub fn connect(redis_url: &str, prefix: &str, limit: u32, lanes: usize, tenants: u32) -> anyhow::Result<Self> {
        let tenants = (0..tenants).map(|tenant| Ok(tenant_name(tenant).parse()?)).collect::<anyhow::Result<_>>()?;
        let lane = |_| {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let mut config = PublisherConfig::new(redis_url);
            config.prefix = prefix.to_owned();
            config.events_per_second = limit;
            let publisher = runtime.block_on(Publisher::connect(config)).context("connecting a publisher")?;
            anyhow::Ok((runtime, publisher))
        };
        let lanes = (0..lanes).map(lane).collect::<anyhow::Result<_>>()?;
        Ok(Self { lanes, tenants })
    }

    /// Publishes every event at its moment, a tenant's events dealt over all lanes, and waits for the last answer.
    pub fn publish(self, schedule: &Schedule, clock: Clock, start_micros: u64) -> Publishing {
        let tally = Arc::new(Tally::default());
        let mut lanes: Vec<UnboundedSender<Stamp>> = Vec::new();
        let running: Vec<_> = (self.lanes.into_iter())
            .map(|(runtime, publisher)| {
                let (lane, planned) = unbounded_channel();
                lanes.push(lane);
                let (tenants, tally) = (self.tenants.clone(), tally.clone());
                thread::spawn(move || runtime.block_on(run_lane(publisher, tenants, planned, tally)))
            })
            .collect();

        // The pace is kept here and not by the runtimes, whose timers count in milliseconds.
        for stamp in schedule.events(start_micros) {
            thread::sleep(clock.instant(stamp.intended_micros).saturating_duration_since(Instant::now()));
            let lane = (stamp.tenant as usize + stamp.number as usize) % lanes.len();
            lanes[lane].send(stamp).expect("a lane runs until its sender is dropped");
        }
        drop(lanes);

        let mut stamps = Vec::new();
        let mut given_up = 0;
        for lane in running {
            let (taken, lost) = lane.join().expect("a lane does not panic");
            stamps.extend(taken);
            given_up += lost;
        }
        Publishing {
            accepted: stamps.len() as u64,
            throttled: tally.throttled.load(Ordering::Relaxed),
            retried: tally.retried.load(Ordering::Relaxed),
            given_up,
            stamps,
        }
    }
}

/// Publishes what comes; returns the events that were accepted and how many were given up.
async fn run_lane(
    publisher: Publisher,
    tenants: Arc<[TenantId]>,
    mut planned: UnboundedReceiver<Stamp>,
    tally: Arc<Tally>,
) -> (Vec<Stamp>, u64) {
    let (mut accepted, mut given_up) = (Vec::new(), 0);
    let mut book = |stamp: Option<Stamp>| match stamp {
        Some(stamp) => accepted.push(stamp),
        None => given_up += 1,
    };
    let mut sending = JoinSet::new();
    loop {
        tokio::select! {
            stamp = planned.recv() => match stamp {
                Some(stamp) => {
                    let (publisher, tally) = (publisher.clone(), tally.clone());
                    let tenant = tenants[stamp.tenant as usize].clone();
                    sending.spawn(async move { send(&publisher, &tenant, stamp, &tally).await.then_some(stamp) });
                }
                None => break,
            },
            Some(sent) = sending.join_next() => book(sent.expect("a send does not panic")),
        }
    }
    while let Some(sent) = sending.join_next().await {
        book(sent.expect("a send does not panic"));
    }
    (accepted, given_up)
}

/// Sends one event, the same event, until it is accepted; `false` when time is over.
async fn send(publisher: &Publisher, tenant: &TenantId, stamp: Stamp, tally: &Tally) -> bool {
    let event = event(stamp);
    let deadline = Instant::now() + Billing::PERSISTENCE;
    while Instant::now() < deadline {
        let pause = match publisher.broadcast_to_tenant(tenant, &event).await {
            Ok(Outcome::Published { .. } | Outcome::Duplicate { .. }) => return true,
            Ok(Outcome::Throttled { retry_after }) => {
                tally.throttled.fetch_add(1, Ordering::Relaxed);
                retry_after
            }
            Err(PublishError::Invalid(error)) => unreachable!("a payment that is always valid: {error}"),
            Err(_) => {
                tally.retried.fetch_add(1, Ordering::Relaxed);
                Billing::PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
    false
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
