//! One tenant's room: what has been delivered, who waits to join, what may be missing. A state machine without I/O.
//!
//! Inputs are methods, outputs are [`Effect`]s for the shard to carry out in their order. The room keeps one promise: the
//! effects `Joined`, `Deliver` and `Resync`, as one member sees them, are a stream without a gap, without a duplicate and
//! of one history, or say that they are not.
//!
//! One question decides: is a message the next one (same epoch, next number, linked to the last id)? Then it is delivered.
//! If not, it is old, or something before it is missing, or history was rewritten. The room then holds whatever comes and
//! asks the engine for the head and for the log after its own position; the answer settles it: fill, or resync.

mod load;

use std::collections::VecDeque;
use std::sync::Arc;

use publisher::internals::{Epoch, Message};

use crate::engine::{Known, Outage, Position, Reading, Ticket};
use crate::socket::SocketId;
use crate::socket::snapshot::Snapshot;
pub use load::Newcomer;
use load::{Load, Recipients};

/// Messages held while a read is under way. Beyond it the newest are dropped, and another read finds them in the log.
const MAX_HELD: usize = 1024;

/// What the shard must do, in order.
#[derive(Debug)]
pub enum Effect {
    /// Ask the engine to receive the tenant's events.
    Subscribe(Ticket),
    /// Ask the engine for the head, and the log after a position.
    Read(Ticket, Known),
    /// Read the tenant's snapshot; nothing up to the room's present position may be missing in it.
    Load(Ticket),
    /// This member's answer waits for the snapshot, and for nothing else.
    Waits(SocketId),
    /// Answer these members' joins, send them `replay`, and from then on everything that is delivered.
    Joined {
        /// Who joined.
        newcomers: Vec<Newcomer>,
        /// Where `replay` begins: the room's position, or that of the snapshot.
        head: Position,
        /// Whether they had everything up to their own position, and `replay` goes on from there.
        recovered: bool,
        /// What they start from, unless they have recovered, or there is none.
        snapshot: Option<Arc<Snapshot>>,
        /// What they missed, oldest first.
        replay: Vec<Message>,
    },
    /// Send an event to every joined member.
    Deliver(Message),
    /// Events that were lost on the way were found in the log (and were delivered).
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
    /// Send these to the joined members that were answered without a part of them: nothing is missing, they have everything up to `head`.
    Complete {
        /// The position of every joined member.
        head: Position,
        /// What they start from.
        snapshot: Arc<Snapshot>,
    },
    /// Tell everybody, joined or waiting, that delivery can't be vouched for.
    Degraded(Outage),
    /// Tell them that it can be again.
    Restored(Outage),
}

/// What members start from that can't resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The room's position alone.
    Position,
    /// A snapshot, and the events since.
    Snapshot,
}

/// A tenant's stream.
#[derive(Debug)]
pub struct Stream {
    phase: Phase,
    waiting: Vec<Waiting>,
    outage: Option<Outage>,
    tickets: Tickets,
    start: Start,
    load: Option<Load>,
    effects: VecDeque<Effect>,
}

#[derive(Debug)]
enum Phase {
    /// Nothing is known until the engine has answered the subscription.
    Opening { ticket: Ticket, held: Vec<Message> },
    /// Every joined member has been sent everything up to `head`, and nothing else.
    Live { head: Position, read: Option<Read> },
}

/// The room's own question to the engine; at most one is open.
#[derive(Debug)]
struct Read {
    ticket: Ticket,
    /// What came since something was found wrong, in order. `None` while nothing is: messages are delivered meanwhile.
    held: Option<Vec<Message>>,
    /// How many of `held` came before the question was asked, so that its answer is sure to cover them.
    covered: usize,
    /// The answer proves the position after an outage.
    restores: bool,
    /// Ask once more afterwards, since the answer may be older than the reason to ask; with its own `restores`.
    again: Option<bool>,
}

