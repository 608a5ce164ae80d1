//! A tenant's room: its stream, its sockets and its timers. It carries out what the stream decides.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use publisher::TenantId;
use publisher::internals::Message;
use tokio_util::time::delay_queue;
use tracing::{debug, warn};

use super::admission::PATIENCE;
use super::audience::{Audience, Member};
use super::input::{Departure, Join};
use super::shared::{Due, Shared};
use super::stream::{Effect, Newcomer, Start, Stream};
use crate::engine::{Kicked, Position, Request};
use crate::socket::SocketId;
use crate::socket::close::{CloseReason, FullReason};
use crate::socket::dialect::{Frames, Outgoing};
use crate::socket::link::Link;
use crate::socket::protocol::{self, ServerMessage};
use crate::socket::snapshot::{Parts, Snapshot};

/// About how long members wait until the part of a snapshot that they lack is asked for again. It is short, since a database that does
/// not answer and a view that fails have pauses of their own ([`crate::snapshots::Snapshots::may_have`]); it is random, to keep rooms
/// apart.
const COMPLETE_AFTER: Duration = Duration::from_secs(2);

pub struct Room {
    tenant: TenantId,
    stream: Stream,
    audience: Audience,
    /// Members whose join isn't answered yet.
    waiting: Vec<Member>,
    /// Events that go out together when the batch of inputs is done.
    outgoing: Vec<Message>,
    /// The engine's server refuses to answer for the tenant.
    refused: bool,
    heartbeat: delay_queue::Key,
    linger: Option<delay_queue::Key>,
    /// Set while members lack a part of their snapshot.
    incomplete: Option<delay_queue::Key>,
}

/// Whether a room stays.
#[derive(Debug, PartialEq, Eq)]
pub enum Stay {
    Open,
    Closed,
}

impl Room {
    /// An empty room; `generation` differs from that of any earlier room of the tenant.
    pub fn open(tenant: TenantId, generation: u32, shared: &mut Shared) -> Self {
        let start = if shared.database.is_some() { Start::Snapshot } else { Start::Position };
        shared.metrics.tenants(1);
        // Rooms beat at moments of their own, so that a thousand of them don't beat at once.
        let first = shared.limits.heartbeat.mul_f64(rand::random_range(0.1..=1.0));
        let mut room = Self {
            stream: Stream::open(generation, start),
            audience: Audience::default(),
            waiting: Vec::new(),
            outgoing: Vec::new(),
            refused: false,
            heartbeat: shared.due.insert(Due::Heartbeat(tenant.clone()), first),
            linger: None,
            incomplete: None,
            tenant,
        };
        room.carry_out(shared);
        room
    }

    pub fn members(&self) -> usize {
        self.audience.len() + self.waiting.len()
    }

    pub fn join(&mut self, join: Join, shared: &mut Shared) {
        let Join { link, subject, issued_at, resume, permit } = join;
        if self.members() >= shared.limits.max_per_tenant {
            shared.metrics.join_refused("tenant_full");
            return link.close_with(CloseReason::Full(FullReason::Tenant));
        }
        if let Some(linger) = self.linger.take() {
            shared.due.remove(&linger);
        }
        let id = link.id;
        self.waiting.push(Member { link: link.clone(), subject, issued_at, lacks: Parts::NONE });
        if let (1, Some(database)) = (self.members(), &shared.database) {
            database.refresh.watched(&self.tenant);
        }
        shared.turns.begin(id, permit);
        self.act(shared, |stream| stream.handle_join(id, resume));

        // Joined or still waiting: a member that comes during an outage is told of it, and keeps no other join waiting.
        if let Some(degraded) = self.stream.outage().map(protocol::degraded) {
            shared.turns.end(id);
            self.say(&link, &Outgoing::Message(&degraded), shared);
        } else if self.refused {
            shared.turns.end(id);
        } else if shared.turns.is_under_way(id) {
            shared.due.insert(Due::Overdue(id), PATIENCE);
        }
    }

