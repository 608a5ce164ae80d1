//! Random histories against the room: everything that can go wrong between a server and its sockets, in any order.
//!
//! The model is a server with a counter, a log and a subscription whose messages may be lost; readings that arrive late;
//! restarts, rewinds and trimmed logs. The judge is each member's own view: it must be a chain, or have been told.

#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;
use publisher::internals::{Epoch, Message, MessageType};
use publisher::{DashboardEventType, EventId};
use time::OffsetDateTime;

use super::{Effect, Newcomer, SocketId, Start, Stream};
use crate::engine::{Known, Outage, Position, Reading, Ticket};
use crate::socket::snapshot::{Parts, Snapshot};

/// Small, so that histories run past its end.
const LOG_LENGTH: usize = 6;

#[derive(Debug, Clone)]
enum Op {
    /// Something is published; `lost` on its way to us.
    Publish {
        lost: bool,
    },
    /// The oldest request is carried out by the server; its answer is on the way.
    Execute,
    /// The oldest thing on the wire arrives; an answer may be overtaken by the message behind it.
    Arrive {
        overtaken: bool,
    },
    /// A new socket, with what an earlier one had seen, a little more, or nothing.
    Join {
        resume: Option<u8>,
        ahead: bool,
    },
    /// A socket goes.
    Leave(u8),
    /// The heartbeat's comparison.
    Check,
    /// The server restarts empty: a new epoch.
    Restart,
    /// The server loses its newest events without a trace in its epoch.
    Rewind(u8),
    /// The log expires.
    Expire,
    /// Something is published to a server that the tenant has left.
    Stray,
    /// The connection breaks, or is back.
    Lost,
    Returned,
    /// The oldest query for a snapshot ends, without these parts.
    Load {
        missing: Parts,
    },
    /// The wait is over after which members get what they lack of a snapshot.
    Complete,
    /// A second is over for the newest one.
    Stale,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => prop::bool::weighted(0.2).prop_map(|lost| Op::Publish { lost }),
        8 => Just(Op::Execute),
        10 => prop::bool::weighted(0.3).prop_map(|overtaken| Op::Arrive { overtaken }),
        4 => (prop::option::of(any::<u8>()), prop::bool::weighted(0.2)).prop_map(|(resume, ahead)| Op::Join { resume, ahead }),
        2 => any::<u8>().prop_map(Op::Leave),
        2 => Just(Op::Check),
        1 => Just(Op::Restart),
        1 => (1..4u8).prop_map(Op::Rewind),
        1 => Just(Op::Expire),
        1 => Just(Op::Stray),
        1 => Just(Op::Lost),
        2 => Just(Op::Returned),
        6 => (prop::bool::weighted(0.3), prop::bool::weighted(0.3))
            .prop_map(|(figures, payments)| Op::Load { missing: Parts { figures, payments } }),
        2 => Just(Op::Complete),
        2 => Just(Op::Stale),
    ]
}

struct Server {
    epochs: u32,
    ids: u32,
    events: Vec<Message>,
    log: VecDeque<Message>,
    /// How far this epoch has ever come: the database forgets nothing of what Redis loses.
    furthest: u64,
    /// Events that were published elsewhere: the database has them, and no stream.
    strays: u32,
}

impl Server {
    fn epoch(&self) -> Epoch {
        format!("e{}", self.epochs).parse().unwrap()
    }

    fn head(&self) -> Position {
        let last = self.events.last();
        Position { epoch: self.epoch(), seq: self.events.len() as u64, id: last.map(|last| last.id.clone()) }
    }

