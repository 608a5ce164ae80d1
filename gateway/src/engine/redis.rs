//! The engine of a cluster: events come from Redis' pub/sub, positions from its state and logs.
//!
//! `wire` is the only file that names the client library; `keeper` owns the subscriptions and proves that they hold, each
//! on the server that [`publisher::internals::topology`] names: a `node`, of which there is one but for a Cluster.

mod keeper;
mod node;
mod round;
mod wire;
mod wires;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use publisher::internals::script::Urgency;
use publisher::internals::topology::{RedisUrl, Servers};
use publisher::internals::{Names, Relayed, Term};
use publisher::{ConnectError, DashboardEvent, EventId, Outcome, PublishError, Publisher, PublisherConfig, TenantId};
use tokio::sync::mpsc;

use super::{Claim, KickError, Kicked, Position, Request, Rooms};
use crate::metrics::Metrics;
use keeper::Keeper;
use wire::{Terms, WireError};
use wires::Wires;

/// How often a kick waits for a connection, and for how long.
const KICK_RETRIES: usize = 5;
const KICK_PAUSE: Duration = Duration::from_millis(100);

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct RedisEngine {
    requests: mpsc::UnboundedSender<Request>,
    publisher: Publisher,
    wires: Arc<Wires>,
    /// This gateway, among those that claim a tenant's figures.
    instance: Arc<str>,
    proof: Proof,
}

/// What Redis has for the rooms.
pub struct RedisFeed {
    wires: Arc<Wires>,
    proof: Proof,
    queue: mpsc::UnboundedReceiver<Request>,
}

impl RedisFeed {
    /// Tells the rooms what Redis has for them, until the process ends.
    pub async fn run(self, rooms: impl Rooms, metrics: Metrics) {
        Keeper::new(self.wires, rooms, metrics, self.proof).run(self.queue).await;
    }
}

impl RedisEngine {
    /// Starts to connect, and returns. Redis may be down: the engine heals when it comes up. Nothing is received before the feed runs.
    ///
    /// # Errors
    /// When the URL or the prefix can't be used.
    pub async fn connect(config: PublisherConfig, token_lifetime: Duration) -> Result<(Self, RedisFeed), ConnectError> {
        let url = RedisUrl::parse(&config.redis_url)?;
        let terms = Terms {
            names: Names::new(&config.prefix)?,
            recovery_events: config.recovery_events,
            token_lifetime,
            sharded: url.is_cluster(),
        };
        let wires = Arc::new(Wires::new(Servers::follow(url), terms));
        let proof = Proof::new();
        let (requests, queue) = mpsc::unbounded_channel();
        let publisher = Publisher::connect(config).await?;
        let feed = RedisFeed { wires: wires.clone(), proof: proof.clone(), queue };
        Ok((Self { requests, publisher, wires, instance: EventId::new().as_str().into(), proof }, feed))
    }

    pub(super) fn request(&self, request: Request) {
        // Fails only when the process is exiting.
        let _ = self.requests.send(request);
    }

    pub(super) async fn publish(
        &self,
        tenant: &TenantId,
        event: &DashboardEvent,
        urgency: Urgency,
    ) -> Result<Outcome, PublishError> {
        self.publisher.broadcast_with(tenant, event, urgency).await
    }

    pub(super) async fn relay(
        &self,
        tenant: &TenantId,
        event: &DashboardEvent,
        term: Term,
    ) -> Result<Relayed, PublishError> {
        self.publisher.relay(tenant, event, term).await
    }

    pub(super) fn moved(&self) -> Option<tokio::time::Instant> {
        self.publisher.moved()
    }

    pub(super) async fn kick(&self, who: &Kicked) -> Result<u64, KickError> {
        let wire = self.wires.of_kicks().ok_or(KickError::Unavailable)?;
        let mut taken = wire.kick(who).await;
        for _ in 0..KICK_RETRIES {
            // A connection that is being made. The order may be given twice: that is the same kick.
            if !taken.as_ref().is_err_and(WireError::is_of_a_lost_connection) {
                break;
            }
            tokio::time::sleep(KICK_PAUSE).await;
            taken = wire.kick(who).await;
        }
        match taken {
            Ok(Some(at)) => Ok(at),
            Ok(None) => Err(KickError::Full),
            Err(error) => {
                tracing::warn!(%error, "a kick could not be given");
                Err(KickError::Unavailable)
            }
        }
    }

    pub(super) async fn claim(&self, tenant: &TenantId, at: Option<&Position>) -> Result<Claim, PublishError> {
        let wire = self.wires.of(tenant.as_str()).ok_or(PublishError::Unavailable)?;
        wire.claim(&self.instance, tenant, at).await.map_err(|_| PublishError::Unavailable)
    }

    pub(super) fn last_proof(&self) -> Option<Instant> {
        self.proof.last()
    }
}

/// When it was last proved that what is published comes back on the subscription.
#[derive(Clone)]
struct Proof {
    start: Instant,
    /// Milliseconds since `start`, plus one; 0 for never.
    at: Arc<AtomicU64>,
}

impl Proof {
    fn new() -> Self {
        Self { start: Instant::now(), at: Arc::default() }
    }

    fn renew(&self) {
        self.at.store(self.start.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn last(&self) -> Option<Instant> {
        let at = self.at.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.start + Duration::from_millis(at))
    }
}
