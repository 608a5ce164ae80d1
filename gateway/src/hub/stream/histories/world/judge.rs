//! Carries out the stream's effects, and judges them.

use publisher::internals::Message;

use super::{Member, World};
use crate::engine::{Known, Position, Ticket};
use crate::hub::stream::chain::MAX_HELD;
use crate::hub::stream::{Effect, Newcomer, position_of};
use crate::socket::snapshot::{Parts, Snapshot};

impl World {
    /// Stream and server are of one history, and the log has everything after the position.
    pub(super) fn is_reachable(&self, at: &Position) -> bool {
        let same = self.stream.position().is_none_or(|position| self.server.knows(position));
        same && !self.rewound && self.stream.held_at().is_none() && self.server.reaches(at)
    }

    /// What must hold after each step.
    pub(super) fn watch(&mut self) {
        self.rewound &= !(self.asked.is_empty() && self.wire.is_empty());
        let mut waiting = std::mem::take(&mut self.waiting);
        for join in waiting.values_mut() {
            let reached = join.resume.as_ref().is_some_and(|at| self.is_reachable(at));
            join.reachable &= reached && join.delivered <= MAX_HELD;
        }
        self.waiting = waiting;
        assert_eq!(self.stream.outage().is_some(), self.degraded);
        for member in self.members.values() {
            assert_eq!(Some(&member.at), self.stream.head(), "the head is where the members are");
        }
    }

    /// Carries out what the stream decided, and judges what the members see.
    pub(super) fn judge(&mut self) {
        while let Some(effect) = self.stream.poll_effect() {
            match effect {
                Effect::Subscribe(ticket) => self.ask(ticket, None),
                Effect::Read(ticket, after) => self.ask(ticket, Some(after)),
                Effect::Load(ticket) => {
                    self.all_loads.push(ticket);
                    let had = Position { seq: self.server.furthest, ..self.server.head() };
                    self.loads.push_back((ticket, had, self.server.strays));
                }
                Effect::Waits(member) => assert!(self.waiting.contains_key(&member)),
                Effect::Joined { newcomers, head, recovered, snapshot, replay } => {
                    has_everything_up_to(&head, self.server.strays, snapshot.as_deref());
                    for newcomer in newcomers {
                        self.joined(newcomer, &head, recovered, snapshot.as_deref(), &replay);
                    }
                }
                Effect::Deliver(message) => {
                    self.members.values_mut().for_each(|member| see(&mut member.at, &message));
                    self.seen.extend(self.members.values().next().map(|member| member.at.clone()));
                    self.waiting.values_mut().for_each(|join| join.delivered += 1);
                }
                Effect::Resync { head, snapshot, replay } => {
                    self.resyncs += 1;
                    has_everything_up_to(&head, self.server.strays, snapshot.as_deref());
                    self.owed.retain(|member| !self.members.contains_key(member));
                    for member in self.members.values_mut() {
                        member.at = head.clone();
                        replay.iter().for_each(|message| see(&mut member.at, message));
                        member.lacks = missing_in(snapshot.as_deref());
                    }
                    self.waiting.values_mut().for_each(|join| join.reachable = false);
                }
                Effect::Complete { head, snapshot } => {
                    has_everything_up_to(&head, self.server.strays, Some(&snapshot));
                    for member in self.members.values_mut() {
                        let still = member.lacks.and(snapshot.missing);
                        if std::mem::replace(&mut member.lacks, still) != still {
                            let at = &member.at;
                            assert_eq!((&at.epoch, at.seq), (&head.epoch, head.seq), "the snapshot takes events back");
                        }
                    }
                }
                Effect::Filled => self.filled += 1,
                Effect::Degraded(_) => assert!(!std::mem::replace(&mut self.degraded, true), "told twice"),
                Effect::Restored(_) => {
                    assert!(std::mem::replace(&mut self.degraded, false), "restored what was not lost");
                    let told = self.members.values().all(|member| Some(&member.at) == self.stream.position());
                    assert!(told, "restored, and a resync is still to come");
                    assert!(self.subscribed, "restored during an outage");
                    assert!(self.compared >= self.returned, "restored, and nothing was compared since");
                }
            }
        }
    }

    fn ask(&mut self, ticket: Ticket, question: Option<Known>) {
        if let Some(Known::Room(_)) = &question {
            assert!(self.asked.values().all(|asked| !matches!(asked, Some(Known::Room(_)))), "one such read is enough");
        }
        assert!(self.asked.insert(ticket, question.clone()).is_none(), "two questions of one name");
        self.requests.push_back((ticket, question));
    }

    fn joined(
        &mut self,
        newcomer: Newcomer,
        head: &Position,
        recovered: bool,
        snapshot: Option<&Snapshot>,
        replay: &[Message],
    ) {
        let Newcomer { member, resumed } = newcomer;
        let join = self.waiting.remove(&member).expect("an answer to a join that waits");
        assert_eq!(resumed, join.resume.is_some());
        assert!(recovered || !join.reachable, "the log has what the member missed, and it starts anew");
        assert!(!(self.owed.remove(&member) && recovered), "resumed across an event that no stream has");
        let mut at = if recovered { join.resume.expect("it named a position") } else { head.clone() };
        replay.iter().for_each(|message| see(&mut at, message));
        if recovered {
            assert_eq!((&at.epoch, at.seq), (&head.epoch, head.seq), "the replay leads to the head");
            assert!(at.id.is_none() || head.id.is_none() || at.id == head.id, "another history of the same numbers");
            at = head.clone();
        }
        self.seen.push(at.clone());
        self.members.insert(member, Member { at, lacks: missing_in(snapshot) });
    }
}

fn missing_in(snapshot: Option<&Snapshot>) -> Parts {
    snapshot.map_or(Parts::NONE, |snapshot| snapshot.missing)
}

/// A member that starts from a snapshot sees only what comes after `head`: the rest must be in it.
fn has_everything_up_to(head: &Position, strays: u32, snapshot: Option<&Snapshot>) {
    let Some(snapshot) = snapshot else { return };
    let (epoch, seq, stray): (String, u64, u32) = serde_json::from_str(snapshot.metrics.get()).unwrap();
    assert_eq!(stray, strays, "a stray event is in neither");
    assert!(epoch != head.epoch.as_str() || seq >= head.seq, "event {} is in neither", head.seq);
}

/// A member's next event must follow its last one.
fn see(at: &mut Position, message: &Message) {
    assert_eq!(message.epoch, at.epoch, "an event of another epoch, and no resync");
    assert_eq!(message.seq, at.seq + 1, "a gap or a duplicate");
    if at.id.is_some() {
        assert_eq!(message.previous, at.id, "the number follows, the event does not: another history");
    }
    *at = position_of(message);
}
