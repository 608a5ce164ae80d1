//! One shard: the task that owns some tenants' rooms and carries out what they decide.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use publisher::internals::{Message, MessageType};
use publisher::{DashboardEventType, TenantId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::time::{DelayQueue, delay_queue};
use tracing::{debug, warn};

use super::admission::{PATIENCE, Permit};
use super::audience::{Audience, Member};
use super::kicks::Kicks;
use super::stream::{Effect, Newcomer, Start, Stream, position_of};
use super::{Hub, Join, RoomLimits};
use crate::engine::{Engine, Kicked, Request, Signal, Ticket};
use crate::metrics::Metrics;
use crate::metrics_refresh::MetricsRefresh;
use crate::shutdown::spawn_brief;
use crate::snapshots::{LIFE, Snapshots};
use crate::socket::SocketId;
use crate::socket::close::{CloseReason, FullReason};
use crate::socket::link::Link;
use crate::socket::snapshot::{Parts, Snapshot};
use crate::socket::{frame, protocol};

/// Inputs taken from the mailbox at once: events among them that are for the same room go out in one write.
const BATCH: usize = 256;

/// How long members wait, more or less, until the part of a snapshot that they lack is asked for again. Short, for a database that is
/// away and a view that fails have pauses of their own ([`Snapshots::may_have`]); a random share of it keeps rooms apart.
const COMPLETE_AFTER: Duration = Duration::from_secs(2);

/// Everything that can happen to a shard's rooms, handled one at a time.
pub enum Input {
    /// A socket wants into a room.
    Join { tenant: TenantId, join: Join },
    /// A joined socket has a new token, which was issued then.
    Renewed { tenant: TenantId, link: Arc<Link>, issued_at: u64 },
    /// A control message for a socket in a room.
    Tell { tenant: TenantId, link: Arc<Link>, frames: Bytes },
    /// A heartbeat for a socket that asked for one.
    Beat { tenant: TenantId, link: Arc<Link> },
    /// A socket leaves, and wants to hear when it is out.
    Leave { tenant: TenantId, link: Arc<Link>, announce: bool, done: oneshot::Sender<()> },
    /// Events came, in this order.
    Messages(Vec<(TenantId, Message)>),
    /// The engine has something to say.
    Signal(Signal),
    /// The snapshot has come that a room asked for, as far as it could be had.
    Loaded { tenant: TenantId, ticket: Ticket, snapshot: Arc<Snapshot> },
    /// Tokens were revoked: whose sockets are closed for it, and how many?
    Kicked { closed: oneshot::Sender<HashMap<Kicked, usize>> },
    /// Who is connected?
    Tenants(oneshot::Sender<Vec<(TenantId, usize)>>),
}

/// Something that is due for a room.
enum Due {
    Heartbeat(TenantId),
    Linger(TenantId),
    /// The join isn't answered yet, and others have waited long enough for it.
    Overdue(SocketId),
    /// The same of a question that nobody waits for.
    OverdueMoot(Ticket),
    /// The room's snapshot is too old for others.
    Stale(TenantId, Ticket),
    /// Members were answered without a part of their snapshot: it may be there now.
    Incomplete(TenantId),
}

/// A room with its sockets and its clocks.
struct Room {
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

/// What rooms have of a database, when there is one.
#[derive(Clone)]
pub struct Database {
    /// Where snapshots come from.
    pub snapshots: Snapshots,
    /// Who must hear that figures have changed.
    pub figures: MetricsRefresh,
    /// The way back for snapshots.
    pub hub: Hub,
}

impl Database {
    /// Every room tells what shows in its tenant's figures, or is them.
    fn tell(&self, tenant: &TenantId, message: &Message) {
        match message.event_type {
            MessageType::Known(DashboardEventType::MetricsUpdated) if message.has_figures() => {
                self.figures.refreshed(tenant);
            }
            _ => self.figures.changed(tenant, position_of(message)),
        }
    }
}

/// The task's state.
pub struct Shard {
    inbox: mpsc::Receiver<Input>,
    engine: Engine,
    database: Option<Database>,
    limits: RoomLimits,
    metrics: Metrics,
    rooms: HashMap<TenantId, Room>,
    /// Rooms with outgoing events.
    dirty: Vec<TenantId>,
    due: DelayQueue<Due>,
    generation: u32,
    /// The turns of the joins that are under way.
    joining: HashMap<SocketId, Permit>,
    /// The turns of members that left before they were answered: a turn is over when the engine's work is.
    moot: HashMap<Ticket, Permit>,
    kicks: Arc<Kicks>,
}

impl Shard {
    /// A shard without rooms.
    pub fn new(
        inbox: mpsc::Receiver<Input>,
        engine: Engine,
        database: Option<Database>,
        limits: RoomLimits,
        kicks: Arc<Kicks>,
        metrics: Metrics,
    ) -> Self {
        Self {
            inbox,
            engine,
            database,
            limits,
            metrics,
            rooms: HashMap::new(),
            dirty: Vec::new(),
            due: DelayQueue::new(),
            generation: 0,
            joining: HashMap::new(),
            moot: HashMap::new(),
            kicks,
        }
    }

    /// Works until every [`super::Hub`] is gone.
    pub async fn run(mut self) {
        let mut inputs = Vec::with_capacity(BATCH);
        let mut sweep = interval(self.limits.heartbeat);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                taken = self.inbox.recv_many(&mut inputs, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                    for input in inputs.drain(..) {
                        self.take(input);
                    }
                    self.flush_dirty();
                }
                Some(due) = self.due.next(), if !self.due.is_empty() => match due.into_inner() {
                    Due::Heartbeat(tenant) => self.heartbeat(tenant),
                    Due::Linger(tenant) => self.lingered(&tenant),
                    Due::Overdue(member) => drop(self.joining.remove(&member)),
                    Due::OverdueMoot(ticket) => drop(self.moot.remove(&ticket)),
                    Due::Stale(tenant, ticket) => self.in_room(&tenant, |stream| stream.handle_snapshot_stale(ticket)),
                    Due::Incomplete(tenant) => self.complete(&tenant),
                },
                // Every room is asked at once, so that the engine answers all of them in one sweep.
                _ = sweep.tick() => self.each_room(|stream| stream.handle_comparison_due()),
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Join { tenant, join } => self.join(tenant, join),
            Input::Renewed { tenant, link, issued_at } => self.renewed(&tenant, &link, issued_at),
            Input::Tell { tenant, link, frames } => self.tell(&tenant, &link, &frames),
            Input::Beat { tenant, link } => {
                if let Some(room) = self.rooms.get(&tenant) {
                    let beat = protocol::heartbeat(room.stream.head());
                    self.tell(&tenant, &link, &beat);
                }
            }
            Input::Leave { tenant, link, announce, done } => {
                self.leave(&tenant, &link, announce);
                // Who asked may be gone by now.
                let _ = done.send(());
            }
            Input::Messages(messages) => {
                for (tenant, message) in messages {
                    self.metrics.event_received(&message.event_type);
                    self.in_room(&tenant, |stream| stream.handle_message(message));
                }
            }
            Input::Signal(signal) => self.signal(signal),
            Input::Loaded { tenant, ticket, snapshot } => {
                self.in_room(&tenant, |stream| stream.handle_snapshot(ticket, snapshot));
            }
            Input::Kicked { closed } => {
                let _ = closed.send(self.close_kicked());
            }
            Input::Tenants(reply) => {
                let counts = self.rooms.iter().map(|(tenant, room)| (tenant.clone(), room.members()));
                let _ = reply.send(counts.filter(|(_, members)| *members > 0).collect());
            }
        }
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Reading { tenant, ticket, reading } => {
                self.moot.remove(&ticket);
                if let Some(room) = self.rooms.get_mut(&tenant) {
                    room.refused = false;
                }
                self.in_room(&tenant, |stream| stream.handle_reading(ticket, reading));
            }
            Signal::Forgotten { ticket, .. } => drop(self.moot.remove(&ticket)),
            Signal::Lost { tenant, outage } => {
                // No question is answered now: the members that wait are told so.
                self.give_turns_back(&tenant);
                self.in_room(&tenant, |stream| stream.handle_lost(outage));
            }
            Signal::Returned { tenant } => self.in_room(&tenant, |stream| stream.handle_returned()),
            Signal::Refused { tenant } => {
                if let Some(room) = self.rooms.get_mut(&tenant) {
                    room.refused = true;
                    self.give_turns_back(&tenant);
                }
            }
            Signal::Stray { tenant, epoch } => {
                self.in_room(&tenant, |stream| stream.handle_stray(epoch.as_ref()));
            }
            // The hub's, which asks every shard.
            Signal::Kicks { .. } => {}
        }
    }

    /// No answer can come soon to the members that wait: they give their turns back.
    fn give_turns_back(&mut self, tenant: &TenantId) {
        for member in self.rooms.get(tenant).iter().flat_map(|room| &room.waiting) {
            self.joining.remove(&member.link.id);
        }
    }

    fn join(&mut self, tenant: TenantId, join: Join) {
        let Join { link, subject, issued_at, resume, permit } = join;
        // The kick may have come while the join was on its way here.
        if self.kicks.revoking(&tenant, subject.as_deref(), issued_at).is_some() {
            self.metrics.join_refused("kicked");
            return link.close_with(CloseReason::Kicked);
        }
        if !self.rooms.contains_key(&tenant) {
            let room = self.open_room(&tenant);
            self.rooms.insert(tenant.clone(), room);
        }
        let Some(room) = self.rooms.get_mut(&tenant) else { return };
        if room.members() >= self.limits.max_per_tenant {
            self.metrics.join_refused("tenant_full");
            return link.close_with(CloseReason::Full(FullReason::Tenant));
        }
        if let Some(linger) = room.linger.take() {
            self.due.remove(&linger);
        }
        let id = link.id;
        room.waiting.push(Member { link: link.clone(), subject, issued_at, lacks: Parts::NONE });
        if let (1, Some(database)) = (room.members(), &self.database) {
            database.figures.watched(&tenant);
        }
        self.joining.insert(id, permit);
        self.in_room(&tenant, |stream| stream.handle_join(id, resume));

        // Joined or still waiting: whoever comes during an outage is told of it, and holds nobody else up.
        let Some(room) = self.rooms.get(&tenant) else { return };
        if let Some(degraded) = room.stream.outage().map(protocol::degraded) {
            self.joining.remove(&id);
            self.tell(&tenant, &link, &degraded);
        } else if room.refused {
            self.joining.remove(&id);
        } else if self.joining.contains_key(&id) {
            self.due.insert(Due::Overdue(id), PATIENCE);
        }
    }

    fn open_room(&mut self, tenant: &TenantId) -> Room {
        self.generation = self.generation.wrapping_add(1);
        // The room's first effect, its subscription, is carried out with the first join.
        let start = if self.database.is_some() { Start::Snapshot } else { Start::Position };
        let stream = Stream::open(self.generation, start);
        self.metrics.tenants(1);
        // Rooms beat at moments of their own, so that a thousand of them don't beat at once.
        let first = self.limits.heartbeat.mul_f64(rand::random_range(0.1..=1.0));
        let heartbeat = self.due.insert(Due::Heartbeat(tenant.clone()), first);
        Room {
            stream,
            audience: Audience::default(),
            waiting: Vec::new(),
            outgoing: Vec::new(),
            refused: false,
            heartbeat,
            linger: None,
            incomplete: None,
        }
    }

    fn renewed(&mut self, tenant: &TenantId, link: &Arc<Link>, issued_at: u64) {
        let Some(room) = self.rooms.get_mut(tenant) else { return };
        if let Some(member) = room.member(link) {
            member.issued_at = issued_at;
            // The kick may have come while the renewal was on its way here.
            if self.kicks.revoking(tenant, member.subject.as_deref(), issued_at).is_some() {
                room.remove(link);
                room.stream.handle_leave(link.id);
                link.close_with(CloseReason::Kicked);
                return self.linger_if_empty(tenant);
            }
        }
        // A member that still waits gets its `joined` in its time.
        if let (true, Some(head)) = (room.audience.contains(link), room.stream.head()) {
            let joined = protocol::joined(tenant, head, true, None, self.limits.heartbeat.as_secs());
            self.tell(tenant, link, &joined);
            link.note_answer();
        }
    }

    /// Writes to one member, behind everything that the room has sent it.
    fn tell(&mut self, tenant: &TenantId, link: &Arc<Link>, frames: &Bytes) {
        let Some(room) = self.rooms.get_mut(tenant) else { return };
        room.flush(&self.metrics);
        let waits = || room.waiting.iter().any(|member| member.link.id == link.id);
        let told = room.audience.tell(link, frames).or_else(|| waits().then(|| link.write(frames, 1)));
        if told.is_some_and(|told| told.is_err()) {
            let member = room.remove(link);
            room.stream.handle_leave(link.id);
            room.give_up(member.into_iter(), &self.metrics);
        }
        self.linger_if_empty(tenant);
    }

    fn leave(&mut self, tenant: &TenantId, link: &Arc<Link>, announce: bool) {
        let Some(room) = self.rooms.get_mut(tenant) else { return };
        room.flush(&self.metrics);
        let left = room.remove(link).is_some();
        let turn = self.joining.remove(&link.id);
        if let Some(ticket) = room.stream.handle_leave(link.id) {
            self.engine.request(Request::Forget { tenant: tenant.clone(), ticket });
            if let Some(turn) = turn {
                self.moot.insert(ticket, turn);
                self.due.insert(Due::OverdueMoot(ticket), PATIENCE);
            }
        }
        if left && announce {
            match link.write(&protocol::left(tenant), 1) {
                Ok(()) => link.note_answer(),
                Err(_) => link.close_with(CloseReason::SlowConsumer),
            }
        }
        self.linger_if_empty(tenant);
    }

    /// Closes the sockets whose tokens are revoked; returns by whose kick, and how many.
    fn close_kicked(&mut self) -> HashMap<Kicked, usize> {
        let (kicks, mut closed) = (self.kicks.clone(), HashMap::new());
        for tenant in self.rooms.keys().cloned().collect::<Vec<_>>() {
            let Some(room) = self.rooms.get_mut(&tenant) else { continue };
            room.flush(&self.metrics);
            let revoking = |member: &Member| kicks.revoking(&tenant, member.subject.as_deref(), member.issued_at);
            for member in room.extract(|member| revoking(member).is_some()) {
                if let Some(who) = revoking(&member) {
                    *closed.entry(who).or_default() += 1;
                }
                member.link.close_with(CloseReason::Kicked);
            }
            self.linger_if_empty(&tenant);
        }
        closed
    }

    fn heartbeat(&mut self, tenant: TenantId) {
        let Some(room) = self.rooms.get_mut(&tenant) else { return };
        room.flush(&self.metrics);
        let beat = protocol::heartbeat_and_ping(room.stream.head());
        let slow = room.audience.send_to_prompt(&beat);
        room.give_up(slow.into_iter(), &self.metrics);
        // Who waits for an answer that Redis owes is alive all the same, and must be able to show it.
        let slow = room.tell_waiting(&protocol::heartbeat_and_ping(None));
        room.give_up(slow.into_iter(), &self.metrics);
        room.heartbeat = self.due.insert(Due::Heartbeat(tenant.clone()), self.limits.heartbeat);
        self.linger_if_empty(&tenant);
    }

    fn each_room(&mut self, mut act: impl FnMut(&mut Stream)) {
        for tenant in self.rooms.keys().cloned().collect::<Vec<_>>() {
            self.in_room(&tenant, &mut act);
        }
    }

    /// Lets a room act, and carries out what it decides.
    fn in_room(&mut self, tenant: &TenantId, act: impl FnOnce(&mut Stream)) {
        let Some(room) = self.rooms.get_mut(tenant) else { return };
        act(&mut room.stream);
        while let Some(effect) = room.stream.poll_effect() {
            match effect {
                Effect::Deliver(message) => {
                    if let Some(database) = &self.database {
                        database.tell(tenant, &message);
                    }
                    if room.outgoing.is_empty() {
                        self.dirty.push(tenant.clone());
                    }
                    room.outgoing.push(message);
                }
                Effect::Subscribe(ticket) => {
                    self.engine.request(Request::Subscribe { tenant: tenant.clone(), ticket });
                }
                Effect::Read(ticket, after) => {
                    self.engine.request(Request::Read { tenant: tenant.clone(), ticket, after });
                }
                Effect::Filled => self.metrics.gap_filled(),
                Effect::Load(ticket) => {
                    if let Some(Database { snapshots, hub, .. }) = self.database.clone() {
                        let stale = Due::Stale(tenant.clone(), ticket);
                        self.due.insert(stale, LIFE);
                        let tenant = tenant.clone();
                        spawn_brief(async move {
                            // A panic answers too: the newcomers would wait for ever.
                            let snapshot = AssertUnwindSafe(snapshots.load(&tenant)).catch_unwind().await;
                            let snapshot = snapshot.unwrap_or_else(|_| Arc::new(Snapshot::none()));
                            hub.loaded(tenant, ticket, snapshot).await;
                        });
                    }
                }
                // Snapshots have limits of their own, and waiting for one is no work.
                Effect::Waits(member) => drop(self.joining.remove(&member)),
                Effect::Joined { newcomers, head, recovered, snapshot, replay } => {
                    room.flush(&self.metrics);
                    let heartbeat = self.limits.heartbeat.as_secs();
                    let lacks = match (&snapshot, &self.database) {
                        (Some(snapshot), _) => snapshot.missing,
                        // Who comes back may have had to start without what can't be had even now.
                        (None, Some(database)) => database.snapshots.lacking(tenant),
                        (None, None) => Parts::NONE,
                    };
                    if let (true, Some(database)) = (lacks.metrics, &self.database) {
                        // They start without figures, and should have some as soon as there are any.
                        database.figures.changed(tenant, head.clone());
                    }
                    room.complete_later(tenant, lacks, &mut self.due);
                    let joined = protocol::joined(tenant, &head, recovered, snapshot.as_deref(), heartbeat);
                    let frames = followed_by(joined, &replay);
                    for Newcomer { member, resumed } in newcomers {
                        let Some(index) = room.waiting.iter().position(|waiting| waiting.link.id == member) else {
                            continue;
                        };
                        let member = Member { lacks, ..room.waiting.swap_remove(index) };
                        self.joining.remove(&member.link.id);
                        self.metrics.joined(resumed.then_some(recovered));
                        // What was missed counts as one event: the log bounds it, and the bytes do.
                        match member.link.write(&frames, 1) {
                            Ok(()) => {
                                member.link.note_answer();
                                room.audience.seat(member);
                            }
                            Err(_) => room.give_up(std::iter::once(member), &self.metrics),
                        }
                    }
                }
                Effect::Resync { head, snapshot, replay } => {
                    warn!(%tenant, epoch = %head.epoch, seq = head.seq, "events are beyond recovery, dashboards resync");
                    self.metrics.gap_resync();
                    room.flush(&self.metrics);
                    let resync = protocol::resync(&head, snapshot.as_deref());
                    room.announce(&followed_by(resync, &replay), &self.metrics);
                    let lacks = snapshot.map_or(Parts::NONE, |snapshot| snapshot.missing);
                    room.audience.all_lack(lacks);
                    room.complete_later(tenant, lacks, &mut self.due);
                }
                Effect::Complete { head, snapshot } => {
                    room.flush(&self.metrics);
                    let resync = protocol::resync(&head, Some(&snapshot));
                    let slow = room.audience.complete(&resync, snapshot.missing);
                    room.give_up(slow.into_iter(), &self.metrics);
                }
                Effect::Degraded(outage) => room.announce_to_all(&protocol::degraded(&outage), &self.metrics),
                Effect::Restored(outage) => room.announce_to_all(&protocol::restored(&outage), &self.metrics),
            }
        }
        self.linger_if_empty(tenant);
    }

    /// Asks for what members lack of their snapshot, when it has a chance to be there.
    fn complete(&mut self, tenant: &TenantId) {
        let (Some(room), Some(database)) = (self.rooms.get_mut(tenant), &self.database) else { return };
        room.incomplete = None;
        let lacking = room.audience.lacking();
        let has_a_chance = database.snapshots.may_have(tenant, lacking);
        room.complete_later(tenant, lacking, &mut self.due);
        if has_a_chance {
            self.in_room(tenant, |stream| stream.handle_parts_due(lacking));
        }
    }

    fn flush_dirty(&mut self) {
        for tenant in std::mem::take(&mut self.dirty) {
            if let Some(room) = self.rooms.get_mut(&tenant) {
                room.flush(&self.metrics);
                self.linger_if_empty(&tenant);
            }
        }
    }

    /// Starts the wait after which an empty room closes.
    fn linger_if_empty(&mut self, tenant: &TenantId) {
        let Some(room) = self.rooms.get_mut(tenant) else { return };
        if room.members() > 0 || room.linger.is_some() {
            return;
        }
        if let Some(database) = &self.database {
            database.figures.unwatched(tenant);
        }
        if self.limits.linger.is_zero() {
            self.close_room(tenant);
        } else {
            let until = Instant::now() + self.limits.linger;
            room.linger = Some(self.due.insert_at(Due::Linger(tenant.clone()), until));
        }
    }

    fn lingered(&mut self, tenant: &TenantId) {
        if let Some(room) = self.rooms.get_mut(tenant) {
            room.linger = None;
            self.close_room(tenant);
        }
    }

    fn close_room(&mut self, tenant: &TenantId) {
        let Some(room) = self.rooms.remove(tenant) else { return };
        self.due.try_remove(&room.heartbeat);
        if let Some(incomplete) = room.incomplete {
            self.due.try_remove(&incomplete);
        }
        self.engine.request(Request::Unsubscribe { tenant: tenant.clone() });
        self.metrics.tenants(-1);
        debug!(%tenant, "room closed");
    }
}