    fn publish(&mut self) -> Message {
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

    fn begin_epoch(&mut self) {
        self.epochs += 1;
        self.furthest = 0;
        self.events.clear();
        self.log.clear();
    }

    /// What position.lua does.
    fn read(&mut self, after: Option<&Known>) -> Reading {
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
}

enum OnTheWire {
    Message(Message),
    Answer(Ticket, Reading),
}

struct World {
    server: Server,
    room: Stream,
    subscribed: bool,
    requests: VecDeque<(Ticket, Option<Known>)>,
    wire: VecDeque<OnTheWire>,
    /// Queries under way, each with what the server had when it began: what its answer has for certain.
    loads: VecDeque<(Ticket, Position, u32)>,
    newest_load: Option<Ticket>,
    /// Joined members, each with the position it is at.
    members: HashMap<SocketId, Position>,
    /// What joined members lack of their snapshot.
    lacks: HashMap<SocketId, Parts>,
    /// Waiting members, each with the position it named.
    waiting: HashMap<SocketId, Option<Position>>,
    /// Members that a stray event was missed by, and that have yet to be told.
    owed: HashSet<SocketId>,
    /// Positions that members have been at.
    seen: Vec<Position>,
    next: u64,
    degraded: bool,
}

impl World {
    fn new(snapshots: bool) -> Self {
        let room = Stream::open(1, if snapshots { Start::Snapshot } else { Start::Position });
        let mut world = Self {
            server: Server { epochs: 0, ids: 0, events: Vec::new(), log: VecDeque::new(), furthest: 0, strays: 0 },
            room,
            subscribed: false,
            requests: VecDeque::new(),
            wire: VecDeque::new(),
            loads: VecDeque::new(),
            newest_load: None,
            members: HashMap::new(),
            lacks: HashMap::new(),
            waiting: HashMap::new(),
            owed: HashSet::new(),
            seen: Vec::new(),
            next: 0,
            degraded: false,
        };
        world.judge();
        world
    }

    fn act(&mut self, act: impl FnOnce(&mut Stream)) {
        act(&mut self.room);
        self.judge();
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Publish { lost } => {
                let message = self.server.publish();
                if self.subscribed && !lost {
                    self.wire.push_back(OnTheWire::Message(message));
                }
            }
            Op::Execute => self.execute(),
            Op::Arrive { overtaken } => self.arrive(overtaken),
            Op::Join { resume, ahead } => {
                let resume = resume.filter(|_| !self.seen.is_empty());
                let mut resume = resume.map(|index| self.seen[usize::from(index) % self.seen.len()].clone());
                if ahead {
                    // Another gateway has shown it all there is.
                    resume = Some(self.server.head());
                }
                self.next += 1;
                let member = SocketId(self.next);
                self.waiting.insert(member, resume.clone());
                self.act(|room| room.handle_join(member, resume));
            }
            Op::Leave(index) => {
                let mut all: Vec<_> = self.members.keys().chain(self.waiting.keys()).copied().collect();
                all.sort();
                if let Some(member) = all.get(usize::from(index) % all.len().max(1)) {
                    self.members.remove(member);
                    self.lacks.remove(member);
                    self.waiting.remove(member);
                    self.owed.remove(member);
                    self.room.handle_leave(*member);
                }
            }
            Op::Check => self.act(Stream::handle_comparison_due),
            Op::Restart => self.server.begin_epoch(),
            Op::Rewind(lost) => {
                let left = self.server.events.len().saturating_sub(usize::from(lost));
                self.server.events.truncate(left);
                self.server.log.retain(|message| message.seq <= left as u64);
            }
            Op::Expire => self.server.log.clear(),
            Op::Stray => {
                self.server.strays += 1;
                self.owed.extend(self.members.keys().chain(self.waiting.keys()).copied());
                self.act(|room| room.handle_stray(None));
            }
            Op::Lost => {
                // What was on its way is gone, and nothing more comes until the connection is back.
                self.wire.retain(|item| matches!(item, OnTheWire::Answer(..)));
                self.subscribed = false;
                let outage = Outage { reason: "redis", since: OffsetDateTime::UNIX_EPOCH };
                self.act(|room| room.handle_lost(outage));
            }
            Op::Returned => {
                self.subscribed = true;
                self.act(Stream::handle_returned);
            }
            Op::Load { missing } => {
                let Some((ticket, had, strays)) = self.loads.pop_front() else { return };
                let snapshot = std::sync::Arc::new(snapshot_of(&had, strays, missing));
                self.act(|room| room.handle_snapshot(ticket, snapshot));
            }
            Op::Complete => {
                let lacking = self.lacks.values().fold(Parts::NONE, |all, parts| all.or(*parts));
                if lacking != Parts::NONE {
                    self.act(|room| room.handle_parts_due(lacking));
                }
            }
            Op::Stale => {
                if let Some(ticket) = self.newest_load {
                    self.room.handle_snapshot_stale(ticket);
                }
            }
        }
    }

    fn execute(&mut self) {
        let Some((ticket, after)) = self.requests.pop_front() else { return };
        if after.is_none() {
            self.subscribed = true;
        }
        let reading = self.server.read(after.as_ref());
        self.wire.push_back(OnTheWire::Answer(ticket, reading));
    }

    fn arrive(&mut self, overtaken: bool) {
        if overtaken
            && matches!(
                (self.wire.front(), self.wire.get(1)),
                (Some(OnTheWire::Answer(..)), Some(OnTheWire::Message(_)))
            )
        {
            self.wire.swap(0, 1);
        }
        match self.wire.pop_front() {
            Some(OnTheWire::Message(message)) => self.act(|room| room.handle_message(message)),
            Some(OnTheWire::Answer(ticket, reading)) => self.act(|room| room.handle_reading(ticket, reading)),
            None => {}
        }
    }

    /// Carries out what the room decided, and judges what the members see.
    fn judge(&mut self) {
        while let Some(effect) = self.room.poll_effect() {
            match effect {
                Effect::Subscribe(ticket) => self.requests.push_back((ticket, None)),
                Effect::Read(ticket, after) => self.requests.push_back((ticket, Some(after))),
                Effect::Load(ticket) => {
                    self.newest_load = Some(ticket);
                    let had = Position { seq: self.server.furthest, ..self.server.head() };
                    self.loads.push_back((ticket, had, self.server.strays));
                }
                Effect::Joined { newcomers, head, recovered, snapshot, replay } => {
                    has_everything_up_to(&head, self.server.strays, snapshot.as_deref());
                    for Newcomer { member, resumed } in newcomers {
                        let Some(resume) = self.waiting.remove(&member) else { continue };
                        assert_eq!(resumed, resume.is_some());
                        assert!(
                            !(self.owed.remove(&member) && recovered),
                            "resumed across an event that no stream has"
                        );
                        let mut at =
                            if recovered { resume.expect("only who named a position recovers") } else { head.clone() };
                        replay.iter().for_each(|message| see(&mut at, message));
                        if recovered {
                            assert_eq!((&at.epoch, at.seq), (&head.epoch, head.seq), "the replay leads to the head");
                            at = head.clone();
                        }
                        self.seen.push(at.clone());
                        self.members.insert(member, at);
                        self.lacks.insert(member, missing_in(snapshot.as_deref()));
                    }
                }
                Effect::Deliver(message) => {
                    self.members.values_mut().for_each(|at| see(at, &message));
                    self.seen.extend(self.members.values().next().cloned());
                }
                Effect::Resync { head, snapshot, replay } => {
                    has_everything_up_to(&head, self.server.strays, snapshot.as_deref());
                    self.owed.retain(|member| !self.members.contains_key(member));
                    for at in self.members.values_mut() {
                        *at = head.clone();
                        replay.iter().for_each(|message| see(at, message));
                    }
                    self.lacks.values_mut().for_each(|lacks| *lacks = missing_in(snapshot.as_deref()));
                }
                Effect::Complete { head, snapshot } => {
                    has_everything_up_to(&head, self.server.strays, Some(&snapshot));
                    for (member, lacks) in &mut self.lacks {
                        let still = lacks.and(snapshot.missing);
                        if std::mem::replace(lacks, still) != still {
                            let at = &self.members[member];
                            assert_eq!((&at.epoch, at.seq), (&head.epoch, head.seq), "the snapshot takes events back");
                        }
                    }
                }
                Effect::Filled | Effect::Waits(_) => {}
                Effect::Degraded(_) => assert!(!std::mem::replace(&mut self.degraded, true), "told twice"),
                Effect::Restored(_) => {
                    assert!(std::mem::replace(&mut self.degraded, false), "restored what was not lost");
                    let told = self.members.values().all(|at| Some(at) == self.room.position());
                    assert!(told, "restored, and a resync is still to come");
                }
            }
        }
    }

    /// Lets everything arrive that was asked for; then everybody must be where the server is.
    fn settle(&mut self) {
        self.run(Op::Returned);
        for round in 0.. {
            assert!(round < 1000, "the room never comes to rest");
            while !self.requests.is_empty() || !self.wire.is_empty() || !self.loads.is_empty() {
                self.execute();
                self.arrive(false);
                self.run(Op::Load { missing: Parts::NONE });
            }
            self.run(Op::Complete);
            let complete = self.lacks.values().all(|lacks| *lacks == Parts::NONE);
            if self.room.head() == Some(&self.server.head()) && complete && round > 0 {
                break;
            }
            self.act(Stream::handle_comparison_due);
        }
        assert!(self.owed.is_empty(), "an event that no stream has, and no word of it");
        assert!(self.waiting.is_empty(), "a join was never answered: {:?}", self.waiting);
        assert!(!self.degraded, "nobody was told that it is over");
        let head = self.server.head();
        for at in self.members.values() {
            assert_eq!((&at.epoch, at.seq), (&head.epoch, head.seq), "a member was left behind");
        }
    }
}

/// A snapshot that says what the server had when its query began.
fn snapshot_of(had: &Position, strays: u32, missing: Parts) -> Snapshot {
    Snapshot::of_json(&format!("[\"{}\",{},{strays}]", had.epoch, had.seq), missing)
}

fn missing_in(snapshot: Option<&Snapshot>) -> Parts {
    snapshot.map_or(Parts::NONE, |snapshot| snapshot.missing)
}

/// Whoever starts from a snapshot sees only what comes after `head`: the rest must be in it.
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
    *at = Position { epoch: message.epoch.clone(), seq: message.seq, id: Some(message.id.clone()) };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(1000), ..ProptestConfig::default() })]

    #[test]
    fn every_member_sees_a_chain_or_is_told(snapshots: bool, ops in vec(op(), 1..160)) {
        let mut world = World::new(snapshots);
        for op in ops {
            world.run(op);
        }
        world.settle();
    }
}

