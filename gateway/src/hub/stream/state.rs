//! What a stream remembers.

use std::collections::VecDeque;
use std::sync::Arc;

use publisher::internals::Message;

use super::chain::hold;
use super::effect::{Effect, Newcomer};
use crate::engine::{Outage, Position, Ticket};
use crate::socket::SocketId;
use crate::socket::snapshot::{Parts, Snapshot};

/// One tenant's stream.
///
/// Its promise: the effects `Joined`, `Deliver` and `Resync`, as one member sees them, are events without a gap, without a
/// duplicate and of one history, or they say that they are not.
///
/// Inputs:
/// - sockets: [`handle_join`](Self::handle_join), [`handle_leave`](Self::handle_leave);
/// - the engine: [`handle_message`](Self::handle_message), [`handle_reading`](Self::handle_reading) (the answer to
///   [`Effect::Subscribe`] and [`Effect::Read`]), [`handle_lost`](Self::handle_lost),
///   [`handle_returned`](Self::handle_returned), [`handle_stray`](Self::handle_stray);
/// - the database: [`handle_snapshot`](Self::handle_snapshot) (the answer to [`Effect::Load`]);
/// - the clock: [`handle_comparison_due`](Self::handle_comparison_due),
///   [`handle_snapshot_stale`](Self::handle_snapshot_stale), [`handle_parts_due`](Self::handle_parts_due).
///
/// Output: [`poll_effect`](Self::poll_effect), to be called after each input until it gives `None`. What an [`Effect`] asks
/// of the engine: `Subscribe`, `Read`; of the database: `Load`; of the sockets: `Joined`, `Deliver`, `Resync`, `Complete`,
/// `Degraded`, `Restored`; and facts for the room's own books: `Waits`, `Filled`.
#[derive(Debug)]
pub struct Stream {
    pub(super) phase: Phase,
    pub(super) waiting: Vec<Waiting>,
    /// The outage that the members have been told of.
    pub(super) outage: Option<Outage>,
    pub(super) tickets: Tickets,
    pub(super) start: Start,
    pub(super) load: Option<Load>,
    pub(super) effects: VecDeque<Effect>,
}

/// What a member starts from when it can't resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The stream's position alone.
    Position,
    /// A snapshot, and the events since.
    Snapshot,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Nothing is known until the engine has answered the subscription.
    Opening { ticket: Ticket, held: Vec<Message> },
    /// Every joined member has been sent everything up to `head`, and nothing else; or waits for a snapshot as of it.
    Live { head: Position, read: Option<Read> },
}

/// Tickets of one stream's life, rising. The generation keeps an answer to an earlier stream of the tenant apart from ours.
#[derive(Debug)]
pub(super) struct Tickets(pub Ticket);

impl Tickets {
    pub fn issue(&mut self) -> Ticket {
        self.0.0 += 1;
        self.0
    }
}

/// A member whose join isn't answered yet.
#[derive(Debug)]
pub(super) struct Waiting {
    pub member: SocketId,
    /// The member named a position.
    pub resumed: bool,
    /// That position, while it may be resumed from.
    pub resume: Option<Position>,
    pub stage: Stage,
}

impl Waiting {
    pub fn newcomer(&self) -> Newcomer {
        Newcomer { member: self.member, resumed: self.resumed }
    }
}

/// What an unanswered join waits for.
#[derive(Debug)]
pub(super) enum Stage {
    /// The answer to the subscription.
    Opening,
    /// The member names a position that the stream doesn't know: an answer to a read of the stream's own that was asked
    /// after this ticket.
    Proof { after: Ticket },
    /// The log after the member's position; `since` is what the stream accepted meanwhile.
    Log { ticket: Ticket, since: Vec<Message> },
}

/// What the stream's position says about an unknown position that a member names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Nothing: the member may have seen later events, or a later epoch, through another gateway.
    MayBeOld,
    /// The position does not exist: the stream's own was read after the join.
    Proved,
}

/// The stream's own read; at most one is open.
#[derive(Debug)]
pub(super) struct Read {
    pub ticket: Ticket,
    pub purpose: Purpose,
    pub arrivals: Arrivals,
    /// Another read must follow, for this purpose: this one's answer may be older than the reason to ask.
    pub again: Option<Purpose>,
}

/// What an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// It shows whether events are missing.
    Compare,
    /// It also proves the position after an outage, which is over then.
    EndOutage,
}

/// What happens to messages while a read is open.
#[derive(Debug)]
pub(super) enum Arrivals {
    /// Nothing is wrong so far: they are delivered.
    Delivered,
    /// Something before them is missing: they are kept, in order. The first `covered` of them came before the read was
    /// asked, so that its answer covers them.
    Held { messages: Vec<Message>, covered: usize },
}

impl Arrivals {
    /// Messages that came before the read.
    pub fn held(messages: Vec<Message>) -> Self {
        let covered = messages.len();
        Self::Held { messages, covered }
    }

    /// The messages that the answer need not cover.
    pub fn uncovered(self) -> impl Iterator<Item = Message> {
        let (messages, covered) = match self {
            Self::Delivered => (Vec::new(), 0),
            Self::Held { messages, covered } => (messages, covered),
        };
        messages.into_iter().skip(covered)
    }
}

/// The joined members that a snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recipients {
    /// None of them.
    Nobody,
    /// Those that were answered without these parts.
    Lacking(Parts),
    /// All: they miss events that are in no log.
    Everybody,
}

/// A snapshot that was asked for, or has come.
#[derive(Debug)]
pub(super) struct Load {
    pub ticket: Ticket,
    /// The stream's position before the database was asked.
    pub at: Position,
    /// The events that the stream has accepted after that.
    pub since: Vec<Message>,
    /// There were more than can be kept.
    pub overrun: bool,
    /// Members whose joins wait for it.
    pub newcomers: Vec<Newcomer>,
    /// The joined members that get it.
    pub recipients: Recipients,
    /// Set while nothing is delivered to the joined members until it has come.
    pub hold: Option<Hold>,
    /// It has come, and is good for others.
    pub snapshot: Option<Arc<Snapshot>>,
    /// It was asked for too long ago for joins that come from now on.
    pub stale: bool,
}

/// The joined members wait for a snapshot.
#[derive(Debug)]
pub(super) struct Hold {
    /// The position up to which they have been sent everything.
    pub at: Position,
    /// An outage may be over with the snapshot: only then do the joined members have everything.
    pub purpose: Purpose,
}

impl Load {
    pub fn new(ticket: Ticket, at: Position) -> Self {
        Self {
            ticket,
            at,
            since: Vec::new(),
            overrun: false,
            newcomers: Vec::new(),
            recipients: Recipients::Nobody,
            hold: None,
            snapshot: None,
            stale: false,
        }
    }

    /// The stream has accepted an event.
    pub fn record(&mut self, message: &Message) {
        self.overrun |= !hold(&mut self.since, message.clone());
    }

    /// A newcomer can be answered at once.
    pub fn is_fresh(&self) -> bool {
        self.snapshot.is_some() && !self.overrun && !self.stale
    }
}
