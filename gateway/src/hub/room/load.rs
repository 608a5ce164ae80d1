//! A room's snapshot on its way: one query for all who join meanwhile, and for a second after it was asked for.
//!
//! The order makes it right: first the room's position is known, then the database is asked. So the snapshot has everything up to
//! that position, perhaps more, and whoever gets it also gets every event after the position: nothing is missed, and what is in both
//! names itself (a payment by its id).

use std::sync::Arc;

use publisher::Message;

use super::{Effect, MemberId, Phase, Room, Waiting, hold};
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

    /// A newcomer's answer comes with it.
    fn await_by(&mut self, newcomer: Newcomer, effects: &mut Vec<Effect>) {
        self.newcomers.push(newcomer);
        effects.push(Effect::Waits(newcomer.member));
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

impl Room {
    /// The snapshot has come, or there is none.
    pub fn loaded(&mut self, ticket: Ticket, snapshot: Option<Arc<Snapshot>>, effects: &mut Vec<Effect>) {
        let Some(load) = self.load.as_mut().filter(|load| load.ticket == ticket) else { return };
        if !load.is_whole() {
            // Too much has happened since: ask again, from here.
            return self.reload(effects);
        }
        load.snapshot = snapshot.clone();
        let (head, replay) = (load.at.clone(), load.since.clone());
        let newcomers = std::mem::take(&mut load.newcomers);
        if load.resync.take().is_some() {
            let (head, snapshot, replay) = (head.clone(), snapshot.clone(), replay.clone());
            effects.push(Effect::Resync { head, snapshot, replay });
        }
        if !load.is_fresh() {
            self.load = None;
        }
        if !newcomers.is_empty() {
            effects.push(Effect::Joined { newcomers, head, recovered: false, snapshot, replay });
        }
    }

    /// A second after it was asked for: others need another snapshot.
    pub fn expire(&mut self, ticket: Ticket) {
        if let Some(load) = self.load.as_mut().filter(|load| load.ticket == ticket) {
            load.expire();
            if load.snapshot.is_some() {
                self.load = None;
            }
        }
    }

    /// Where the joined members stand while they wait for a snapshot.
    pub(super) fn resyncing(&self) -> Option<&Position> {
        self.load.as_ref()?.resync.as_ref()
    }

    /// Asks for a snapshot as of now, for whoever waits for the one before.
    pub(super) fn reload(&mut self, effects: &mut Vec<Effect>) {
        let Some(at) = self.position().cloned() else { return };
        let ticket = self.tickets.issue();
        let mut load = Load::new(ticket, at);
        if let Some(before) = self.load.take() {
            load.newcomers = before.newcomers;
            load.resync = before.resync;
        }
        self.load = Some(load);
        effects.push(Effect::Load(ticket));
    }

    /// Answers a join: with what leads from the member's position to the room's, or with a snapshot.
    pub(super) fn answer(&mut self, waiting: &Waiting, replay: Option<Vec<Message>>, effects: &mut Vec<Effect>) {
        let Phase::Live { head, .. } = &self.phase else { return };
        let head = head.clone();
        let newcomer = Newcomer { member: waiting.member, resumed: waiting.resume.is_some() };
        let newcomers = vec![newcomer];
        match (&mut self.load, replay) {
            // With the others, whose stream goes on from the snapshot only.
            (Some(load), _) if load.resync.is_some() => load.await_by(newcomer, effects),
            (_, Some(replay)) => {
                effects.push(Effect::Joined { newcomers, head, recovered: true, snapshot: None, replay });
            }
            (_, None) if !self.snapshots => {
                let replay = Vec::new();
                effects.push(Effect::Joined { newcomers, head, recovered: false, snapshot: None, replay });
            }
            (Some(load), None) if load.is_fresh() => {
                let (head, replay, snapshot) = (load.at.clone(), load.since.clone(), load.snapshot.clone());
                effects.push(Effect::Joined { newcomers, head, recovered: false, snapshot, replay });
            }
            (Some(load), None) if load.snapshot.is_none() => load.await_by(newcomer, effects),
            (_, None) => {
                self.reload(effects);
                self.load.iter_mut().for_each(|load| load.await_by(newcomer, effects));
            }
        }
    }
}