    /// A member's token was renewed by one that was issued then.
    pub fn renew(&mut self, link: &Link, issued_at: u64, shared: &mut Shared) {
        let tenant = self.tenant.clone();
        if let Some(member) = self.member(link) {
            member.issued_at = issued_at;
            // The kick may have come while the renewal was on its way here.
            if shared.kicks.revoking(&tenant, member.subject.as_deref(), issued_at).is_some() {
                self.remove(link);
                self.stream.handle_leave(link.id);
                return link.close_with(CloseReason::Kicked);
            }
        }
        // A member that still waits gets its `joined` in its time.
        if let (true, Some(head)) = (self.audience.contains(link), self.stream.head()) {
            let joined = protocol::joined(&tenant, head, true, None, shared.limits.heartbeat.as_secs());
            self.say(link, &Outgoing::Message(&joined), shared);
            link.note_answer();
        }
    }

    /// Answers a `ping`.
    pub fn beat(&mut self, link: &Link, shared: &mut Shared) {
        let heartbeat = protocol::heartbeat(self.stream.head());
        self.say(link, &Outgoing::Message(&heartbeat), shared);
    }

    fn say(&mut self, link: &Link, outgoing: &Outgoing<'_>, shared: &mut Shared) {
        self.tell(link, &link.dialect.encode(outgoing), shared);
    }

    /// Writes to one member, behind everything that the room has sent it.
    pub fn tell(&mut self, link: &Link, frames: &Bytes, shared: &mut Shared) {
        self.flush(shared);
        let waits = || self.waiting.iter().any(|member| member.link.id == link.id);
        let told = self.audience.tell(link, frames).or_else(|| waits().then(|| link.write(frames, 1)));
        if told.is_some_and(|told| told.is_err()) {
            let member = self.remove(link);
            self.stream.handle_leave(link.id);
            give_up(member, shared);
        }
    }

    pub fn leave(&mut self, link: &Link, departure: Departure, shared: &mut Shared) {
        self.flush(shared);
        let left = self.remove(link).is_some();
        let question = self.stream.handle_leave(link.id);
        shared.forget_join(&self.tenant, link.id, question);
        if left && departure == Departure::Announced {
            let left = link.dialect.encode(&Outgoing::Message(&protocol::left(&self.tenant)));
            match link.write(&left, 1) {
                Ok(()) => link.note_answer(),
                Err(_) => link.close_with(CloseReason::SlowConsumer),
            }
        }
    }

    /// Closes the sockets whose tokens are revoked, and counts them for each kick.
    pub fn close_kicked(&mut self, closed: &mut HashMap<Kicked, usize>, shared: &mut Shared) {
        self.flush(shared);
        let (kicks, tenant) = (shared.kicks.clone(), self.tenant.clone());
        let revoking = |member: &Member| kicks.revoking(&tenant, member.subject.as_deref(), member.issued_at);
        for member in self.extract(|member| revoking(member).is_some()) {
            if let Some(who) = revoking(&member) {
                *closed.entry(who).or_default() += 1;
            }
            member.link.close_with(CloseReason::Kicked);
        }
    }

    pub fn heartbeat_due(&mut self, shared: &mut Shared) {
        self.flush(shared);
        let heartbeat = protocol::heartbeat(self.stream.head());
        let slow = self.audience.send_to_prompt(&mut Frames::of(Outgoing::Heartbeat(&heartbeat)));
        give_up(slow, shared);
        // A member that waits for an answer that Redis owes is alive all the same, and must be able to show it.
        self.tell_waiting(&mut Frames::of(Outgoing::Heartbeat(&protocol::heartbeat(None))), shared);
        self.heartbeat = shared.due.insert(Due::Heartbeat(self.tenant.clone()), shared.limits.heartbeat);
    }

    /// Asks for what members lack of their snapshot, when it has a chance to be there.
    pub fn completion_due(&mut self, shared: &mut Shared) {
        let Some(database) = &shared.database else { return };
        self.incomplete = None;
        let lacking = self.audience.lacking();
        let has_a_chance = database.snapshots.may_have(&self.tenant, lacking);
        self.complete_later(lacking, shared);
        if has_a_chance {
            self.act(shared, |stream| stream.handle_parts_due(lacking));
        }
    }

