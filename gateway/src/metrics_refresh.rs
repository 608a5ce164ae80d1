//! Live figures: `metrics_updated` for tenants that somebody watches, soon after something changed, and now and then anyway (design §6).
//!
//! Every gateway with a tenant's dashboards open keeps a clock for it. When it is due, the gateway claims the tenant's figures in
//! Redis, so that one gateway of the cluster computes them; the others see them come. Publishing them takes a token like any event, and
//! yields: when the tenant's tokens are short they wait, and are computed anew. MetricsRefresh that are overdue yield no more, so that a tenant at
//! its limit gets them too.

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
use clock::{Clock, Tried};

/// Tenants whose figures are computed at once.
const AT_ONCE: usize = 4;

/// What shards tell of their rooms.
#[derive(Debug)]
enum Fact {
    Watched { tenant: TenantId },
    Unwatched { tenant: TenantId },
    Changed { tenant: TenantId, at: Position },
    Refreshed { tenant: TenantId },
}

/// The way to tell it; cheap to clone, and never waits.
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

    /// The tenant's first dashboard is here.
    pub fn watched(&self, tenant: &TenantId) {
        self.tell(Fact::Watched { tenant: tenant.clone() });
    }

    /// The last one has gone.
    pub fn unwatched(&self, tenant: &TenantId) {
        self.tell(Fact::Unwatched { tenant: tenant.clone() });
    }

    /// Something happened that shows in the figures.
    pub fn changed(&self, tenant: &TenantId, at: Position) {
        self.tell(Fact::Changed { tenant: tenant.clone(), at });
    }

    /// MetricsRefresh came, from whoever published them.
    pub fn refreshed(&self, tenant: &TenantId) {
        self.tell(Fact::Refreshed { tenant: tenant.clone() });
    }

    fn tell(&self, fact: Fact) {
        // Fails only when the process is exiting.
        let _ = self.0.send(fact);
    }
}

struct Entry {
    clock: Clock,
    /// None from when it has rung until it is set anew: a key that has rung may be another tenant's by now.
    due: Option<delay_queue::Key>,
}

/// The task's state.
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
                    Some(fact) => self.hear(fact),
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

    fn hear(&mut self, fact: Fact) {
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

    /// Lets a clock hear of something, and sets it.
    fn with(&mut self, tenant: &TenantId, hear: impl FnOnce(&mut Clock, Instant)) {
        let Some(entry) = self.clocks.get_mut(tenant) else { return };
        hear(&mut entry.clock, Instant::now());
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
            // A panic is a failure too: without an answer the clock would never be due again.
            let tried = refresh(&engine, &snapshots, &tenant, at.as_ref(), urgency);
            let tried = AssertUnwindSafe(tried).catch_unwind().await.unwrap_or(Tried::Failed);
            (tenant, tried)
        });
    }
}

/// Computes and publishes a tenant's figures, unless another gateway does.
async fn refresh(
    engine: &Engine,
    snapshots: &Snapshots,
    tenant: &TenantId,
    at: Option<&Position>,
    urgency: Urgency,
) -> Tried {
    match engine.claim(tenant, at).await {
        Ok(Claim::Won) => {}
        Ok(Claim::Lost { covers }) => return Tried::Lost { covers },
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
            debug!(%tenant, ?outcome, "figures could not be published");
            Tried::Failed
        }
    }
}
