//! The stream's own reads: they fill gaps, notice lost messages, and prove the position after an outage.

use publisher::internals::Message;

use super::chain::{follows, hold, position_of};
use super::effect::Effect;
use super::state::{Arrivals, Evidence, Phase, Purpose, Read, Recipients, Stage, Start, Stream};
use crate::engine::{Known, Position, Reading};

impl Stream {
    /// Asks the engine for the head, and for the log after the stream's position.
    pub(super) fn ask(&mut self, arrivals: Arrivals, purpose: Purpose) {
        let Phase::Live { head, read } = &mut self.phase else { return };
        let ticket = self.tickets.issue();
        *read = Some(Read { ticket, purpose, arrivals, again: None });
        self.effects.push_back(Effect::Read(ticket, Known::Room(head.clone())));
    }

    /// The subscription holds, and `head` is where it stands.
    pub(super) fn begin(&mut self, head: Position, held: Vec<Message>) {
        self.phase = Phase::Live { head: head.clone(), read: None };
        for waiting in std::mem::take(&mut self.waiting) {
            self.admit(waiting, Evidence::MayBeOld);
        }
        // Messages that came between the subscription and the reading are counted in the reading.
        let is_counted = |message: &Message| message.epoch == head.epoch && message.seq <= head.seq;
        let rest = held.into_iter().filter(|message| !is_counted(message));
        match self.accept_all(rest) {
            Ok(()) => self.end_outage(),
            Err(odd) => match &mut self.phase {
                // A join has just asked for it.
                Phase::Live { read: Some(read), .. } => {
                    (read.arrivals, read.purpose) = (Arrivals::held(odd), Purpose::EndOutage);
                }
                _ => self.ask(Arrivals::held(odd), Purpose::EndOutage),
            },
        }
    }

    /// The stream's own read is answered.
    pub(super) fn settle(&mut self, asked: Read, reading: Reading) {
        let known: Vec<_> = reading.events.iter().map(position_of).collect();
        self.catch_up(reading);

        // What was held before the read is part of the answer, or of a history that is over.
        let rest = asked.arrivals.uncovered().filter(|message| !known.contains(&position_of(message)));
        let purpose = asked.again.map_or(asked.purpose, |again| again.max(asked.purpose));
        match self.accept_all(rest) {
            Err(odd) => self.ask(Arrivals::held(odd), purpose),
            Ok(()) if asked.again.is_some() => self.ask(Arrivals::Delivered, purpose),
            Ok(()) if purpose == Purpose::EndOutage => self.end_outage(),
            Ok(()) => {}
        }
        self.admit_proved(asked.ticket);
    }

    /// Brings the stream to the reading's head: by the log's events, or by a resync.
    fn catch_up(&mut self, reading: Reading) {
        let Phase::Live { head, .. } = &self.phase else { return };
        let same = reading.head.epoch == head.epoch;
        if same && reading.head.seq <= head.seq {
            return; // up to date, or older than what was delivered while it was on its way
        }
        if same {
            let from = head.seq;
            let missing = reading.events.into_iter().filter(|event| event.seq > from);
            if self.accept_all(missing).is_ok() && self.position().is_some_and(|head| head.seq >= reading.head.seq) {
                self.effects.push_back(Effect::Filled);
                return;
            }
        }
        self.resync(reading.head);
    }

    /// Goes on from `to`, and tells the members that events are missing.
    pub(super) fn resync(&mut self, to: Position) {
        let before = self.head().cloned();
        if let Phase::Live { head, .. } = &mut self.phase {
            *head = to.clone();
        }
        match self.start {
            Start::Position => {
                self.effects.push_back(Effect::Resync { head: to, snapshot: None, replay: Vec::new() });
            }
            Start::Snapshot => self.hold_until_loaded(before, Recipients::Everybody),
        }
    }

    /// Delivers the message if it is the next one, drops it if it is the last one again, and gives it back otherwise.
    pub(super) fn accept(&mut self, message: Message) -> Result<(), Message> {
        let Phase::Live { head, .. } = &mut self.phase else { return Err(message) };
        if follows(head, &message) {
            *head = position_of(&message);
            for waiting in &mut self.waiting {
                if let Stage::Log { since, .. } = &mut waiting.stage {
                    hold(since, message.clone());
                }
            }
            if let Some(load) = &mut self.load {
                load.record(&message);
            }
            // Members that wait for a snapshot get the message behind it.
            if self.held_at().is_none() {
                self.effects.push_back(Effect::Deliver(message));
            }
            Ok(())
        } else if *head == position_of(&message) {
            Ok(())
        } else {
            Err(message)
        }
    }

    /// Accepts messages as long as they follow; gives back the first that doesn't, and all after it.
    fn accept_all(&mut self, messages: impl Iterator<Item = Message>) -> Result<(), Vec<Message>> {
        let mut messages = messages;
        while let Some(message) = messages.next() {
            if let Err(odd) = self.accept(message) {
                return Err(std::iter::once(odd).chain(messages).collect());
            }
        }
        Ok(())
    }

    /// A message doesn't follow: from now on messages are held, until the engine has answered.
    pub(super) fn suspect(&mut self, odd: Message) {
        match &mut self.phase {
            // The open read was asked before this came: its answer need not cover it.
            Phase::Live { read: Some(read), .. } => read.arrivals = Arrivals::Held { messages: vec![odd], covered: 0 },
            _ => self.ask(Arrivals::held(vec![odd]), Purpose::Compare),
        }
    }
}
