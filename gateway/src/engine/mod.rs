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

use std::fmt;
use std::time::{Duration, Instant};

use publisher::outbox::{Relayed, Sink, Term};
use publisher::script::Urgency;
use publisher::{DashboardEvent, Epoch, EventId, Message, Outcome, PublishError, TenantId};
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
    /// Tokens are revoked, and the sockets that came with them must close. The same kick may be told again.
    Kicks {
        /// By whose kicks.
        kicks: Vec<Kick>,
        /// The time of the clock that [`Kick::at`] is of.
        now: u64,
    },
}

/// A revocation: on every gateway, tokens that were issued up to and including its second are refused, and their sockets closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kick {
    /// Whose tokens.
    pub who: Kicked,
    /// When it was given, in milliseconds of Unix time: of Redis' clock, or of this gateway's where there is no Redis.
    pub at: u64,
}

/// Whose tokens a [`Kick`] revokes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kicked {
    /// Every token, where it is shown for this tenant.
    Tenant(TenantId),
    /// Every token with this `sub`.
    User(Box<str>),
}

impl Kicked {
    const TENANT: &str = "tenant:";
    const USER: &str = "user:";

    /// Reads the name that [`Display`](fmt::Display) writes.
    pub fn parse(name: &str) -> Option<Self> {
        match name.strip_prefix(Self::TENANT) {
            Some(tenant) => tenant.parse().ok().map(Self::Tenant),
            None => name.strip_prefix(Self::USER).map(|user| Self::User(user.into())),
        }
    }
}

/// The name of the entry in Redis. For a log it has to be [sanitised](publisher::sanitised): a `sub` is any text.
impl fmt::Display for Kicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(tenant) => write!(f, "{}{tenant}", Self::TENANT),
            Self::User(user) => write!(f, "{}{user}", Self::USER),
        }
    }
}

/// Tenants and users whose tokens may be revoked at a time: some 20 MB of Redis' memory, and as much of a gateway's.
pub const MOST_KICKS: usize = 100_000;

/// Why a kick was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KickError {
    /// It can't be known that the order reached Redis.
    #[error("the kick could not be given to Redis")]
    Unavailable,
    /// As many tokens are revoked as may be.
    #[error("{MOST_KICKS} tenants and users are kicked already; each is forgotten after JWT_MAX_LIFETIME_SECONDS")]
    Full,
}

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
