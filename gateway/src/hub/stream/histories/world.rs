//! The stream between the model of a server and its members.

mod judge;

use std::collections::{HashMap, HashSet, VecDeque};

use publisher::internals::Message;
use time::OffsetDateTime;

use super::server::Server;
use super::{Op, StrayEpoch};
use crate::engine::{Known, Outage, Position, Reading, Ticket};
use crate::hub::stream::chain::{MAX_HELD, follows};
use crate::hub::stream::state::Recipients;
use crate::hub::stream::{Arrivals, Phase, Purpose, Read, SocketId, Stage, Start, Stream, position_of};
use crate::socket::snapshot::{Parts, Snapshot};

enum OnTheWire {
    Message(Message),
    /// An answer, with the step at which the server gave it.
    Answer(Ticket, Reading, u64),
}

/// A join that is not answered yet.
#[derive(Debug)]
struct Join {
    resume: Option<Position>,
    /// The log has had everything after the position at each moment since: the member must be recovered.
    reachable: bool,
    /// The events that were delivered meanwhile.
    delivered: usize,
}

/// A joined member.
struct Member {
    at: Position,
    /// What it lacks of its snapshot.
    lacks: Parts,
}

pub struct World {
    pub server: Server,
    pub stream: Stream,
    /// The server sends us what is published.
    pub subscribed: bool,
    /// Questions on their way to the server.
    pub requests: VecDeque<(Ticket, Option<Known>)>,
    /// Questions without an answer yet; `None` is the subscription.
    asked: HashMap<Ticket, Option<Known>>,
    /// Questions that were answered.
    answered: Vec<Ticket>,
    wire: VecDeque<OnTheWire>,
    /// What came before the subscription's answer.
    early: Vec<Message>,
    /// Queries under way, each with what the server had when it began: what its answer has for certain.
    pub loads: VecDeque<(Ticket, Position, u32)>,
    all_loads: Vec<Ticket>,
    members: HashMap<SocketId, Member>,
    waiting: HashMap<SocketId, Join>,
    /// Members that a stray event was missed by, and that have yet to be told.
    owed: HashSet<SocketId>,
    /// Positions that members have been at.
    seen: Vec<Position>,
    next: u64,
    step: u64,
    degraded: bool,
    /// The step at which the connection was back, and that of the newest reading that the stream compared with.
    returned: u64,
    compared: u64,
    /// Messages and answers of a history that the server has lost may still be under way.
    rewound: bool,
    pub filled: u32,
    pub resyncs: u32,
}

impl World {
    pub fn new(start: Start) -> Self {
        let mut world = Self {
            server: Server::default(),
            stream: Stream::open(1, start),
            subscribed: false,
            requests: VecDeque::new(),
            asked: HashMap::new(),
            answered: Vec::new(),
            wire: VecDeque::new(),
            early: Vec::new(),
            loads: VecDeque::new(),
            all_loads: Vec::new(),
            members: HashMap::new(),
            waiting: HashMap::new(),
            owed: HashSet::new(),
            seen: Vec::new(),
            next: 0,
            step: 0,
            degraded: false,
            returned: 0,
            compared: 0,
            rewound: false,
            filled: 0,
            resyncs: 0,
        };
        world.judge();
        world
    }