#[test]
fn a_join_is_not_answered_before_the_subscription() {
    let mut world = World::new(false);
    world.run(Op::Join { resume: None, ahead: false });
    assert!(world.members.is_empty());
    world.execute();
    assert!(world.members.is_empty(), "the answer is still on its way");
    world.arrive(false);
    assert_eq!(world.members.len(), 1);
}

#[test]
fn what_was_published_between_subscription_and_reading_is_counted_once() {
    let mut world = World::new(false);
    world.run(Op::Join { resume: None, ahead: false });
    world.subscribed = true;
    world.run(Op::Publish { lost: false });
    world.execute();
    world.run(Op::Publish { lost: false });
    world.settle();
    assert_eq!(world.members.values().next().map(|at| at.seq), Some(2));
}

#[test]
fn what_came_while_a_gap_was_read_is_delivered_with_it() {
    let mut world = World::new(false);
    world.run(Op::Join { resume: None, ahead: false });
    world.execute();
    world.arrive(false);
    world.run(Op::Publish { lost: true });
    world.run(Op::Publish { lost: false });
    world.arrive(false);
    // The log is read with two events in it, and a third overtakes the answer.
    world.execute();
    world.run(Op::Publish { lost: false });
    world.arrive(true);
    assert_eq!(world.members.values().next().map(|at| at.seq), Some(0), "nothing is delivered past a gap");
    world.arrive(false);
    assert_eq!(world.members.values().next().map(|at| at.seq), Some(3));
    assert!(world.requests.is_empty(), "nothing was left to ask");
}