    /// The server refuses to answer for the tenant.
    pub fn refuse(&mut self, shared: &mut Shared) {
        self.refused = true;
        self.give_turns_back(shared);
    }

    /// The server answers for the tenant.
    pub fn answered(&mut self) {
        self.refused = false;
    }

    /// No answer can come soon to the members that wait: they give their turns back.
    pub fn give_turns_back(&self, shared: &mut Shared) {
        self.waiting.iter().for_each(|member| shared.turns.end(member.link.id));
    }

    /// Gives the stream an input, and carries out what it decides.
    pub fn act(&mut self, shared: &mut Shared, input: impl FnOnce(&mut Stream)) {
        input(&mut self.stream);
        self.carry_out(shared);
    }

    fn carry_out(&mut self, shared: &mut Shared) {
        while let Some(effect) = self.stream.poll_effect() {
            let tenant = || self.tenant.clone();
            match effect {
                Effect::Deliver(message) => self.deliver(message, shared),
                Effect::Subscribe(ticket) => shared.engine.request(Request::Subscribe { tenant: tenant(), ticket }),
                Effect::Read(ticket, after) => shared.engine.request(Request::Read { tenant: tenant(), ticket, after }),
                Effect::Filled => shared.metrics.gap_filled(),
                Effect::Load(ticket) => shared.load(&self.tenant, ticket),
                // Snapshots have limits of their own, and a wait for one costs nothing.
                Effect::Waits(member) => shared.turns.end(member),
                Effect::Joined { newcomers, head, recovered, snapshot, replay } => {
                    let joined = protocol::joined(
                        &self.tenant,
                        &head,
                        recovered,
                        snapshot.as_deref(),
                        shared.limits.heartbeat.as_secs(),
                    );
                    let lacks = shared.parts_lacking(&self.tenant, &head, snapshot.as_deref());
                    self.flush(shared);
                    self.complete_later(lacks, shared);
                    let mut frames = Frames::of(Outgoing::Start(&joined, &replay));
                    for Newcomer { member, resumed } in newcomers {
                        shared.metrics.joined(resumed.then_some(recovered));
                        self.seat(member, lacks, &mut frames, shared);
                    }
                }
                Effect::Resync { head, snapshot, replay } => self.resync(&head, snapshot.as_deref(), &replay, shared),
                Effect::Complete { head, snapshot } => {
                    self.flush(shared);
                    let resync = protocol::resync(&head, Some(&snapshot));
                    let mut frames = Frames::of(Outgoing::Message(&resync));
                    give_up(self.audience.complete(&mut frames, snapshot.missing), shared);
                }
                Effect::Degraded(outage) => self.announce(&protocol::degraded(&outage), shared),
                Effect::Restored(outage) => self.announce(&protocol::restored(&outage), shared),
            }
        }
    }

    fn deliver(&mut self, message: Message, shared: &mut Shared) {
        shared.tell_refresher(&self.tenant, &message);
        if self.outgoing.is_empty() {
            shared.dirty.push(self.tenant.clone());
        }
        self.outgoing.push(message);
    }

    /// Answers a join.
    fn seat(&mut self, member: SocketId, lacks: Parts, frames: &mut Frames<'_>, shared: &mut Shared) {
        let Some(index) = self.waiting.iter().position(|waiting| waiting.link.id == member) else { return };
        let member = Member { lacks, ..self.waiting.swap_remove(index) };
        shared.turns.end(member.link.id);
        // What was missed counts as one event: the log bounds it, and the bytes do.
        match member.link.write(frames.in_dialect(member.link.dialect), 1) {
            Ok(()) => {
                member.link.note_answer();
                self.audience.seat(member);
            }
            Err(_) => give_up([member], shared),
        }
    }

    fn resync(&mut self, head: &Position, snapshot: Option<&Snapshot>, replay: &[Message], shared: &mut Shared) {
        warn!(tenant = %self.tenant, epoch = %head.epoch, seq = head.seq, "events are beyond recovery, dashboards resync");
        shared.metrics.gap_resync();
        self.flush(shared);
        let resync = protocol::resync(head, snapshot);
        give_up(self.audience.send(&mut Frames::of(Outgoing::Start(&resync, replay)), 1), shared);
        let lacks = snapshot.map_or(Parts::NONE, |snapshot| snapshot.missing);
        self.audience.all_lack(lacks);
        self.complete_later(lacks, shared);
    }

