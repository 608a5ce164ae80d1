//! The model of what is behind the engine.

use std::collections::VecDeque;

use publisher::internals::{Epoch, Message, MessageType};
use publisher::{DashboardEventType, EventId};

use crate::engine::{Known, Position, Reading};

/// Small, so that histories run past its end.
const LOG_LENGTH: usize = 6;

/// A server with a counter, a log and a database behind it.
#[derive(Default)]
pub struct Server {
    epochs: u32,
    ids: u32,
    /// The events of this epoch, of which the log keeps the newest.
    pub events: Vec<Message>,
    pub log: VecDeque<Message>,
    /// How far this epoch has ever come: the database forgets nothing of what Redis loses.
    pub furthest: u64,
    /// Events that were published elsewhere: the database has them, and no stream.
    pub strays: u32,
}

impl Server {
    pub fn epoch(&self) -> Epoch {
        format!("e{}", self.epochs).parse().unwrap()
    }

    pub fn head(&self) -> Position {
        let last = self.events.last();
        Position { epoch: self.epoch(), seq: self.events.len() as u64, id: last.map(|last| last.id.clone()) }
    }

    pub fn publish(&mut self) -> Message {
        self.ids += 1;
        let Position { epoch, seq, id: previous } = self.head();
        let id: EventId = format!("id{}", self.ids).parse().unwrap();
        let event_type = MessageType::Known(DashboardEventType::PaymentReceived);
        let message = Message { epoch, seq: seq + 1, id, previous, event_type, published_micros: 0, json: "{}".into() };
        self.events.push(message.clone());
        self.furthest = self.furthest.max(message.seq);
        self.log.push_back(message.clone());
        if self.log.len() > LOG_LENGTH {
            self.log.pop_front();
        }
        message
    }

    pub fn begin_epoch(&mut self) {
        self.epochs += 1;
        self.furthest = 0;
        self.events.clear();
        self.log.clear();
    }

    /// What position.lua does.
    pub fn read(&mut self, after: Option<&Known>) -> Reading {
        let Some(Known::Room(at) | Known::Client(at)) = after else {
            return Reading { head: self.head(), events: Vec::new() };
        };
        let events = |server: &Self| -> Vec<Message> {
            if at.epoch != server.epoch() {
                return Vec::new();
            }
            server.log.iter().filter(|message| message.seq > at.seq).cloned().collect()
        };
        if matches!(after, Some(Known::Room(_))) && at.epoch == self.epoch() {
            let head = self.head();
            let linked = events(self).first().is_none_or(|next| next.seq != at.seq + 1 || next.previous == at.id);
            if head.seq < at.seq || (head.seq == at.seq && head.id != at.id) || !linked {
                self.begin_epoch();
            }
        }
        Reading { head: self.head(), events: events(self) }
    }

    /// The position is part of this history.
    pub fn knows(&self, at: &Position) -> bool {
        let id = (at.seq as usize).checked_sub(1).map(|index| self.events.get(index).map(|event| event.id.clone()));
        at.epoch == self.epoch() && id.is_none_or(|id| id.is_some() && (at.id.is_none() || at.id == id))
    }

    /// The log has every event after the position.
    pub fn reaches(&self, at: &Position) -> bool {
        let next = self.log.front().map_or(self.events.len() as u64, |first| first.seq - 1);
        self.knows(at) && at.seq >= next
    }
}