/// A member whose join isn't answered yet.
#[derive(Debug)]
struct Waiting {
    member: SocketId,
    /// Whether the member named a position.
    resumed: bool,
    /// That position, while it may be resumed from.
    resume: Option<Position>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Until the subscription is answered.
    Opening,
    /// The member claims a position that the room doesn't know: until a question asked after this ticket is answered.
    Proof { asked: Ticket },
    /// Until the log after the member's position is read; `since` is what the room delivered meanwhile.
    Log { ticket: Ticket, since: Vec<Message> },
}

/// Tickets of one room's life, rising. The generation keeps an answer to an earlier room of the tenant apart from ours.
#[derive(Debug)]
struct Tickets(Ticket);

impl Tickets {
    fn issue(&mut self) -> Ticket {
        self.0.0 += 1;
        self.0
    }
}

impl Stream {
    /// Opens a room; `generation` differs from that of any earlier room of the tenant.
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
            // The space for one effect stays, so that a message that is delivered costs no allocation.
            self.effects.shrink_to(1);
        }
        effect
    }

    /// The position up to which the joined members have been sent everything; `None` while the room opens.
    pub fn head(&self) -> Option<&Position> {
        self.holding().or_else(|| self.position())
    }

    /// The position up to which the room has taken everything up.
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
        self.admit(Waiting { member, resumed: resume.is_some(), resume, stage: Stage::Opening }, false);
    }

    /// A member is gone whose join was not answered; returns the question whose answer nobody waits for any more.
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
            Phase::Live { read: Some(Read { held: Some(held), again, .. }), .. } => {
                if !hold(held, message) {
                    again.get_or_insert(false);
                }
            }
            Phase::Live { .. } => {
                if let Err(odd) = self.step(message) {
                    self.look(odd);
                }
            }
        }
    }

    /// The engine answered.
    pub fn handle_reading(&mut self, ticket: Ticket, reading: Reading) {
        match &mut self.phase {
            Phase::Opening { ticket: asked, held } if *asked == ticket => {
                let held = std::mem::take(held);
                self.opened(reading.head, held);
            }
            Phase::Live { read, .. } if read.as_ref().is_some_and(|read| read.ticket == ticket) => {
                if let Some(asked) = read.take() {
                    self.settle(asked, reading);
                }
            }
            // A member's question; or one of a room or a member that is gone.
            _ => self.catch_up(ticket, reading),
        }
    }

    /// Compare the position with the engine's: messages may have been lost without a trace.
    pub fn handle_comparison_due(&mut self) {
        if let Phase::Live { read: None, .. } = &self.phase {
            self.ask(None, false);
        }
    }

    /// The engine can't vouch for what it delivers.
    pub fn handle_lost(&mut self, outage: Outage) {
        if let Phase::Live { read: Some(read), .. } = &mut self.phase {
            read.restores = false;
            read.again = read.again.map(|_| false);
        }
        if let Some(load) = &mut self.load {
            load.restores = false;
        }
        if self.outage.is_none() {
            self.outage = Some(outage.clone());
            self.effects.push_back(Effect::Degraded(outage));
        }
    }

    /// Events were published to a server that the tenant has left: no stream has them, so the members replace their state.
    /// Events of the room's own `epoch` change nothing: either they are copies, or the room has yet to learn of the new server's
    /// epoch, and resyncs then.
    pub fn handle_stray(&mut self, epoch: Option<&Epoch>) {
        // A join that is not answered yet can't resume from its position either.
        let forget = |waiting: &mut Vec<Waiting>| waiting.iter_mut().for_each(|waiting| waiting.resume = None);
        match &self.phase {
            Phase::Opening { .. } => forget(&mut self.waiting),
            Phase::Live { head, .. } if epoch == Some(&head.epoch) => {}
            Phase::Live { head, .. } => {
                let head = head.clone();
                forget(&mut self.waiting);
                self.resync(head);
            }
        }
    }

    /// Subscriptions hold again: prove the position, then say so.
    pub fn handle_returned(&mut self) {
        match &mut self.phase {
            // The answer to the subscription is still to come, and is proof enough.
            Phase::Opening { .. } => {}
            Phase::Live { read: Some(read), .. } => read.again = Some(true),
            Phase::Live { read: None, .. } => self.ask(None, true),
        }
    }

    /// Delivers the message if it is the next one, drops it if it is the last one again, and gives it back otherwise.
    fn step(&mut self, message: Message) -> Result<(), Message> {
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
            // Members that wait for a snapshot get it with that.
            if self.holding().is_none() {
                self.effects.push_back(Effect::Deliver(message));
            }
            Ok(())
        } else if *head == position_of(&message) {
            Ok(())
        } else {
            Err(message)
        }
    }

    /// A message doesn't fit: from now on hold what comes, until the engine has answered.
    fn look(&mut self, odd: Message) {
        match &mut self.phase {
            // The open question was asked before this came: its answer need not cover it.
            Phase::Live { read: Some(read), .. } => read.held = Some(vec![odd]),
            _ => self.ask(Some(vec![odd]), false),
        }
    }

    fn ask(&mut self, held: Option<Vec<Message>>, restores: bool) {
        let Phase::Live { head, read } = &mut self.phase else { return };
        let ticket = self.tickets.issue();
        let covered = held.as_ref().map_or(0, Vec::len);
        *read = Some(Read { ticket, held, covered, restores, again: None });
        self.effects.push_back(Effect::Read(ticket, Known::Room(head.clone())));
    }

    /// The subscription holds, and this is where the stream stands.
    fn opened(&mut self, head: Position, held: Vec<Message>) {
        self.phase = Phase::Live { head: head.clone(), read: None };
        for waiting in std::mem::take(&mut self.waiting) {
            self.admit(waiting, false);
        }
        // Between the subscription and the reading messages came that the reading counts already.
        let counted = |message: &Message| message.epoch == head.epoch && message.seq <= head.seq;
        let rest = held.into_iter().filter(|message| !counted(message));
        match self.take_up(rest) {
            Ok(()) => self.restored(),
            Err(odd) => self.ask(Some(odd), true),
        }
    }

    /// The room's own question is answered.
    fn settle(&mut self, asked: Read, reading: Reading) {
        let known: Vec<_> = reading.events.iter().map(position_of).collect();
        self.fill(reading);

        // What was held before the question was asked is part of the answer, or of a history that is over.
        let held = asked.held.unwrap_or_default().into_iter().skip(asked.covered);
        let rest = held.filter(|message| !known.contains(&position_of(message)));
        let restores = asked.restores || asked.again == Some(true);
        match self.take_up(rest) {
            Err(odd) => self.ask(Some(odd), restores),
            Ok(()) if asked.again.is_some() => self.ask(None, restores),
            Ok(()) if restores => self.restored(),
            Ok(()) => {}
        }

        let proved =
            |waiting: &mut Waiting| matches!(waiting.stage, Stage::Proof { asked: before } if before < asked.ticket);
        for waiting in self.waiting.extract_if(.., proved).collect::<Vec<_>>() {
            self.admit(waiting, true);
        }
    }

    /// Brings the room to the reading's head: by the log's events, or by telling everybody that it can't be done.
    fn fill(&mut self, reading: Reading) {
        let Phase::Live { head, .. } = &self.phase else { return };
        let same = reading.head.epoch == head.epoch;
        if same && reading.head.seq <= head.seq {
            return; // up to date, or older than what was delivered while it was on its way
        }
        if same {
            let from = head.seq;
            let missing = reading.events.into_iter().filter(|event| event.seq > from);
            if self.take_up(missing).is_ok() && self.position().is_some_and(|head| head.seq >= reading.head.seq) {
                self.effects.push_back(Effect::Filled);
                return;
            }
        }
        self.resync(reading.head);
    }

    /// Goes on from `to`, and tells everybody that events are missing.
    fn resync(&mut self, to: Position) {
        let before = self.head().cloned();
        if let Phase::Live { head, .. } = &mut self.phase {
            *head = to.clone();
        }
        if self.start == Start::Snapshot {
            self.reload();
            if let Some(load) = &mut self.load {
                (load.recipients, load.holds) = (Recipients::Everybody, before);
            }
        } else {
            self.effects.push_back(Effect::Resync { head: to, snapshot: None, replay: Vec::new() });
        }
    }

    /// Delivers messages as long as they follow; gives back the first that doesn't, and all after it.
    fn take_up(&mut self, messages: impl Iterator<Item = Message>) -> Result<(), Vec<Message>> {
        let mut messages = messages;
        while let Some(message) = messages.next() {
            if let Err(odd) = self.step(message) {
                return Err(std::iter::once(odd).chain(messages).collect());
            }
        }
        Ok(())
    }

    /// Answers a join, or says what must be known first. `proved`: the room's position is newer than the join.
    fn admit(&mut self, mut waiting: Waiting, proved: bool) {
        let Phase::Live { head, .. } = &self.phase else {
            self.waiting.push(waiting);
            return;
        };
        let Some(at) = &waiting.resume else {
            self.answer(&waiting, None);
            return;
        };
        if at.epoch == head.epoch && at.seq < head.seq {
            let ticket = self.tickets.issue();
            self.effects.push_back(Effect::Read(ticket, Known::Client(at.clone())));
            waiting.stage = Stage::Log { ticket, since: Vec::new() };
            self.waiting.push(waiting);
        } else if at.epoch == head.epoch && at.seq == head.seq {
            let same = at.id.is_none() || head.id.is_none() || at.id == head.id;
            self.answer(&waiting, same.then(Vec::new));
        } else if proved {
            self.answer(&waiting, None);
        } else {
            // Another gateway may have shown it events, or an epoch, that this room has yet to hear of.
            self.prove(waiting);
        }
    }

    /// The log after a member's position was read.
    fn catch_up(&mut self, ticket: Ticket, reading: Reading) {
        let asks = |waiting: &Waiting| matches!(&waiting.stage, Stage::Log { ticket: asked, .. } if *asked == ticket);
        let Some(index) = self.waiting.iter().position(asks) else { return };
        let mut waiting = self.waiting.swap_remove(index);
        let Phase::Live { head, .. } = &self.phase else { return };
        let Stage::Log { since, .. } = std::mem::replace(&mut waiting.stage, Stage::Opening) else { return };

        if reading.head.epoch != head.epoch {
            // One of the two is about to change: find out which before judging the member.
            self.prove(waiting);
        } else {
            let replay = waiting.resume.as_ref().and_then(|at| bridge(at, head, reading.events, since));
            self.answer(&waiting, replay);
        }
    }

    /// Lets a member wait for an answer to a question that is asked from now on.
    fn prove(&mut self, mut waiting: Waiting) {
        waiting.stage = Stage::Proof { asked: self.tickets.0 };
        self.waiting.push(waiting);
        match &mut self.phase {
            Phase::Live { read: Some(read), .. } => {
                read.again.get_or_insert(false);
            }
            _ => self.ask(None, false),
        }
    }
}

