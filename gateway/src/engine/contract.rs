//! The contract between the rooms and the engine that stores and carries events.
//!
//! Every engine keeps these promises:
//!
//! - Every [`Request`] for a reading is answered exactly once, in the end: an engine that lost its server answers when
//!   it is back. Nothing waits for a request to be accepted.
//! - A subscription is answered only when the server has confirmed it, with the position read after that.
//!   A subscription that was lost before its answer is answered only once it holds again, by a reading taken after that.
//! - A message that was published before a reading was taken reaches the room before that reading does. (The reverse is
//!   not promised: a reading can be older than the room's own position.)

use std::fmt;
use std::time::Duration;

use publisher::internals::{Epoch, Message};
use publisher::{EventId, TenantId};
use time::OffsetDateTime;
use tokio::sync::oneshot;

/// What the engine tells the rooms. The hub implements it; the engine does not know that there is a hub.
pub trait Rooms: Clone + Send + Sync + 'static {
    /// Takes events of subscribed tenants, each with the tenant whose channel it came on: all that one read of the server brought.
    /// Called in the order in which the server sent them; waits while the rooms are busy.
    fn deliver(&self, messages: Vec<(TenantId, Message)>) -> impl Future<Output = ()> + Send;

    /// Takes a signal. Called in the order in which the server sent them; waits while the rooms are busy.
    fn handle(&self, signal: Signal) -> impl Future<Output = ()> + Send;

    /// The kicks in force that are not among those that were `read` at this time of the engine's clock, in milliseconds: the server
    /// has lost them.
    fn kicks_beyond(&self, read: &[Kick], now: u64) -> Vec<Kick>;
}

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
    /// A room's own position. A server that contradicts it has lost writes, and begins a new epoch.
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
    /// The member that this read was for has left. The answer comes all the same, or [`Signal::Forgotten`] says that it won't.
    Forget {
        /// Whose stream.
        tenant: TenantId,
        /// The read.
        ticket: Ticket,
    },
    /// Read only the head, for a caller that is not a room.
    Head {
        /// Whose stream.
        tenant: TenantId,
        /// Where the answer goes.
        reply: oneshot::Sender<Position>,
    },
}

/// Why events may be missing, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// One of a few fixed words, for clients to show.
    pub reason: &'static str,
    /// The last moment at which delivery was proved.
    pub since: OffsetDateTime,
}

/// What the engine tells the hub.
#[derive(Debug, Clone)]
pub enum Signal {
    /// The answer to a subscription or a read.
    Reading {
        /// Whose stream.
        tenant: TenantId,
        /// The question.
        ticket: Ticket,
        /// The answer.
        reading: Reading,
    },
    /// A read whose member has left was not begun.
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

/// The name of the entry in Redis. For a log it has to be [sanitised](publisher::internals::sanitised): a `sub` is any text.
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
