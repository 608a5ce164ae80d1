//! The engines that store and carry events.
//!
//! Two keep the [contract]: [`redis`] for a cluster, [`memory`] for a single instance without Redis.

pub mod contract;
pub mod memory;
pub mod redis;

use std::time::Instant;

use anyhow::Context;
use publisher::internals::script::Urgency;
use publisher::internals::{Relayed, Term};
use publisher::{DashboardEvent, Outcome, PublishError, PublisherConfig, TenantId};
use tracing::info;

use crate::config::Settings;
use crate::metrics::Metrics;
use crate::tokens::kick_lifetime;
pub use contract::{
    Claim, FIGURES_PAUSE, Kick, KickError, Kicked, Known, MOST_KICKS, Outage, Position, Reading, Request, Rooms,
    Signal, Ticket,
};

/// The engine in use.
#[derive(Clone)]
pub enum Engine {
    /// One instance, no server.
    Memory(memory::MemoryEngine),
    /// A cluster over Redis.
    Redis(redis::RedisEngine),
}

/// The engine that the settings ask for, and its feed.
///
/// # Errors
/// When `REDIS_URL` can't be used. Redis being down is no error: the engine connects once it is up.
pub async fn connect(settings: &Settings, metrics: &Metrics) -> anyhow::Result<(Engine, Feed)> {
    let limits = &settings.limits;
    let Some(address) = &settings.redis else {
        metrics.engine_up(true);
        info!("no REDIS_URL: this instance serves alone, from memory");
        let (engine, feed) = memory::MemoryEngine::new(memory::MemoryLimits {
            events_per_second: limits.events_per_second,
            recovery_events: limits.recovery_events as usize,
            recovery: limits.recovery,
        });
        return Ok((Engine::Memory(engine), Feed::Memory(feed)));
    };
    let mut publisher = PublisherConfig::new(address.text.expose());
    publisher.prefix.clone_from(&settings.redis_prefix);
    publisher.events_per_second = limits.events_per_second;
    publisher.recovery_events = limits.recovery_events;
    publisher.recovery = limits.recovery;
    // For the HTTP API; billing code brings connections of its own.
    publisher.connections = 2;
    let lifetime = kick_lifetime(&settings.jwt.claims);
    let (engine, feed) = redis::RedisEngine::connect(publisher, lifetime).await.context("REDIS_URL")?;
    Ok((Engine::Redis(engine), Feed::Redis(feed)))
}

/// What the engine in use has for the rooms.
pub enum Feed {
    /// Of [`Engine::Memory`].
    Memory(memory::MemoryFeed),
    /// Of [`Engine::Redis`].
    Redis(redis::RedisFeed),
}

impl Feed {
    /// Tells the rooms of events, until the process ends.
    pub async fn run(self, rooms: impl Rooms, metrics: Metrics) {
        match self {
            Self::Memory(feed) => feed.run(rooms).await,
            Self::Redis(feed) => feed.run(rooms, metrics).await,
        }
    }
}

impl Engine {
    /// Hands a request over; never waits.
    pub fn request(&self, request: Request) {
        match self {
            Self::Memory(engine) => engine.request(request),
            Self::Redis(engine) => engine.request(request),
        }
    }

    /// Publishes an event through the tenant's limit.
    ///
    /// # Errors
    /// As [`publisher::Publisher::broadcast_to_tenant`]; the memory engine never fails.
    pub async fn publish(&self, tenant: &TenantId, event: &DashboardEvent) -> Result<Outcome, PublishError> {
        self.publish_with(tenant, event, Urgency::Usual).await
    }

    /// The same for figures that may have waited for too long.
    ///
    /// # Errors
    /// The same.
    pub async fn publish_with(
        &self,
        tenant: &TenantId,
        event: &DashboardEvent,
        urgency: Urgency,
    ) -> Result<Outcome, PublishError> {
        match self {
            Self::Memory(engine) => match engine.publish(tenant, event, None, urgency).await? {
                Relayed::Outcome(outcome) => Ok(outcome),
                Relayed::Superseded { .. } => unreachable!("only a term can be succeeded"),
            },
            Self::Redis(engine) => engine.publish(tenant, event, urgency).await,
        }
    }

    /// Publishes an event of the outbox as the relay's leader of `term`.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub async fn relay(&self, tenant: &TenantId, event: &DashboardEvent, term: Term) -> Result<Relayed, PublishError> {
        match self {
            Self::Memory(engine) => engine.publish(tenant, event, Some(term), Urgency::Usual).await,
            Self::Redis(engine) => engine.relay(tenant, event, term).await,
        }
    }

    /// When the streams last moved to another Redis server: events of the seconds before it may be lost, although they were
    /// acknowledged. `None` when they never moved.
    pub fn moved(&self) -> Option<tokio::time::Instant> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(engine) => engine.moved(),
        }
    }

    /// Revokes tokens on every other gateway of the cluster; on this one the kick that is returned does.
    ///
    /// # Errors
    /// [`KickError`].
    pub async fn kick(&self, who: Kicked) -> Result<Kick, KickError> {
        let at = match self {
            Self::Memory(_) => memory::now_millis(),
            Self::Redis(engine) => engine.kick(&who).await?,
        };
        Ok(Kick { who, at })
    }

    /// Claims a tenant's figures, as of its last change if one is known, for [`FIGURES_PAUSE`].
    ///
    /// # Errors
    /// When Redis doesn't answer.
    pub async fn claim(&self, tenant: &TenantId, at: Option<&Position>) -> Result<Claim, PublishError> {
        match self {
            // There is no other gateway.
            Self::Memory(_) => Ok(Claim::Won),
            Self::Redis(engine) => engine.claim(tenant, at).await,
        }
    }

    /// When delivery was last proved to work; `None` before the first proof.
    pub fn last_proof(&self) -> Option<Instant> {
        match self {
            Self::Memory(_) => Some(Instant::now()),
            Self::Redis(engine) => engine.last_proof(),
        }
    }
}
