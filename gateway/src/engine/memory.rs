//! The engine of a single instance: the same semantics as Redis and the scripts, in this process' memory.
//!
//! One task owns every stream, so what is atomic there because Redis runs a script at a time is atomic here because the
//! task handles a command at a time. It lives as long as the process does: no epoch outlives its counter.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use publisher::internals::script::{self, Urgency};
use publisher::internals::{Epoch, Message, Relayed, Term};
use publisher::{DashboardEvent, EventId, Outcome, PublishError, TenantId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval};

use super::{Known, Position, Reading, Request, Rooms, Signal};

/// Publishes that wait for the engine's task.
const QUEUE: usize = 1024;
/// How often what has expired is forgotten.
const SWEEP: Duration = Duration::from_secs(30);

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct MemoryEngine {
    requests: mpsc::UnboundedSender<Request>,
    orders: mpsc::Sender<Order>,
}

/// What the engine keeps, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct MemoryLimits {
    /// Events of a tenant in any second.
    pub events_per_second: u32,
    /// Events kept for recovery.
    pub recovery_events: usize,
    /// How long they are kept after the last one.
    pub recovery: Duration,
}

/// An event to publish.
struct Order {
    tenant: TenantId,
    event: DashboardEvent,
    term: Option<Term>,
    urgency: Urgency,
    reply: oneshot::Sender<Relayed>,
}

/// What the engine has for the rooms.
pub struct MemoryFeed {
    limits: MemoryLimits,
    requests: mpsc::UnboundedReceiver<Request>,
    orders: mpsc::Receiver<Order>,
}

impl MemoryFeed {
    /// Keeps the streams and tells the rooms of them, until the process ends.
    pub async fn run(self, rooms: impl Rooms) {
        let streams = Streams { limits: self.limits, streams: HashMap::new(), rooms };
        streams.run(self.requests, self.orders).await;
    }
}

impl MemoryEngine {
    /// The engine and its feed, which must run for anything to be published.
    pub fn new(limits: MemoryLimits) -> (Self, MemoryFeed) {
        let (requests, request_queue) = mpsc::unbounded_channel();
        let (orders, order_queue) = mpsc::channel(QUEUE);
        (Self { requests, orders }, MemoryFeed { limits, requests: request_queue, orders: order_queue })
    }

    pub(super) fn request(&self, request: Request) {
        // Fails only when the process is exiting.
        let _ = self.requests.send(request);
    }

    pub(super) async fn publish(
        &self,
        tenant: &TenantId,
        event: &DashboardEvent,
        term: Option<Term>,
        urgency: Urgency,
    ) -> Result<Relayed, PublishError> {
        event.validate()?;
        let (reply, outcome) = oneshot::channel();
        let order = Order { tenant: tenant.clone(), event: event.clone(), term, urgency, reply };
        self.orders.send(order).await.map_err(|_| PublishError::Unavailable)?;
        outcome.await.map_err(|_| PublishError::Unavailable)
    }
}

/// The task's state.
struct Streams<R> {
    limits: MemoryLimits,
    streams: HashMap<TenantId, Stream>,
    rooms: R,
}

/// One tenant's stream: what Redis keeps in the state, the log and the marks.
struct Stream {
    /// The tenant's own: a position in another tenant's stream must mean nothing here.
    epoch: Epoch,
    seq: u64,
    id: Option<EventId>,
    /// When the bucket's tokens were spent, in microseconds, oldest first.
    spent: VecDeque<u64>,
    log: VecDeque<Message>,
    published: Option<Instant>,
    /// Publish-once marks: the number that the event got, and until when the mark counts.
    once: HashMap<EventId, (u64, Instant)>,
    subscribed: bool,
    /// Of the latest leader of the relay that published here.
    term: Term,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            epoch: fresh_epoch(),
            seq: 0,
            id: None,
            spent: VecDeque::new(),
            log: VecDeque::new(),
            published: None,
            once: HashMap::new(),
            subscribed: false,
            term: Term::default(),
        }
    }
}

