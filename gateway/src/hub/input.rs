//! What can happen to the rooms of a shard.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use publisher::TenantId;
use publisher::internals::Message;
use tokio::sync::oneshot;

use super::admission::Permit;
use crate::engine::{Kicked, Position, Signal, Ticket};
use crate::socket::link::Link;
use crate::socket::snapshot::Snapshot;

/// The inputs of a shard, which are handled one at a time.
pub enum Input {
    /// A socket wants into a room.
    Join { tenant: TenantId, join: Join },
    /// A joined socket has a new token, which was issued then.
    Renewed { tenant: TenantId, link: Arc<Link>, issued_at: u64 },
    /// A control message for a socket in a room.
    Tell { tenant: TenantId, link: Arc<Link>, frames: Bytes },
    /// A socket asks for a heartbeat.
    Beat { tenant: TenantId, link: Arc<Link> },
    /// A socket leaves its room; `done` is told when the room writes to it no more.
    Leave { tenant: TenantId, link: Arc<Link>, departure: Departure, done: oneshot::Sender<()> },
    /// Events came, in this order.
    Messages(Vec<(TenantId, Message)>),
    /// A signal of the engine.
    Signal(Signal),
    /// The snapshot that a room asked for, as far as it could be had.
    Loaded { tenant: TenantId, ticket: Ticket, snapshot: Arc<Snapshot> },
    /// Tokens were revoked. The answer says how many sockets are closed for each kick.
    Kicked { closed: oneshot::Sender<HashMap<Kicked, usize>> },
    /// Asks which tenants are connected, with how many sockets each.
    Tenants(oneshot::Sender<Vec<(TenantId, usize)>>),
}

/// A socket that wants into a room.
pub struct Join {
    /// The room is its only writer from now on.
    pub link: Arc<Link>,
    /// The token's `sub`.
    pub subject: Option<Arc<str>>,
    /// When the token was issued: [`crate::tokens::Claims::issued_at`].
    pub issued_at: u64,
    /// The last event that the browser has seen.
    pub resume: Option<Position>,
    /// The turn that it has waited for.
    pub permit: Permit,
}

/// How a socket leaves its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// With a last `left`.
    Announced,
    /// The socket closes.
    Silent,
}