/// A storm: whoever comes while a query runs, and for a second after it began, shares it, and misses nothing.
#[test]
fn joins_share_a_snapshot_and_the_events_since() {
    let mut world = World::new(true);
    world.run(Op::Join { resume: None, ahead: false });
    world.execute();
    world.arrive(false);
    world.run(Op::Join { resume: None, ahead: false });
    world.run(Op::Publish { lost: false });
    world.arrive(false);
    world.run(Op::Join { resume: None, ahead: false });
    assert_eq!(world.loads.len(), 1);
    world.run(Op::Load { missing: Parts::NONE });
    world.run(Op::Join { resume: None, ahead: false });
    assert_eq!((world.members.len(), world.loads.len()), (4, 0));
    assert!(world.members.values().all(|at| at.seq == 1));
    world.run(Op::Stale);
    world.run(Op::Join { resume: None, ahead: false });
    assert_eq!((world.members.len(), world.loads.len()), (4, 1));
    world.settle();
}

/// A snapshot that could not be had goes to those members alone that were answered without it, and takes no event back.
#[test]
fn members_get_the_snapshot_that_they_were_answered_without() {
    let mut world = World::new(true);
    world.run(Op::Join { resume: None, ahead: false });
    world.execute();
    world.arrive(false);
    world.run(Op::Load { missing: Parts::ALL });
    assert_eq!(world.lacks.values().collect::<Vec<_>>(), [&Parts::ALL]);
    // An event overtakes the first answer: the second is asked for while nothing is delivered.
    world.run(Op::Complete);
    world.run(Op::Publish { lost: false });
    world.arrive(false);
    world.run(Op::Load { missing: Parts::NONE });
    assert_eq!(world.lacks.values().collect::<Vec<_>>(), [&Parts::ALL]);
    world.run(Op::Publish { lost: false });
    world.arrive(false);
    assert_eq!(world.members.values().next().map(|at| at.seq), Some(1));
    world.run(Op::Load { missing: Parts { figures: false, payments: true } });
    assert_eq!(world.lacks.values().collect::<Vec<_>>(), [&Parts { figures: false, payments: true }]);
    assert_eq!(world.members.values().next().map(|at| at.seq), Some(2));
    world.settle();
}
