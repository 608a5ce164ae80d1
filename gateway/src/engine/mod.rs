//! Where events come from: the contract between the rooms and whatever stores and carries events.
//!
//! Two engines keep it: [`redis`] for a cluster, [`memory`] for a single instance without Redis. What a room may rely on,
//! whichever it is:
//!
//! - Every [`Request`] for a reading is answered exactly once, in the end: an engine that lost its server answers when
//!   it is back. Nothing waits for a request to be accepted.
//! - A subscription is answered only when the server has proved that it holds, with the position read after that proof.
//! - A message that was published before a reading was taken reaches the room before that reading does. (The reverse is
//!   not promised: a reading can be older than the room's own position.)

pub mod memory;
pub mod redis;

use std::time::{Duration, Instant};

use publisher::outbox::{Relayed, Sink, Term};
use publisher::script::Urgency;
use publisher::{DashboardEvent, Epoch, EventId, Message, Outcome, PublishError, TenantId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::oneshot;

/// A point in one tenant's stream of events: everything up to and including `seq` of `epoch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Which life of the counter.
    pub epoch: Epoch,
    /// The last event's number; 0 before the first.
    pub seq: u64,
    /// The last event's id, when it is known: the same number under another id is another history.
    pub id: Option<EventId>,
}

/// What the engine found when it looked at a tenant's stream.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The newest event's position.
    pub head: Position,
    /// The log's events after the position that was asked for, oldest first; empty when that was of another epoch.
    pub events: Vec<Message>,
}

/// Names one question of one room, so that an answer can't be taken for another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Where a read starts, and whether its numbers can be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// A room's own position. A server that contradicts it has lost writes, and begins a new epoch (design §5).
    Room(Position),
    /// A browser's claim: never a reason to change anything.
    Client(Position),
}

/// What the hub asks of the engine.
#[derive(Debug)]
pub enum Request {
    /// Receive the tenant's events from now on; answered with [`Signal::Reading`].
    Subscribe {
        /// Whose events.
        tenant: TenantId,
        /// Names the answer.
        ticket: Ticket,
    },
    /// Receive no more of the tenant's events; not answered.
    Unsubscribe {
        /// Whose events.
        tenant: TenantId,
    },
    /// Read the head, and the log after a position; answered with [`Signal::Reading`].
    Read {
        /// Whose stream.
        tenant: TenantId,
        /// Names the answer.
        ticket: Ticket,
        /// The position after which the log is read.
        after: Known,
    },
    /// Nobody waits for the answer to this read any more. It comes all the same, or [`Signal::Forgotten`] says that it won't.
    Forget {
        /// Whose stream.
        tenant: TenantId,
        /// The read.
        ticket: Ticket,
    },
    /// Read only the head, for somebody who is not a room.
    Head {
        /// Whose stream.
        tenant: TenantId,
        /// Where the answer goes.
        reply: oneshot::Sender<Position>,
    },
}

/// Why live delivery can't be vouched for, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// One of a few fixed words, for clients to show.
    pub reason: &'static str,
    /// The last moment that was vouched for.
    pub since: OffsetDateTime,
}

/// What the engine tells the hub.
#[derive(Debug, Clone)]
pub enum Signal {
    /// An event of a subscribed tenant.
    Message {
        /// Whose event: by the channel it came on.
        tenant: TenantId,
        /// The event, parsed once.
        message: Message,
    },
    /// The answer to a subscription or a read.
    Reading {
        /// Whose stream.
        tenant: TenantId,
        /// The question.
        ticket: Ticket,
        /// The answer.
        reading: Reading,
    },
    /// A read that nobody waits for was not begun.
    Forgotten {
        /// Whose stream.
        tenant: TenantId,
        /// The question.
        ticket: Ticket,
    },
    /// Events of a tenant may be missing from now on.
    Lost {
        /// Whose events.
        tenant: TenantId,
        /// Since when, and why.
        outage: Outage,
    },
    /// A tenant's subscription holds anew, and its room must compare its position.
    Returned {
        /// Whose subscription.
        tenant: TenantId,
    },
    /// The server refuses to answer for a tenant. The questions stay, and are asked again.
    Refused {
        /// Whose questions.
        tenant: TenantId,
    },
    /// Events were, or may have been, published to a server that no longer holds the tenant.
    Stray {
        /// Whose events.
        tenant: TenantId,
        /// Their epoch, when they were seen and it is one.
        epoch: Option<Epoch>,
    },
    /// Sockets must close.
    Kick {
        /// The order.
        kick: Kick,
        /// How long ago it was given, by the clock that [`Kick::at`] is of.
        age: Duration,
    },
}

/// An order to close sockets on every gateway, and to refuse the tokens they came with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kick {
    /// Whose sockets.
    pub who: Kicked,
    /// When it was ordered, in milliseconds of Unix time. With Redis it is Redis' time, whatever the sender wrote here.
    pub at: u64,
}

/// Whose sockets a [`Kick`] closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kicked {
    /// Every socket of a tenant.
    Tenant(TenantId),
    /// Every socket whose token has this `sub`.
    User(String),
}

/// How long a kick is remembered for joins that raced with it, and for gateways that did not hear it.
pub const KICK_MEMORY: Duration = Duration::from_secs(60);

/// Between two `metrics_updated` of one tenant, at the least.
pub const FIGURES_PAUSE: Duration = Duration::from_secs(1);

/// Whether this gateway is the one that computes a tenant's figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is.
    Won,
    /// Another does; with whether as of the same event.
    Lost {
        /// As of the same event: nothing is left to do when they come.
        covers: bool,
    },
}

/// The engine in use.
#[derive(Clone)]
pub enum Engine {
    /// One instance, no server.
    Memory(memory::MemoryEngine),
    /// A cluster over Redis.
    Redis(redis::RedisEngine),
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
                Relayed::Succeeded { .. } => unreachable!("only a term can be succeeded"),
            },
            Self::Redis(engine) => engine.publish(tenant, event, urgency).await,
        }
    }

    /// Sends a kick to every gateway of the cluster, this one included.
    ///
    /// # Errors
    /// When it can't be known that the order reached Redis.
    pub async fn kick(&self, kick: Kick) -> Result<(), PublishError> {
        match self {
            Self::Memory(engine) => engine.kick(kick).await,
            Self::Redis(engine) => engine.kick(kick).await,
        }
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

impl Sink for Engine {
    async fn relay(&self, tenant: &TenantId, event: &DashboardEvent, term: Term) -> Result<Relayed, PublishError> {
        match self {
            Self::Memory(engine) => engine.publish(tenant, event, Some(term), Urgency::Usual).await,
            Self::Redis(engine) => engine.relay(tenant, event, term).await,
        }
    }

    fn moved(&self) -> Option<tokio::time::Instant> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(engine) => engine.moved(),
        }
    }
}
