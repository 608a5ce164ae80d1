//! The stream of one tenant: what was delivered, which joins wait, what may be missing. A state machine without I/O.
//!
//! One question decides: is a message the next one (same epoch, next number, linked to the last id)? Then it is delivered.
//! If not, it is old, or something before it is missing, or history was rewritten. The stream then holds the messages that
//! come and asks the engine for the head and for the log after its own position; the answer settles it: fill, or resync.

mod chain;
mod effect;
mod join;
mod load;
mod read;
mod state;

use std::collections::VecDeque;
use std::sync::Arc;

use publisher::internals::{Epoch, Message};

use crate::engine::{Outage, Position, Reading, Ticket};
use crate::socket::SocketId;
use crate::socket::snapshot::{Parts, Snapshot};
use chain::hold;
pub use chain::position_of;
pub use effect::{Effect, Newcomer};
use state::{Arrivals, Evidence, Phase, Purpose, Read, Stage, Tickets, Waiting};
pub use state::{Start, Stream};

impl Stream {
    /// Opens a stream; `generation` differs from that of any earlier stream of the tenant.
    pub fn open(generation: u32, start: Start) -> Self {
        let mut tickets = Tickets(Ticket(u64::from(generation) << 32));
        let ticket = tickets.issue();
        let phase = Phase::Opening { ticket, held: Vec::new() };
        let effects = VecDeque::from([Effect::Subscribe(ticket)]);
        Self { phase, waiting: Vec::new(), outage: None, tickets, start, load: None, effects }
    }

    /// The next thing to do, in order; `None` when nothing is left until the next input.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.effects.pop_front();
        if effect.is_none() {
            // Space for one effect stays: the usual input is a message that is delivered, and it must not allocate.
            self.effects.shrink_to(1);
        }
        effect
    }

    /// The position up to which the joined members have been sent everything; `None` while the stream opens.
    pub fn head(&self) -> Option<&Position> {
        self.held_at().or_else(|| self.position())
    }

    /// The position of the last event that the stream has accepted, delivered or held for a snapshot.
    fn position(&self) -> Option<&Position> {
        match &self.phase {
            Phase::Opening { .. } => None,
            Phase::Live { head, .. } => Some(head),
        }
    }

    /// The outage that the members have been told of.
    pub fn outage(&self) -> Option<&Outage> {
        self.outage.as_ref()
    }

    /// A socket wants to join, having seen everything up to `resume`.
    pub fn handle_join(&mut self, member: SocketId, resume: Option<Position>) {
        let waiting = Waiting { member, resumed: resume.is_some(), resume, stage: Stage::Opening };
        self.admit(waiting, Evidence::MayBeOld);
    }

    /// A socket has left. When its join was not answered yet: returns the read whose answer has become useless.
    pub fn handle_leave(&mut self, member: SocketId) -> Option<Ticket> {
        if let Some(load) = &mut self.load {
            load.newcomers.retain(|newcomer| newcomer.member != member);
        }
        let index = self.waiting.iter().position(|waiting| waiting.member == member)?;
        match self.waiting.swap_remove(index).stage {
            Stage::Log { ticket, .. } => Some(ticket),
            Stage::Opening | Stage::Proof { .. } => None,
        }
    }

    /// A message came on the tenant's channel.
    pub fn handle_message(&mut self, message: Message) {
        match &mut self.phase {
            Phase::Opening { held, .. } => {
                // What is dropped here is in the log, and the next message shows the gap.
                hold(held, message);
            }
            Phase::Live { read: Some(Read { arrivals: Arrivals::Held { messages, .. }, again, .. }), .. } => {
                if !hold(messages, message) {
                    again.get_or_insert(Purpose::Compare);
                }
            }
            Phase::Live { .. } => {
                if let Err(odd) = self.accept(message) {
                    self.suspect(odd);
                }
            }
        }
    }

    /// The engine answered a subscription or a read.
    pub fn handle_reading(&mut self, ticket: Ticket, reading: Reading) {
        match &mut self.phase {
            Phase::Opening { ticket: asked, held } if *asked == ticket => {
                let held = std::mem::take(held);
                self.begin(reading.head, held);
            }
            Phase::Live { read, .. } if read.as_ref().is_some_and(|read| read.ticket == ticket) => {
                if let Some(asked) = read.take() {
                    self.settle(asked, reading);
                }
            }
            // A member's read; or one of an earlier stream, or of a member that has left.
            _ => self.handle_member_reading(ticket, reading),
        }
    }

    /// Messages may have been lost without a trace: compare the position with the engine's.
    pub fn handle_comparison_due(&mut self) {
        if let Phase::Live { read: None, .. } = &self.phase {
            self.ask(Arrivals::Delivered, Purpose::Compare);
        }
    }

    /// The engine can't vouch for what it delivers.
    pub fn handle_lost(&mut self, outage: Outage) {
        // Answers that are on their way prove nothing about what comes after the loss.
        if let Phase::Live { read: Some(read), .. } = &mut self.phase {
            read.purpose = Purpose::Compare;
            read.again = read.again.map(|_| Purpose::Compare);
        }
        if let Some(hold) = self.load.as_mut().and_then(|load| load.hold.as_mut()) {
            hold.purpose = Purpose::Compare;
        }
        if self.outage.is_none() {
            self.outage = Some(outage.clone());
            self.effects.push_back(Effect::Degraded(outage));
        }
    }

    /// The subscription holds again: prove the position, then end the outage.
    pub fn handle_returned(&mut self) {
        match &mut self.phase {
            // The answer to the subscription is still to come, and is proof enough.
            Phase::Opening { .. } => {}
            Phase::Live { read: Some(read), .. } => read.again = Some(Purpose::EndOutage),
            Phase::Live { read: None, .. } => self.ask(Arrivals::Delivered, Purpose::EndOutage),
        }
    }

    /// Events were published to a server that the tenant has left: no stream has them, so the members replace their state.
    /// Events of the stream's own `epoch` change nothing: either they are copies, or the stream has yet to learn of the new
    /// server's epoch, and resyncs then.
    pub fn handle_stray(&mut self, epoch: Option<&Epoch>) {
        let head = self.position().cloned();
        if head.as_ref().is_some_and(|head| epoch == Some(&head.epoch)) {
            return;
        }
        // A join that is not answered yet can't resume from its position either.
        self.waiting.iter_mut().for_each(|waiting| waiting.resume = None);
        if let Some(head) = head {
            self.resync(head);
        }
    }

    /// The snapshot has come, as far as it could be had.
    pub fn handle_snapshot(&mut self, ticket: Ticket, snapshot: Arc<Snapshot>) {
        if self.load.as_ref().is_some_and(|load| load.ticket == ticket) {
            self.loaded(snapshot);
        }
    }

    /// The snapshot was asked for too long ago: later joins need another one.
    pub fn handle_snapshot_stale(&mut self, ticket: Ticket) {
        if let Some(load) = self.load.as_mut().filter(|load| load.ticket == ticket) {
            load.stale = true;
            if load.snapshot.is_some() {
                self.load = None;
            }
        }
    }

    /// Joined members were answered without these parts of a snapshot: ask for them.
    pub fn handle_parts_due(&mut self, parts: Parts) {
        self.complete(parts);
    }
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