/// The events that lead from `from` to `to` without a gap, out of the log and of what was delivered while it was read.
fn bridge(from: &Position, to: &Position, log: Vec<Message>, since: Vec<Message>) -> Option<Vec<Message>> {
    if from.epoch != to.epoch {
        return None;
    }
    let mut at = from.clone();
    let mut events = Vec::new();
    for message in log.into_iter().chain(since) {
        if message.epoch == at.epoch && message.seq <= at.seq || message.seq > to.seq {
            continue;
        }
        if !follows(&at, &message) {
            return None;
        }
        at = position_of(&message);
        events.push(message);
    }
    (at.seq == to.seq && (to.id.is_none() || at.id == to.id)).then_some(events)
}

/// Whether the message is the one after `head`: the next number, of the same epoch, linked to the same event.
fn follows(head: &Position, message: &Message) -> bool {
    message.epoch == head.epoch && message.seq == head.seq + 1 && (head.id.is_none() || message.previous == head.id)
}

pub(super) fn position_of(message: &Message) -> Position {
    Position { epoch: message.epoch.clone(), seq: message.seq, id: Some(message.id.clone()) }
}

/// Keeps a message for later; false when there is no room for it.
pub(super) fn hold(held: &mut Vec<Message>, message: Message) -> bool {
    let room = held.len() < MAX_HELD;
    if room {
        held.push(message);
    }
    room
}

#[cfg(test)]
mod histories;