    /// Sends a message to every member, joined or waiting.
    fn announce(&mut self, message: &ServerMessage, shared: &mut Shared) {
        self.flush(shared);
        let mut frames = Frames::of(Outgoing::Message(message));
        give_up(self.audience.send(&mut frames, 1), shared);
        self.tell_waiting(&mut frames, shared);
    }

    /// Sends a message to every member whose join isn't answered.
    fn tell_waiting(&mut self, frames: &mut Frames<'_>, shared: &mut Shared) {
        let is_slow = |member: &mut Member| member.link.write(frames.in_dialect(member.link.dialect), 1).is_err();
        let slow: Vec<_> = self.waiting.extract_if(.., is_slow).collect();
        for member in &slow {
            self.stream.handle_leave(member.link.id);
        }
        give_up(slow, shared);
    }

    /// Sends the outgoing events in one write a socket.
    pub fn flush(&mut self, shared: &mut Shared) {
        if self.outgoing.is_empty() {
            return;
        }
        let messages = std::mem::take(&mut self.outgoing);
        let members = self.audience.len();
        let slow = self.audience.send(&mut Frames::of(Outgoing::Events(&messages)), messages.len());
        shared.metrics.delivered(&messages, members - slow.len());
        give_up(slow, shared);
    }

    /// Sets the time to ask for what members lack of their snapshot.
    fn complete_later(&mut self, lacks: Parts, shared: &mut Shared) {
        if lacks != Parts::NONE && self.incomplete.is_none() {
            let delay = COMPLETE_AFTER.mul_f64(rand::random_range(0.5..=1.5));
            self.incomplete = Some(shared.due.insert(Due::Incomplete(self.tenant.clone()), delay));
        }
    }

    fn member(&mut self, link: &Link) -> Option<&mut Member> {
        let waiting = self.waiting.iter_mut().find(|member| member.link.id == link.id);
        waiting.or_else(|| self.audience.member(link))
    }

    fn remove(&mut self, link: &Link) -> Option<Member> {
        if let Some(member) = self.audience.remove(link) {
            return Some(member);
        }
        let index = self.waiting.iter().position(|member| member.link.id == link.id)?;
        Some(self.waiting.swap_remove(index))
    }

    fn extract(&mut self, fits: impl Fn(&Member) -> bool) -> Vec<Member> {
        let mut extracted = self.audience.extract(&fits);
        let waiting: Vec<_> = self.waiting.extract_if(.., |member| fits(member)).collect();
        for member in &waiting {
            self.stream.handle_leave(member.link.id);
        }
        extracted.extend(waiting);
        extracted
    }

    /// Starts the wait after which an empty room closes.
    pub fn linger_if_empty(&mut self, shared: &mut Shared) -> Stay {
        if self.members() > 0 || self.linger.is_some() {
            return Stay::Open;
        }
        if let Some(database) = &shared.database {
            database.refresh.unwatched(&self.tenant);
        }
        if shared.limits.linger.is_zero() {
            return Stay::Closed;
        }
        self.linger = Some(shared.due.insert(Due::Linger(self.tenant.clone()), shared.limits.linger));
        Stay::Open
    }

    pub fn close(self, shared: &mut Shared) {
        shared.due.try_remove(&self.heartbeat);
        if let Some(incomplete) = self.incomplete {
            shared.due.try_remove(&incomplete);
        }
        debug!(tenant = %self.tenant, "room closed");
        shared.engine.request(Request::Unsubscribe { tenant: self.tenant });
        shared.metrics.tenants(-1);
    }
}

/// Closes sockets that are out of their room because they read too slowly.
fn give_up(slow: impl IntoIterator<Item = Member>, shared: &Shared) {
    for member in slow {
        shared.metrics.slow_consumer();
        member.link.close_with(CloseReason::SlowConsumer);
    }
}
