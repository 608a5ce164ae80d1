//! What a stream wants done.

use std::sync::Arc;

use publisher::internals::Message;

use crate::engine::{Known, Outage, Position, Ticket};
use crate::socket::SocketId;
use crate::socket::snapshot::Snapshot;

/// What the room must do, in order.
#[derive(Debug)]
pub enum Effect {
    /// Ask the engine to receive the tenant's events.
    Subscribe(Ticket),
    /// Ask the engine for the head, and for the log after a position.
    Read(Ticket, Known),
    /// Read the tenant's snapshot; nothing up to the stream's present position may be missing in it.
    Load(Ticket),
    /// This member's answer waits for the snapshot alone.
    Waits(SocketId),
    /// Answer these members' joins, send them `replay`, and from then on everything that is delivered.
    Joined {
        /// The members.
        newcomers: Vec<Newcomer>,
        /// Where `replay` begins: the stream's position, or that of the snapshot.
        head: Position,
        /// They had everything up to their own position, and `replay` goes on from there.
        recovered: bool,
        /// What they start from, unless they have recovered, or there is none.
        snapshot: Option<Arc<Snapshot>>,
        /// What they missed, oldest first.
        replay: Vec<Message>,
    },
    /// Send an event to every joined member.
    Deliver(Message),
    /// Events that were lost on the way were found in the log, and were delivered.
    Filled,
    /// Tell every joined member to replace its state, for events are gone, and send it `replay`.
    Resync {
        /// Where `replay` begins.
        head: Position,
        /// What they start from.
        snapshot: Option<Arc<Snapshot>>,
        /// The events since.
        replay: Vec<Message>,
    },
    /// Send a snapshot to the joined members that lack a part which it has. No event is missing: they have everything up to
    /// `head`.
    Complete {
        /// The position of every joined member.
        head: Position,
        /// What they start from.
        snapshot: Arc<Snapshot>,
    },
    /// Tell every member, joined or waiting, that events may be late or missing.
    Degraded(Outage),
    /// Tell every member that the outage is over.
    Restored(Outage),
}

/// A member whose join is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newcomer {
    /// Its socket.
    pub member: SocketId,
    /// It named a position.
    pub resumed: bool,
}
