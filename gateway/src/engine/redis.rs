//! The engine of a cluster: events come from Redis' pub/sub, positions from its state and logs.
//!
//! The `subscriber` owns the subscriptions, each on the server that [`publisher::internals::topology`] names: a `node`, of which there is one
//! but for a Cluster. A node has two connections: its own `connection` for subscriptions, and one for `commands` and scripts.

mod commands;
mod connection;
mod interruption;
mod node;
mod proof;
mod reach;
mod settings;
mod subscriber;
mod sync_round;

use std::sync::Arc;
use std::time::{Duration, Instant};

use publisher::internals::redis::Failure;
use publisher::internals::script::Urgency;
use publisher::internals::topology::{RedisUrl, Servers};
use publisher::internals::{Names, Relayed, Term};
use publisher::{ConnectError, DashboardEvent, EventId, Outcome, PublishError, Publisher, PublisherConfig, TenantId};
use tokio::sync::mpsc;

use super::{Claim, KickError, Kicked, Position, Request, Rooms};
use crate::metrics::Metrics;
use connection::Kind;
use proof::Proof;
use reach::Reach;
use settings::Settings;
use subscriber::Subscriber;

/// How often a kick waits for a connection, and for how long.
const KICK_RETRIES: usize = 5;
const KICK_PAUSE: Duration = Duration::from_millis(100);

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct RedisEngine {
    requests: mpsc::UnboundedSender<Request>,
    publisher: Publisher,
    reach: Arc<Reach>,
    /// This gateway, among those that claim a tenant's figures.
    instance: Arc<str>,
    proof: Proof,
}

/// What Redis has for the rooms.
pub struct RedisFeed {
    reach: Arc<Reach>,
    proof: Proof,
    queue: mpsc::UnboundedReceiver<Request>,
}

impl RedisFeed {
    /// Tells the rooms what Redis has for them, until the process ends.
    pub async fn run(self, rooms: impl Rooms, metrics: Metrics) {
        Subscriber::new(self.reach, rooms, metrics, self.proof).run(self.queue).await;
    }
}

impl RedisEngine {
    /// Starts to connect, and returns. Redis may be down: the engine heals when it comes up. Nothing is received before the feed runs.
    ///
    /// # Errors
    /// When the URL or the prefix can't be used.
    pub async fn connect(config: PublisherConfig, token_lifetime: Duration) -> Result<(Self, RedisFeed), ConnectError> {
        let url = RedisUrl::parse(&config.redis_url)?;
        let settings = Settings {
            names: Names::new(&config.prefix)?,
            recovery_events: config.recovery_events,
            token_lifetime,
            kind: if url.is_cluster() { Kind::Sharded } else { Kind::Plain },
        };
        let servers = Servers::follow(url);
        let publisher = Publisher::connect_on(servers.clone(), config).await?;
        let (reach, proof) = (Arc::new(Reach::new(servers, settings)), Proof::new());
        let (requests, queue) = mpsc::unbounded_channel();
        let feed = RedisFeed { reach: reach.clone(), proof: proof.clone(), queue };
        Ok((Self { requests, publisher, reach, instance: EventId::new().as_str().into(), proof }, feed))
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
        let mut attempts = 0;
        let taken = loop {
            let commands = self.reach.of_kicks().ok_or(KickError::Unavailable)?;
            match commands.kick(who).await {
                // A connection that is being made. The order may be given twice: that is the same kick.
                Err(Failure::NotSent | Failure::Lost) if attempts < KICK_RETRIES => attempts += 1,
                taken => break taken,
            }
            tokio::time::sleep(KICK_PAUSE).await;
        };
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
        let commands = self.reach.of(tenant.as_str()).ok_or(PublishError::Unavailable)?;
        commands.claim(&self.instance, tenant, at).await.map_err(|_| PublishError::Unavailable)
    }

    pub(super) fn last_proof(&self) -> Option<Instant> {
        self.proof.last()
    }
}
