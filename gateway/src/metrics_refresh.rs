//! Live figures: `metrics_updated` events for the tenants that have a dashboard open, soon after a change, and every 30 seconds.
//!
//! Every gateway with a dashboard of a tenant open keeps a clock for the tenant. When the clock is due, the gateway claims the tenant's
//! metrics in Redis, so that one gateway of the cluster reads and publishes them; the others receive them. Publishing metrics takes a
//! token like any event, and leaves tokens for payments: when the tenant's tokens are short, the metrics wait, and are read anew.
//! Metrics that are overdue leave no tokens, so that a tenant at its limit gets them too.

mod clock;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use publisher::internals::script::Urgency;
use publisher::{DashboardEvent, Outcome, TenantId};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::time::{DelayQueue, delay_queue};
use tracing::debug;

use crate::engine::{Claim, Engine, Position};
use crate::shutdown::Shutdown;
use crate::snapshots::Snapshots;
use clock::{Clock, Promise, Tried};

/// Tenants whose metrics are read at once.
const AT_ONCE: usize = 4;

/// What a room reports.
#[derive(Debug)]
enum Fact {
    Watched { tenant: TenantId },
    Unwatched { tenant: TenantId },
    Changed { tenant: TenantId, at: Position },
    Refreshed { tenant: TenantId },
}

/// The handle by which rooms report; cheap to clone. No call waits.
#[derive(Clone)]
pub struct MetricsRefresh(mpsc::UnboundedSender<Fact>);

impl MetricsRefresh {
    /// Starts the task.
    pub fn start(engine: Engine, snapshots: Snapshots, shutdown: &Shutdown) -> Self {
        let (facts, inbox) = mpsc::unbounded_channel();
        let clocks = Clocks {
            inbox,
            engine,
            snapshots,
            clocks: HashMap::new(),
            due: DelayQueue::new(),
            tries: JoinSet::new(),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
        };
        shutdown.spawn(clocks.run());
        Self(facts)
    }

    /// The tenant's first dashboard was opened.
    pub fn watched(&self, tenant: &TenantId) {
        self.report(Fact::Watched { tenant: tenant.clone() });
    }

    /// The tenant's last dashboard was closed.
    pub fn unwatched(&self, tenant: &TenantId) {
        self.report(Fact::Unwatched { tenant: tenant.clone() });
    }

    /// An event changed the tenant's metrics.
    pub fn changed(&self, tenant: &TenantId, at: Position) {
        self.report(Fact::Changed { tenant: tenant.clone(), at });
    }

    /// A `metrics_updated` with metrics was received, from this gateway or another.
    pub fn refreshed(&self, tenant: &TenantId) {
        self.report(Fact::Refreshed { tenant: tenant.clone() });
    }

    fn report(&self, fact: Fact) {
        // Fails only when the process is exiting.
        let _ = self.0.send(fact);
    }
}

struct Entry {
    clock: Clock,
    /// `None` after it has fired, until it is set again: the queue may have given its key to another tenant.
    due: Option<delay_queue::Key>,
}

/// The clocks of all tenants that have a dashboard open here.
struct Clocks {
    inbox: mpsc::UnboundedReceiver<Fact>,
    engine: Engine,
    snapshots: Snapshots,
    clocks: HashMap<TenantId, Entry>,
    due: DelayQueue<TenantId>,
    tries: JoinSet<(TenantId, Tried)>,
    at_once: Arc<Semaphore>,
}

impl Clocks {
    async fn run(mut self) {
        loop {
            tokio::select! {
                fact = self.inbox.recv() => match fact {
                    Some(fact) => self.handle(fact),
                    None => return,
                },
                Some(due) = self.due.next(), if !self.due.is_empty() => self.try_now(due.into_inner()),
                Some(tried) = self.tries.join_next() => {
                    // A try catches its panics, and is never aborted.
                    if let Ok((tenant, tried)) = tried {
                        self.with(&tenant, |clock, now| clock.tried(tried, now));
                    }
                }
            }
        }
    }

    fn handle(&mut self, fact: Fact) {
        match fact {
            Fact::Watched { tenant } => {
                self.forget(&tenant);
                self.clocks.insert(tenant.clone(), Entry { clock: Clock::new(Instant::now()), due: None });
                self.with(&tenant, |_, _| {});
            }
            Fact::Unwatched { tenant } => self.forget(&tenant),
            Fact::Changed { tenant, at } => self.with(&tenant, |clock, now| clock.changed(at, now)),
            Fact::Refreshed { tenant } => self.with(&tenant, Clock::refreshed),
        }
    }

    fn forget(&mut self, tenant: &TenantId) {
        if let Some(due) = self.clocks.remove(tenant).and_then(|entry| entry.due) {
            self.due.remove(&due);
        }
    }

    /// Changes the tenant's clock, and sets its timer.
    fn with(&mut self, tenant: &TenantId, change: impl FnOnce(&mut Clock, Instant)) {
        let Some(entry) = self.clocks.get_mut(tenant) else { return };
        change(&mut entry.clock, Instant::now());
        if let Some(due) = entry.due.take() {
            self.due.remove(&due);
        }
        entry.due = entry.clock.due().map(|at| self.due.insert_at(tenant.clone(), at));
    }

    fn try_now(&mut self, tenant: TenantId) {
        let Some(entry) = self.clocks.get_mut(&tenant) else { return };
        entry.due = None;
        let at = entry.clock.begin();
        let urgency = entry.clock.urgency(Instant::now());
        let (engine, snapshots, at_once) = (self.engine.clone(), self.snapshots.clone(), self.at_once.clone());
        self.tries.spawn(async move {
            // Fails only when the semaphore is closed, which it never is.
            let _permit = at_once.acquire().await;
            // A panic counts as a failure: without a result the clock would never be due again.
            let tried = refresh(&engine, &snapshots, &tenant, at.as_ref(), urgency);
            let tried = AssertUnwindSafe(tried).catch_unwind().await.unwrap_or(Tried::Failed);
            (tenant, tried)
        });
    }
}

/// Reads and publishes a tenant's metrics, unless another gateway does.
async fn refresh(
    engine: &Engine,
    snapshots: &Snapshots,
    tenant: &TenantId,
    at: Option<&Position>,
    urgency: Urgency,
) -> Tried {
    match engine.claim(tenant, at).await {
        Ok(Claim::Won) => {}
        Ok(Claim::Lost { covers: true }) => return Tried::Lost(Promise::Covers),
        Ok(Claim::Lost { covers: false }) => return Tried::Lost(Promise::Older),
        Err(_) => return Tried::Failed,
    }
    let metrics = match snapshots.metrics(tenant).await {
        Ok(Some(metrics)) => metrics,
        Ok(None) => return Tried::Unknown,
        Err(_) => return Tried::Failed,
    };
    match engine.publish_with(tenant, &DashboardEvent::new(metrics), urgency).await {
        Ok(Outcome::Published { .. } | Outcome::Duplicate { .. }) => Tried::Published,
        Ok(Outcome::Throttled { retry_after }) => Tried::Throttled(retry_after.max(Duration::from_millis(10))),
        outcome => {
            debug!(%tenant, ?outcome, "metrics not published");
            Tried::Failed
        }
    }
}
