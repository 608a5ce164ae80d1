//! A room's snapshot on its way: one query for all who join meanwhile, and for a second after it was asked for.
//!
//! The order makes it right: first the room's position is known, then the database is asked. So the snapshot has everything up to
//! that position, perhaps more, and whoever gets it also gets every event after the position: nothing is missed, and what is in both
//! names itself (a payment by its id).

use std::sync::Arc;

use publisher::Message;

use super::room::{MemberId, hold};
use crate::engine::{Position, Ticket};
use crate::snapshots::Snapshot;

/// A member whose join is answered with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newcomer {
    /// Who joins.
    pub member: MemberId,
    /// Whether it named a position.
    pub resumed: bool,
}

/// A snapshot that was asked for, or has come.
#[derive(Debug)]
pub(super) struct Load {
    pub ticket: Ticket,
    /// The room's position before the database was asked.
    pub at: Position,
    /// The room's events after that.
    pub since: Vec<Message>,
    /// There were more than can be kept.
    overrun: bool,
    /// Who waits for it.
    pub newcomers: Vec<Newcomer>,
    /// The joined members wait for it too, and were last at this position: events are missing that nobody has.
    pub resync: Option<Position>,
    /// It has come, and is good for others.
    pub snapshot: Option<Arc<Snapshot>>,
    /// A second is over.
    stale: bool,
}

impl Load {
    pub fn new(ticket: Ticket, at: Position) -> Self {
        Self {
            ticket,
            at,
            since: Vec::new(),
            overrun: false,
            newcomers: Vec::new(),
            resync: None,
            snapshot: None,
            stale: false,
        }
    }

    /// The room has taken an event up.
    pub fn record(&mut self, message: &Message) {
        self.overrun |= !hold(&mut self.since, message.clone());
    }

    /// Whether what comes, or has come, can be handed out.
    pub fn is_whole(&self) -> bool {
        !self.overrun
    }

    /// Whether a newcomer can be answered at once.
    pub fn is_fresh(&self) -> bool {
        self.snapshot.is_some() && !self.overrun && !self.stale
    }

    /// Too old for anybody else.
    pub fn expire(&mut self) {
        self.stale = true;
    }
}
