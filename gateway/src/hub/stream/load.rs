//! The snapshot that members start from: one query for all that join while it runs, and for a second after it was asked for.
//!
//! The order makes it right: first the stream's position is known, then the database is asked. So the snapshot has everything
//! up to that position, perhaps more, and a member that gets it also gets every event after the position. No event is missed,
//! and what is in both carries an id (a payment's), by which the client knows it.

use std::sync::Arc;

use super::effect::{Effect, Newcomer};
use super::state::{Hold, Load, Purpose, Recipients, Stream};
use crate::engine::Position;
use crate::socket::snapshot::{Parts, Snapshot};

impl Stream {
    /// The snapshot that was asked for last has come.
    pub(super) fn loaded(&mut self, snapshot: Arc<Snapshot>) {
        let Some(load) = &mut self.load else { return };
        if load.overrun {
            // Too many events came since: ask again, from here. Those that were not delivered are lost to the joined members.
            if load.hold.is_some() {
                load.recipients = Recipients::Everybody;
            }
            self.reload();
            return;
        }
        load.snapshot = Some(snapshot.clone());
        let (head, replay) = (load.at.clone(), load.since.clone());
        let newcomers = std::mem::take(&mut load.newcomers);
        let recipients = std::mem::replace(&mut load.recipients, Recipients::Nobody);
        let hold = load.hold.take();
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
                if helps && (hold.is_some() || replay.is_empty()) {
                    self.effects.push_back(Effect::Complete { head: head.clone(), snapshot: snapshot.clone() });
                } else if helps {
                    ask_again = Some(parts);
                }
                if hold.is_some() {
                    self.effects.extend(replay.iter().cloned().map(Effect::Deliver));
                }
            }
            Recipients::Nobody => {}
        }
        if !newcomers.is_empty() {
            let snapshot = Some(snapshot);
            self.effects.push_back(Effect::Joined { newcomers, head, recovered: false, snapshot, replay });
        }
        if hold.is_some_and(|hold| hold.purpose == Purpose::EndOutage) {
            self.end_outage();
        }
        if let Some(parts) = ask_again {
            // The members have been sent events that the snapshot may lack. Postgres answers at the moment: the next answer
            // comes before the members are sent anything else.
            let at = self.position().cloned();
            self.hold_until_loaded(at, Recipients::Lacking(parts));
        }
    }

    /// Asks for parts of a snapshot that joined members lack.
    pub(super) fn complete(&mut self, parts: Parts) {
        if self.load.as_ref().is_none_or(|load| load.snapshot.is_some()) {
            self.reload();
        }
        let Some(load) = &mut self.load else { return };
        load.recipients = match load.recipients {
            Recipients::Nobody => Recipients::Lacking(parts),
            Recipients::Lacking(others) => Recipients::Lacking(others.or(parts)),
            Recipients::Everybody => Recipients::Everybody,
        };
    }

    /// The joined members' position while nothing is delivered to them.
    pub(super) fn held_at(&self) -> Option<&Position> {
        self.load.as_ref()?.hold.as_ref().map(|hold| &hold.at)
    }

    /// Ends an outage: at once, or with the snapshot that the joined members wait for.
    pub(super) fn end_outage(&mut self) {
        match self.load.as_mut().and_then(|load| load.hold.as_mut()) {
            Some(hold) => hold.purpose = Purpose::EndOutage,
            None => self.effects.extend(self.outage.take().map(Effect::Restored)),
        }
    }

    /// Lets a newcomer's answer come with the next snapshot.
    pub(super) fn await_snapshot(&mut self, newcomer: Newcomer) {
        if self.load.as_ref().is_none_or(|load| load.snapshot.is_some()) {
            self.reload();
        }
        let Some(load) = &mut self.load else { return };
        load.newcomers.push(newcomer);
        self.effects.push_back(Effect::Waits(newcomer.member));
    }

    /// Asks for a snapshot. The joined members, who are at this position, are sent nothing before it has come.
    pub(super) fn hold_until_loaded(&mut self, at: Option<Position>, recipients: Recipients) {
        if let (Some(load), Some(at)) = (self.reload(), at) {
            load.recipients = recipients;
            load.hold.get_or_insert(Hold { at, purpose: Purpose::Compare });
        }
    }

    /// Asks for a snapshot as of now, for all that waited for the one before.
    fn reload(&mut self) -> Option<&mut Load> {
        let at = self.position()?.clone();
        let ticket = self.tickets.issue();
        let mut load = Load::new(ticket, at);
        if let Some(before) = self.load.take() {
            load.newcomers = before.newcomers;
            load.recipients = before.recipients;
            load.hold = before.hold;
        }
        self.effects.push_back(Effect::Load(ticket));
        Some(self.load.insert(load))
    }
}
