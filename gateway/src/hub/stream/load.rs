//! A room's snapshot on its way: one query for all who join meanwhile, and for a second after it was asked for.
//!
//! The order makes it right: first the room's position is known, then the database is asked. So the snapshot has everything up to
//! that position, perhaps more, and whoever gets it also gets every event after the position: nothing is missed, and what is in both
//! names itself (a payment by its id).

use std::collections::VecDeque;
use std::sync::Arc;

use publisher::internals::Message;

use super::{Effect, Phase, Start, Stream, Waiting, hold};
use crate::engine::{Position, Ticket};
use crate::socket::SocketId;
use crate::socket::snapshot::{Parts, Snapshot};

/// A member whose join is answered with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newcomer {
    /// Who joins.
    pub member: SocketId,
    /// Whether it named a position.
    pub resumed: bool,
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
    /// The room's position before the database was asked.
    pub at: Position,
    /// The room's events after that.
    pub since: Vec<Message>,
    /// There were more than can be kept.
    overrun: bool,
    /// Who waits for it.
    pub newcomers: Vec<Newcomer>,
    /// The joined members that get it.
    pub recipients: Recipients,
    /// Nothing is delivered to the joined members until it has come: they were last at this position.
    pub holds: Option<Position>,
    /// An outage is over with it: only then do the joined members have everything.
    pub restores: bool,
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
            recipients: Recipients::Nobody,
            holds: None,
            restores: false,
            snapshot: None,
            stale: false,
        }
    }

    /// The room has taken an event up.
    pub fn record(&mut self, message: &Message) {
        self.overrun |= !hold(&mut self.since, message.clone());
    }

    /// A newcomer's answer comes with it.
    fn await_by(&mut self, newcomer: Newcomer, effects: &mut VecDeque<Effect>) {
        self.newcomers.push(newcomer);
        effects.push_back(Effect::Waits(newcomer.member));
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

impl Stream {
    /// The snapshot has come, as far as it could be had.
    pub fn handle_snapshot(&mut self, ticket: Ticket, snapshot: Arc<Snapshot>) {
        let Some(load) = self.load.as_mut().filter(|load| load.ticket == ticket) else { return };
        if load.overrun {
            // Too much has happened since: ask again, from here. What was not delivered in the meantime is lost to the members.
            if load.holds.is_some() {
                load.recipients = Recipients::Everybody;
            }
            return self.reload();
        }
        load.snapshot = Some(snapshot.clone());
        let (head, replay) = (load.at.clone(), load.since.clone());
        let newcomers = std::mem::take(&mut load.newcomers);
        let recipients = std::mem::replace(&mut load.recipients, Recipients::Nobody);
        let held = load.holds.take().is_some();
        let restores = std::mem::take(&mut load.restores);
        if !load.is_fresh() {
            self.load = None;
        }
        let mut ask_again = None;
        match recipients {
            Recipients::Everybody => {
                let (head, snapshot, replay) = (head.clone(), Some(snapshot.clone()), replay.clone());
                self.effects.push_back(Effect::Resync { head, snapshot, replay });
            }
            Recipients::Lacking(parts) => {
                let helps = parts.and(snapshot.missing) != parts;
                if helps && (held || replay.is_empty()) {
                    self.effects.push_back(Effect::Complete { head: head.clone(), snapshot: snapshot.clone() });
                } else if helps {
                    ask_again = Some(parts);
                }
                if held {
                    self.effects.extend(replay.iter().cloned().map(Effect::Deliver));
                }
            }
            Recipients::Nobody => {}
        }
        if !newcomers.is_empty() {
            self.effects.push_back(Effect::Joined {
                newcomers,
                head,
                recovered: false,
                snapshot: Some(snapshot),
                replay,
            });
        }
        if restores {
            self.restored();
        }
        if let Some(parts) = ask_again {
            // The members have been sent events that the snapshot may lack. Postgres answers at the moment: the next answer comes
            // before the members are sent anything else.
            let holds = self.position().cloned();
            self.reload();
            if let Some(load) = &mut self.load {
                (load.recipients, load.holds) = (Recipients::Lacking(parts), holds);
            }
        }
    }

    /// Joined members were answered without these parts of a snapshot: ask for them.
    pub fn handle_parts_due(&mut self, parts: Parts) {
        if self.load.as_ref().is_none_or(|load| load.snapshot.is_some()) {
            self.reload();
        }
        if let Some(load) = &mut self.load {
            load.recipients = match load.recipients {
                Recipients::Nobody => Recipients::Lacking(parts),
                Recipients::Lacking(others) => Recipients::Lacking(others.or(parts)),
                Recipients::Everybody => Recipients::Everybody,
            };
        }
    }

    /// A second after it was asked for: others need another snapshot.
    pub fn handle_snapshot_stale(&mut self, ticket: Ticket) {
        if let Some(load) = self.load.as_mut().filter(|load| load.ticket == ticket) {
            load.expire();
            if load.snapshot.is_some() {
                self.load = None;
            }
        }
    }

    /// Where the joined members stand while nothing is delivered to them.
    pub(super) fn holding(&self) -> Option<&Position> {
        self.load.as_ref()?.holds.as_ref()
    }

    /// Says that an outage is over: at once, or with the snapshot that the joined members wait for.
    pub(super) fn restored(&mut self) {
        match self.load.as_mut().filter(|load| load.holds.is_some()) {
            Some(load) => load.restores = true,
            None => self.effects.extend(self.outage.take().map(Effect::Restored)),
        }
    }

    /// Asks for a snapshot as of now, for whoever waits for the one before.
    pub(super) fn reload(&mut self) {
        let Some(at) = self.position().cloned() else { return };
        let ticket = self.tickets.issue();
        let mut load = Load::new(ticket, at);
        if let Some(before) = self.load.take() {
            load.newcomers = before.newcomers;
            load.recipients = before.recipients;
            load.holds = before.holds;
            load.restores = before.restores;
        }
        self.load = Some(load);
        self.effects.push_back(Effect::Load(ticket));
    }

    /// Answers a join: with what leads from the member's position to the room's, or with a snapshot.
    pub(super) fn answer(&mut self, waiting: &Waiting, replay: Option<Vec<Message>>) {
        let Phase::Live { head, .. } = &self.phase else { return };
        let head = head.clone();
        let newcomer = Newcomer { member: waiting.member, resumed: waiting.resumed };
        let newcomers = vec![newcomer];
        match (&mut self.load, replay) {
            // With the others, whose stream goes on from the snapshot only.
            (Some(load), _) if load.holds.is_some() => load.await_by(newcomer, &mut self.effects),
            (_, Some(replay)) => {
                self.effects.push_back(Effect::Joined { newcomers, head, recovered: true, snapshot: None, replay });
            }
            (_, None) if self.start == Start::Position => {
                let replay = Vec::new();
                self.effects.push_back(Effect::Joined { newcomers, head, recovered: false, snapshot: None, replay });
            }
            (Some(load), None) if load.is_fresh() => {
                let (head, replay, snapshot) = (load.at.clone(), load.since.clone(), load.snapshot.clone());
                self.effects.push_back(Effect::Joined { newcomers, head, recovered: false, snapshot, replay });
            }
            (Some(load), None) if load.snapshot.is_none() => load.await_by(newcomer, &mut self.effects),
            (_, None) => {
                self.reload();
                self.load.iter_mut().for_each(|load| load.await_by(newcomer, &mut self.effects));
            }
        }
    }
}
