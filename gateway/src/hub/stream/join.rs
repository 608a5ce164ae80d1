//! Joins: a member resumes from the position that it names, or starts anew.

use publisher::internals::Message;

use super::chain::bridge;
use super::effect::Effect;
use super::state::{Arrivals, Evidence, Phase, Purpose, Stage, Start, Stream, Waiting};
use crate::engine::{Known, Reading, Ticket};

impl Stream {
    /// Answers a join, or asks what must be known first.
    pub(super) fn admit(&mut self, mut waiting: Waiting, evidence: Evidence) {
        let Phase::Live { head, .. } = &self.phase else {
            self.waiting.push(waiting);
            return;
        };
        let Some(at) = &waiting.resume else { return self.start_anew(&waiting) };
        if at.epoch == head.epoch && at.seq < head.seq {
            let ticket = self.tickets.issue();
            self.effects.push_back(Effect::Read(ticket, Known::Client(at.clone())));
            waiting.stage = Stage::Log { ticket, since: Vec::new() };
            self.waiting.push(waiting);
        } else if at.epoch == head.epoch && at.seq == head.seq {
            let same = at.id.is_none() || head.id.is_none() || at.id == head.id;
            if same { self.recover(&waiting, Vec::new()) } else { self.start_anew(&waiting) }
        } else if evidence == Evidence::Proved {
            self.start_anew(&waiting);
        } else {
            self.await_proof(waiting);
        }
    }

    /// The log after a member's position was read.
    pub(super) fn handle_member_reading(&mut self, ticket: Ticket, reading: Reading) {
        let asks = |waiting: &Waiting| matches!(&waiting.stage, Stage::Log { ticket: asked, .. } if *asked == ticket);
        let Some(index) = self.waiting.iter().position(asks) else { return };
        let mut waiting = self.waiting.swap_remove(index);
        let Phase::Live { head, .. } = &self.phase else { return };
        let Stage::Log { since, .. } = std::mem::replace(&mut waiting.stage, Stage::Opening) else { return };

        if reading.head.epoch != head.epoch {
            // One of the two is about to change: find out which before judging the member.
            return self.await_proof(waiting);
        }
        match waiting.resume.as_ref().and_then(|at| bridge(at, head, reading.events, since)) {
            Some(replay) => self.recover(&waiting, replay),
            None => self.start_anew(&waiting),
        }
    }

    /// Lets a member wait for the answer to a read that is asked from now on.
    fn await_proof(&mut self, mut waiting: Waiting) {
        waiting.stage = Stage::Proof { after: self.tickets.0 };
        self.waiting.push(waiting);
        match &mut self.phase {
            Phase::Live { read: Some(read), .. } => {
                read.again.get_or_insert(Purpose::Compare);
            }
            _ => self.ask(Arrivals::Delivered, Purpose::Compare),
        }
    }

    /// Admits the members that waited for a read which was asked as this ticket.
    pub(super) fn admit_proved(&mut self, read: Ticket) {
        let is_proved = |waiting: &mut Waiting| matches!(waiting.stage, Stage::Proof { after } if after < read);
        for waiting in self.waiting.extract_if(.., is_proved).collect::<Vec<_>>() {
            self.admit(waiting, Evidence::Proved);
        }
    }

    /// Answers a join with the events that lead from the member's position to the stream's.
    fn recover(&mut self, waiting: &Waiting, replay: Vec<Message>) {
        let Phase::Live { head, .. } = &self.phase else { return };
        if self.held_at().is_some() {
            // The joined members get their next events behind a snapshot, and so does this one.
            return self.start_anew(waiting);
        }
        let (head, newcomers) = (head.clone(), vec![waiting.newcomer()]);
        self.effects.push_back(Effect::Joined { newcomers, head, recovered: true, snapshot: None, replay });
    }

    /// Answers a join with a snapshot, or with the position alone.
    fn start_anew(&mut self, waiting: &Waiting) {
        let Phase::Live { head, .. } = &self.phase else { return };
        let newcomer = waiting.newcomer();
        let (head, snapshot, replay) = match &self.load {
            _ if self.start == Start::Position => (head.clone(), None, Vec::new()),
            Some(load) if load.is_fresh() => (load.at.clone(), load.snapshot.clone(), load.since.clone()),
            _ => return self.await_snapshot(newcomer),
        };
        self.effects.push_back(Effect::Joined { newcomers: vec![newcomer], head, recovered: false, snapshot, replay });
    }
}