impl<R: Rooms> Streams<R> {
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>, mut orders: mpsc::Receiver<Order>) {
        let mut sweep = interval(SWEEP);
        loop {
            tokio::select! {
                biased;
                Some(request) = requests.recv() => self.answer(request).await,
                Some(Order { tenant, event, term, urgency, reply }) = orders.recv() => {
                    let relayed = match self.superseding(&tenant, term) {
                        Some(term) => Relayed::Superseded { term },
                        None => Relayed::Outcome(self.publish(&tenant, &event, term.is_some(), urgency).await),
                    };
                    let _ = reply.send(relayed);
                }
                _ = sweep.tick() => self.sweep(),
                else => return,
            }
        }
    }

    async fn answer(&mut self, request: Request) {
        match request {
            Request::Subscribe { tenant, ticket } => {
                self.stream(&tenant).subscribed = true;
                let reading = self.read(&tenant, None);
                self.rooms.handle(Signal::Reading { tenant, ticket, reading }).await;
            }
            Request::Unsubscribe { tenant } => self.stream(&tenant).subscribed = false,
            Request::Read { tenant, ticket, after: Known::Room(after) | Known::Client(after) } => {
                let reading = self.read(&tenant, Some(&after));
                self.rooms.handle(Signal::Reading { tenant, ticket, reading }).await;
            }
            // It was answered at once.
            Request::Forget { .. } => {}
            Request::Head { tenant, reply } => {
                let _ = reply.send(self.read(&tenant, None).head);
            }
        }
    }

    fn stream(&mut self, tenant: &TenantId) -> &mut Stream {
        self.streams.entry(tenant.clone()).or_default()
    }

    fn read(&mut self, tenant: &TenantId, after: Option<&Position>) -> Reading {
        let recovery = self.limits.recovery;
        let stream = self.stream(tenant);
        stream.forget_expired_log(recovery);
        let head = Position { epoch: stream.epoch.clone(), seq: stream.seq, id: stream.id.clone() };
        let events = match after {
            Some(after) if after.epoch == stream.epoch => {
                stream.log.iter().filter(|message| message.seq > after.seq).cloned().collect()
            }
            _ => Vec::new(),
        };
        Reading { head, events }
    }

    /// The later leader's term, if one has been here: publish.lua's fence.
    fn superseding(&mut self, tenant: &TenantId, term: Option<Term>) -> Option<Term> {
        let known = &mut self.stream(tenant).term;
        *known = (*known).max(term.unwrap_or_default());
        term.filter(|term| term < known).map(|_| *known)
    }

    async fn publish(&mut self, tenant: &TenantId, event: &DashboardEvent, relayed: bool, urgency: Urgency) -> Outcome {
        let MemoryLimits { events_per_second, recovery_events, recovery } = self.limits;
        let now = now_micros();
        let stream = self.stream(tenant);
        if let Some((seq, until)) = stream.once.get(&event.id)
            && Instant::now() < *until
        {
            return Outcome::Duplicate { seq: *seq };
        }
        if let Some(wait) =
            stream.throttled(now, events_per_second, script::reserve(&event.data, urgency, events_per_second))
        {
            return Outcome::Throttled { retry_after: wait };
        }
        stream.forget_expired_log(recovery);
        stream.seq += 1;
        let message = Message::new(event, stream.epoch.clone(), stream.seq, stream.id.replace(event.id.clone()), now);
        stream.log.push_back(message.clone());
        if stream.log.len() > recovery_events {
            stream.log.pop_front();
        }
        stream.published = Some(Instant::now());
        let until = Instant::now() + Duration::from_millis(script::once_millis(&event.data, relayed));
        stream.once.insert(event.id.clone(), (stream.seq, until));
        let (seq, receivers) = (stream.seq, u64::from(stream.subscribed));
        if stream.subscribed {
            self.rooms.deliver(vec![(tenant.clone(), message)]).await;
        }
        Outcome::Published { seq, receivers }
    }

    /// Forgets what Redis would let expire. A stream's counter stays: with it goes the identity of its events.
    fn sweep(&mut self) {
        let (recovery, now) = (self.limits.recovery, Instant::now());
        for stream in self.streams.values_mut() {
            stream.forget_expired_log(recovery);
            stream.once.retain(|_, (_, until)| now < *until);
        }
    }
}

impl Stream {
    /// Spends a token, or says when there will be one. Each token returns one second after it was spent: no window of a second ever has more events.
    fn throttled(&mut self, now: u64, capacity: u32, reserve: u32) -> Option<Duration> {
        const SECOND: u64 = 1_000_000;
        const TREMOR: u64 = 20_000;
        let clock = now;
        let newest = self.spent.back().copied().unwrap_or(0);
        let set_back = newest > clock + TREMOR;
        if set_back {
            // Tokens spent in the future count as spent now, or the tenant would wait for the old clock.
            self.spent.iter_mut().for_each(|spent| *spent = clock.min(*spent));
        }
        let now = if set_back { clock } else { clock.max(newest) };
        let usable = (capacity - reserve) as usize;
        let oldest = self.spent.len().checked_sub(usable).and_then(|index| self.spent.get(index));
        if let Some(oldest) = oldest.filter(|oldest| now - **oldest < SECOND) {
            // By the clock, for the caller waits by a clock.
            return Some(Duration::from_micros(oldest + SECOND - clock));
        }
        self.spent.push_back(now);
        if self.spent.len() > capacity as usize {
            self.spent.pop_front();
        }
        None
    }

    fn forget_expired_log(&mut self, recovery: Duration) {
        if self.published.is_some_and(|at| at.elapsed() >= recovery) {
            self.log = VecDeque::new();
        }
    }
}

/// An epoch that no other stream has, and none of another start had.
fn fresh_epoch() -> Epoch {
    let epoch = format!("m-{}", EventId::new());
    epoch.parse().expect("an event id is visible ASCII, and shorter than an epoch may be")
}

pub(super) fn now_millis() -> u64 {
    now_micros() / 1000
}

fn now_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests;