    pub fn run(&mut self, op: Op) {
        self.step += 1;
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
                self.join(resume);
            }
            Op::Leave(index) => {
                let mut all: Vec<_> = self.members.keys().chain(self.waiting.keys()).copied().collect();
                all.sort();
                if let Some(member) = all.get(usize::from(index) % all.len().max(1)) {
                    self.leave(*member);
                }
            }
            Op::Check => self.act(Stream::handle_comparison_due),
            Op::Restart => self.server.begin_epoch(),
            Op::Rewind(lost) => {
                self.rewound = true;
                let left = self.server.events.len().saturating_sub(usize::from(lost));
                self.server.events.truncate(left);
                self.server.log.retain(|message| message.seq <= left as u64);
            }
            Op::Expire => self.server.log.clear(),
            Op::Stray(epoch) => self.stray(epoch),
            Op::Unasked(index) => self.unasked(index),
            Op::Lost => self.lose(),
            Op::Returned => {
                self.connect();
                self.act(Stream::handle_returned);
                let again =
                    self.own_read().is_some_and(|read| read.again.unwrap_or(read.purpose) == Purpose::EndOutage);
                assert!(self.is_opening() || again, "the connection is back, and positions are not compared");
            }
            Op::Load { missing } => {
                let Some((ticket, had, strays)) = self.loads.pop_front() else { return };
                let snapshot = std::sync::Arc::new(snapshot_of(&had, strays, missing));
                if self.all_loads.last() == Some(&ticket) {
                    self.act(|stream| stream.handle_snapshot(ticket, snapshot));
                } else {
                    self.changes_nothing(|stream| stream.handle_snapshot(ticket, snapshot));
                }
            }
            Op::Complete => {
                let lacking = self.members.values().fold(Parts::NONE, |all, member| all.or(member.lacks));
                if lacking != Parts::NONE {
                    self.act(|stream| stream.handle_parts_due(lacking));
                }
            }
            Op::Stale { newest } => match &self.all_loads[..] {
                [.., last] if newest => {
                    let last = *last;
                    self.act(|stream| stream.handle_snapshot_stale(last));
                }
                [.., before, _] => {
                    let before = *before;
                    self.changes_nothing(|stream| stream.handle_snapshot_stale(before));
                }
                _ => {}
            },
        }
        self.watch();
    }

    pub fn join(&mut self, resume: Option<Position>) -> SocketId {
        self.next += 1;
        let member = SocketId(self.next);
        let reachable = resume.as_ref().is_some_and(|at| self.is_reachable(at));
        self.waiting.insert(member, Join { resume: resume.clone(), reachable, delivered: 0 });
        self.act(|stream| stream.handle_join(member, resume));
        member
    }

    pub fn leave(&mut self, member: SocketId) {
        self.members.remove(&member);
        self.waiting.remove(&member);
        self.owed.remove(&member);
        let log = self.stream.waiting.iter().find(|waiting| waiting.member == member).map(|waiting| &waiting.stage);
        let read = if let Some(Stage::Log { ticket, .. }) = log { Some(*ticket) } else { None };
        assert_eq!(self.stream.handle_leave(member), read, "the engine must hear that the answer is useless");
        if let Some(read) = read {
            assert!(self.asked.remove(&read).is_some(), "an answer was awaited that is not asked for");
        }
    }

    fn stray(&mut self, epoch: StrayEpoch) {
        let own = self.stream.position().map(|at| at.epoch.clone());
        let epoch = match epoch {
            StrayEpoch::Unknown => None,
            StrayEpoch::Other => Some("elsewhere".parse().unwrap()),
            StrayEpoch::Own if own.is_some() => {
                return self.changes_nothing(|stream| stream.handle_stray(own.as_ref()));
            }
            StrayEpoch::Own => Some(self.server.epoch()),
        };
        self.server.strays += 1;
        self.owed.extend(self.members.keys().chain(self.waiting.keys()).copied());
        self.waiting.values_mut().for_each(|join| join.reachable = false);
        self.act(|stream| stream.handle_stray(epoch.as_ref()));
    }

    fn unasked(&mut self, index: u8) {
        let earlier = self.answered.get(usize::from(index)).copied();
        let mut reading = self.server.read(None);
        reading.head.seq += 1;
        self.changes_nothing(|stream| stream.handle_reading(earlier.unwrap_or(Ticket(index.into())), reading));
    }

    fn lose(&mut self) {
        // What was on its way is gone, and nothing more comes until the connection is back. A subscription that did not last
        // is not answered before it holds.
        let asked = &self.asked;
        let is_subscription = |ticket: &Ticket| asked.get(ticket).is_some_and(Option::is_none);
        for item in std::mem::take(&mut self.wire) {
            match item {
                OnTheWire::Message(_) => {}
                OnTheWire::Answer(ticket, ..) if is_subscription(&ticket) => self.requests.push_front((ticket, None)),
                answer @ OnTheWire::Answer(..) => self.wire.push_back(answer),
            }
        }
        self.subscribed = false;
        let outage = Outage { reason: "redis", since: OffsetDateTime::UNIX_EPOCH };
        self.act(|stream| stream.handle_lost(outage));
        assert!(self.degraded, "an outage that the members are not told of");
    }

    fn connect(&mut self) {
        if !std::mem::replace(&mut self.subscribed, true) {
            self.returned = self.step;
        }
    }

    pub fn execute(&mut self) {
        let Some((ticket, after)) = self.requests.pop_front() else { return };
        if after.is_none() {
            self.connect();
        }
        let reading = self.server.read(after.as_ref());
        self.wire.push_back(OnTheWire::Answer(ticket, reading, self.step));
    }

    pub fn arrive(&mut self, overtaken: bool) {
        if overtaken
            && matches!(
                (self.wire.front(), self.wire.get(1)),
                (Some(OnTheWire::Answer(..)), Some(OnTheWire::Message(_)))
            )
        {
            self.wire.swap(0, 1);
        }
        match self.wire.pop_front() {
            Some(OnTheWire::Message(message)) => self.message(message),
            Some(OnTheWire::Answer(ticket, reading, taken)) => match self.asked.remove(&ticket) {
                // The member has left.
                None => self.changes_nothing(|stream| stream.handle_reading(ticket, reading)),
                Some(question) => {
                    self.answered.push(ticket);
                    match question {
                        None => self.subscription(ticket, reading, taken),
                        Some(Known::Room(_)) => self.own_answer(ticket, reading, taken),
                        Some(Known::Client(_)) => self.act(|stream| stream.handle_reading(ticket, reading)),
                    }
                }
            },
            None => {}
        }
    }

    /// A message is delivered at once when nothing is missing before it, and is held otherwise.
    pub fn message(&mut self, message: Message) {
        let before = self.stream.position().cloned();
        let delivers = self.own_read().is_none_or(|read| matches!(read.arrivals, Arrivals::Delivered));
        let came = message.clone();
        self.act(|stream| stream.handle_message(message));
        let after = self.stream.position().cloned();
        match before {
            None => self.early.push(came),
            Some(before) if delivers && follows(&before, &came) => assert_eq!(after, Some(position_of(&came))),
            Some(before) => {
                assert_eq!(after.as_ref(), Some(&before), "delivered past a gap");
                assert!(before == position_of(&came) || self.own_read().is_some(), "a gap that is not looked into");
            }
        }
    }

    /// The subscription's answer begins the stream; what came before counts once.
    fn subscription(&mut self, ticket: Ticket, reading: Reading, taken: u64) {
        let head = reading.head.clone();
        let early = std::mem::take(&mut self.early).into_iter().take(MAX_HELD);
        let mut rest = early.filter(|message| message.epoch != head.epoch || message.seq > head.seq);
        let expected = rest.try_fold(head.clone(), |at, message| follows(&at, &message).then(|| position_of(&message)));
        self.compared = taken;
        self.act(|stream| stream.handle_reading(ticket, reading));
        match expected {
            Some(expected) => {
                assert_eq!(self.stream.position(), Some(&expected), "what came early counts once");
                let proof = self.stream.waiting.iter().any(|join| matches!(join.stage, Stage::Proof { .. }));
                assert!(proof || self.own_read().is_none(), "nothing is missing, and the stream asks");
                assert!(!self.degraded, "the subscription holds, and the outage goes on");
            }
            None => assert!(self.own_read().is_some(), "a gap that is not looked into"),
        }
    }

    /// Where the log leads on from the stream's position, members are not told to start anew.
    fn own_answer(&mut self, ticket: Ticket, reading: Reading, taken: u64) {
        self.compared = self.compared.max(taken);
        let (head, resyncs) = (reading.head.clone(), self.resyncs);
        let from = self.stream.position().cloned().unwrap();
        let behind = from.epoch == head.epoch && from.seq < head.seq;
        let mut missing = reading.events.clone().into_iter().filter(|message| message.seq > from.seq);
        let leads = missing.try_fold(from.clone(), |at, message| follows(&at, &message).then(|| position_of(&message)));
        let (filled, resyncing) = (self.filled, self.owes_resync());
        self.act(|stream| stream.handle_reading(ticket, reading));
        let told = self.resyncs > resyncs || (self.owes_resync() && !resyncing);
        if behind && leads.as_ref() == Some(&head) {
            assert!(!told, "the log has what is missing, and members start anew");
            let at = self.stream.position().unwrap();
            assert!(at.epoch == head.epoch && at.seq >= head.seq, "{at:?} after a log that leads to {head:?}");
            assert_eq!(self.filled, filled + 1, "a gap was filled");
        } else {
            assert_eq!(self.filled, filled, "no gap was filled");
            let old = from.epoch == head.epoch && from.seq >= head.seq;
            assert!(!(old && told), "nothing is missing, and members start anew");
        }
    }

    fn act(&mut self, act: impl FnOnce(&mut Stream)) {
        act(&mut self.stream);
        self.judge();
    }

    /// Some inputs mean nothing to the stream.
    fn changes_nothing(&mut self, act: impl FnOnce(&mut Stream)) {
        let before = format!("{:?}", self.stream);
        act(&mut self.stream);
        assert_eq!(format!("{:?}", self.stream), before, "a useless input has changed the stream");
    }

    fn is_opening(&self) -> bool {
        self.stream.position().is_none()
    }

    fn own_read(&self) -> Option<&Read> {
        if let Phase::Live { read, .. } = &self.stream.phase { read.as_ref() } else { None }
    }

    /// The joined members wait for a snapshot, and will be told that they have missed events.
    fn owes_resync(&self) -> bool {
        self.stream.load.as_ref().is_some_and(|load| load.recipients == Recipients::Everybody)
    }

    /// Lets everything arrive that was asked for.
    pub fn drain(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "the stream never comes to rest");
            if self.requests.is_empty() && self.wire.is_empty() && self.loads.is_empty() {
                return;
            }
            self.run(Op::Execute);
            self.run(Op::Arrive { overtaken: false });
            self.run(Op::Load { missing: Parts::NONE });
        }
    }

    /// Ends a history well: then all questions must be answered, and all members where the server is.
    pub fn settle(&mut self) {
        if self.is_opening() {
            self.drain();
        }
        self.run(Op::Returned);
        self.drain();
        assert!(!self.degraded, "the members were not told that the outage is over");
        // A rewind behind the comparison shows in the next one.
        self.run(Op::Check);
        self.drain();
        self.is_settled();
        for _ in 0..2 {
            self.run(Op::Complete);
            self.drain();
        }
        let complete = self.members.values().all(|member| member.lacks == Parts::NONE);
        assert!(complete, "the database has what a member lacks");

        // An event is lost without a trace: the comparison finds it in the log.
        let (filled, resyncs) = (self.filled, self.resyncs);
        self.run(Op::Publish { lost: true });
        self.run(Op::Check);
        self.drain();
        self.is_settled();
        assert_eq!((self.filled, self.resyncs), (filled + 1, resyncs));
    }

    fn is_settled(&self) {
        assert_eq!(self.stream.head(), Some(&self.server.head()), "the stream is behind");
        assert!(self.owed.is_empty(), "an event that no stream has, and no word of it");
        assert!(self.waiting.is_empty(), "a join was never answered: {:?}", self.waiting);
        assert!(self.stream.waiting.is_empty() && self.own_read().is_none());
    }

    /// Where the members are, in the order in which they came.
    pub fn positions(&self) -> Vec<u64> {
        let mut members: Vec<_> = self.members.iter().map(|(member, at)| (*member, at.at.seq)).collect();
        members.sort();
        members.into_iter().map(|(_, seq)| seq).collect()
    }

    pub fn lacks(&self) -> Vec<Parts> {
        self.members.values().map(|member| member.lacks).collect()
    }
}

/// A snapshot that says what the server had when its query began.
fn snapshot_of(had: &Position, strays: u32, missing: Parts) -> Snapshot {
    Snapshot::of_json(&format!("[\"{}\",{},{strays}]", had.epoch, had.seq), missing)
}