/// Frames of a beginning and of what came after it.
fn followed_by(beginning: Bytes, events: &[Message]) -> Bytes {
    if events.is_empty() {
        return beginning;
    }
    let events = frame::texts(events.iter().map(|message| &*message.json));
    [beginning, events].concat().into()
}

impl Room {
    /// Sets the time to ask for what members lack of their snapshot.
    fn complete_later(&mut self, tenant: &TenantId, lacks: Parts, due: &mut DelayQueue<Due>) {
        if lacks != Parts::NONE && self.incomplete.is_none() {
            let delay = COMPLETE_AFTER.mul_f64(rand::random_range(0.5..=1.5));
            self.incomplete = Some(due.insert(Due::Incomplete(tenant.clone()), delay));
        }
    }

    fn members(&self) -> usize {
        self.audience.len() + self.waiting.len()
    }

    /// Sends the outgoing events in one write a socket.
    fn flush(&mut self, metrics: &Metrics) {
        if self.outgoing.is_empty() {
            return;
        }
        let messages = std::mem::take(&mut self.outgoing);
        let frames = match &messages[..] {
            [message] => frame::text(&message.json),
            messages => frame::texts(messages.iter().map(|message| &*message.json)),
        };
        let members = self.audience.len();
        let slow = self.audience.send(&frames, messages.len());
        metrics.delivered(&messages, members - slow.len());
        self.give_up(slow.into_iter(), metrics);
    }

    /// Sends one message to every joined member.
    fn announce(&mut self, frames: &Bytes, metrics: &Metrics) {
        let slow = self.audience.send(frames, 1);
        self.give_up(slow.into_iter(), metrics);
    }

    /// Sends one message to every member, joined or waiting.
    fn announce_to_all(&mut self, frames: &Bytes, metrics: &Metrics) {
        self.flush(metrics);
        self.announce(frames, metrics);
        let slow = self.tell_waiting(frames);
        self.give_up(slow.into_iter(), metrics);
    }

    /// Sends one message to every member whose join isn't answered; returns those that read too slowly, who are out.
    fn tell_waiting(&mut self, frames: &Bytes) -> Vec<Member> {
        let slow: Vec<_> = self.waiting.extract_if(.., |member| member.link.write(frames, 1).is_err()).collect();
        slow.iter().for_each(|member| {
            self.stream.handle_leave(member.link.id);
        });
        slow
    }

    /// Closes sockets that are out of the room because they read too slowly.
    fn give_up(&mut self, slow: impl Iterator<Item = Member>, metrics: &Metrics) {
        for member in slow {
            metrics.slow_consumer();
            member.link.close_with(CloseReason::SlowConsumer);
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
        waiting.iter().for_each(|member| {
            self.stream.handle_leave(member.link.id);
        });
        extracted.extend(waiting);
        extracted
    }
}
