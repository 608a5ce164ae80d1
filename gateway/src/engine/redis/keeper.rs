//! Keeps the subscriptions: what is wanted against what the server has acknowledged.
//!
//! All changes go to Redis in *rounds*, one at a time: subscribe, unsubscribe, ask the server how many subscriptions it
//! holds, then read the positions that rooms ask for, all on the one connection. What is asked for while a round runs goes
//! into the next, so a thousand joins at once take a few round trips. A round that fails, a broken connection, messages
//! dropped for want of room: each leads to a full round, which subscribes to everything anew and after which every room
//! compares its position. Nothing is assumed to have survived.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::OptionFuture;
use futures::{StreamExt, stream};
use publisher::TenantId;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::Proof;
use super::wire::{Push, Streams, Wire, WireError};
use crate::engine::{Kick, Known, Outage, Position, Reading, Request, Signal, Ticket};
use crate::hub::Hub;
use crate::metrics::Metrics;

/// How often the clocks are looked at.
const TICK: Duration = Duration::from_millis(100);
/// A broken connection that is whole again within this is nobody's concern.
const GRACE: Duration = Duration::from_secs(1);
/// Silence after which a probe is sent.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// Between a round that failed and the next.
const RETRY: Duration = Duration::from_millis(100);
/// Questions asked at once, at the most.
const MAX_WIDTH: usize = 32;
/// Questions of one round: so that the next SUBSCRIBE doesn't wait for all of them.
const MAX_QUESTIONS: usize = 512;
/// Between two questions about a tenant that the server refuses to answer.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Pushes taken in at once.
const PUSHES: usize = 256;
/// A cause that stays is logged this often.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// The task's state.
pub struct Keeper {
    wire: Arc<Wire>,
    hub: Hub,
    metrics: Metrics,
    proof: Proof,

    /// The tenants with a room, each with the question that its subscription has yet to answer.
    wanted: HashMap<TenantId, Option<Ticket>>,
    /// What the server was asked for on this connection, and has acknowledged.
    held: HashSet<TenantId>,
    questions: Vec<Question>,
    /// There may be something to do; kept so that a message costs no look at all rooms.
    changed: bool,
    /// Subscribe to everything: the connection is new, or not trusted.
    full: bool,
    /// Questions asked at once. Their answers together must fit Redis' output buffer for subscribers, beyond which it cuts the
    /// connection: fewer after each failure, more after each success.
    width: usize,
    /// Tenants whose questions the server refuses, and until when nobody asks again: their trouble is not the others'.
    refused: HashMap<TenantId, Instant>,
    /// Since when delivery can't be vouched for, and whether the rooms know.
    broken: Option<Broken>,
    retry_at: Instant,
    mismatches: u32,
    probe: Option<Instant>,
    heard: Option<Instant>,
    /// When the last full round succeeded.
    whole: Option<Instant>,
    last_kick: String,
    connected_before: bool,
    complaints: Complaints,
}

/// Says what is wrong at most once in a while, and that it is over only when it was said.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    open: bool,
}

impl Complaints {
    /// Whether to speak up.
    fn may_speak(&mut self) -> bool {
        let may = self.last.is_none_or(|at| at.elapsed() >= LOG_AGAIN);
        if may {
            self.last = Some(Instant::now());
            self.open = true;
        }
        may
    }
}

struct Broken {
    at: Instant,
    since: OffsetDateTime,
    told: bool,
}

/// A position that somebody wants to know.
enum Question {
    Room { tenant: TenantId, ticket: Ticket, after: Option<Known> },
    Head { tenant: TenantId, reply: oneshot::Sender<Position> },
}

impl Question {
    fn tenant(&self) -> &TenantId {
        match self {
            Self::Room { tenant, .. } | Self::Head { tenant, .. } => tenant,
        }
    }

    async fn ask(&self, wire: &Wire) -> Result<Reading, WireError> {
        match self {
            Self::Room { tenant, after, .. } => wire.position(tenant, after.as_ref()).await,
            Self::Head { tenant, .. } => wire.position(tenant, None).await,
        }
    }

    fn is_of_room(&self, room: &TenantId) -> bool {
        matches!(self, Self::Room { tenant, .. } if tenant == room)
    }

    /// Whether who asked has given up.
    fn is_moot(&self) -> bool {
        matches!(self, Self::Head { reply, .. } if reply.is_closed())
    }
}

/// What one round does.
struct Round {
    full: bool,
    subscribe: Vec<TenantId>,
    unsubscribe: Vec<TenantId>,
    /// How many subscriptions there must be after it.
    expected: usize,
    questions: Vec<Question>,
    width: usize,
    last_kick: String,
}

/// What it brought: for each question an answer or the reason why there is none, up to where the connection broke.
struct Answers {
    readings: Vec<Result<Reading, WireError>>,
    kicks: Vec<(String, Kick)>,
}

impl Answers {
    /// Whether the connection broke between the answers.
    fn cut_short(&self) -> bool {
        self.readings.iter().any(|reading| matches!(reading, Err(WireError::Connection(_))))
    }
}

#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the server holds {found} subscriptions instead of {expected}")]
    Mismatch { found: usize, expected: usize },
}

type Running = Pin<Box<dyn Future<Output = (Round, Result<Answers, RoundError>)> + Send>>;

impl Keeper {
    /// A keeper that wants nothing yet.
    pub fn new(wire: Arc<Wire>, hub: Hub, metrics: Metrics, proof: Proof) -> Self {
        let now = Instant::now();
        Self {
            wire,
            hub,
            metrics,
            proof,
            wanted: HashMap::new(),
            held: HashSet::new(),
            questions: Vec::new(),
            changed: true,
            full: true,
            width: MAX_WIDTH,
            refused: HashMap::new(),
            broken: Some(Broken { at: now, since: OffsetDateTime::now_utc(), told: false }),
            retry_at: now,
            mismatches: 0,
            probe: None,
            heard: None,
            whole: None,
            last_kick: "0-0".into(),
            connected_before: false,
            complaints: Complaints::default(),
        }
    }

    /// Works until the process exits.
    pub async fn run(mut self, mut streams: Streams, mut requests: mpsc::UnboundedReceiver<Request>) {
        let wire = self.wire.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round: Option<Running> = None;
        loop {
            if round.is_none() {
                round = self.next_round().map(|round| Box::pin(round.run(wire.clone())) as Running);
            }
            tokio::select! {
                push = streams.next(&wire) => {
                    self.push(push).await;
                    // What one read of the connection brought goes to the rooms together.
                    for push in std::iter::from_fn(|| streams.try_next(&wire)).take(PUSHES) {
                        self.push(push).await;
                    }
                }
                Some(request) = requests.recv() => {
                    self.take(request);
                    // What came together goes into one round.
                    while let Ok(request) = requests.try_recv() {
                        self.take(request);
                    }
                }
                Some((done, result)) = OptionFuture::from(round.as_mut()) => {
                    round = None;
                    // Whatever Redis sent before its answers must reach the rooms before them.
                    while let Some(push) = streams.try_next(&wire) {
                        self.push(push).await;
                    }
                    self.finish(done, result).await;
                }
                _ = tick.tick() => {
                    streams.revive(&wire);
                    self.tick().await;
                }
            }
        }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Subscribe { tenant, ticket } => {
                self.wanted.insert(tenant, Some(ticket));
            }
            Request::Unsubscribe { tenant } => {
                self.wanted.remove(&tenant);
                // Nobody is left to hear the answers.
                self.questions.retain(|question| !question.is_of_room(&tenant));
            }
            Request::Read { tenant, ticket, after } => {
                self.questions.push(Question::Room { tenant, ticket, after: Some(after) });
            }
            Request::Forget { tenant, ticket: moot } => self.questions.retain(|question| {
                !matches!(question, Question::Room { tenant: of, ticket, .. } if *of == tenant && *ticket == moot)
            }),
            Request::Head { tenant, reply } => self.questions.push(Question::Head { tenant, reply }),
        }
        self.changed = true;
    }

    async fn push(&mut self, push: Push) {
        match push {
            Push::Broken(error) => {
                if self.complaints.may_speak() {
                    warn!(error, "no connection to Redis");
                }
                self.breaks();
                return;
            }
            Push::Connected => {
                if std::mem::replace(&mut self.connected_before, true) {
                    self.metrics.redis_reconnected();
                }
                self.breaks();
                self.retry_at = Instant::now();
                return;
            }
            Push::Lagged(dropped) => {
                warn!(dropped, "messages came faster than they could be taken in; every room compares its position");
                self.full = true;
                self.changed = true;
            }
            Push::Event(tenant, message) => self.hub.signal(Signal::Message { tenant, message }).await,
            Push::Kick(kick) => self.hub.signal(Signal::Kick(kick)).await,
            Push::Probe | Push::Foreign => {}
        }
        self.heard = Some(Instant::now());
        self.probe = None;
        self.proof.renew();
    }

    /// The connection can't be trusted any more.
    fn breaks(&mut self) {
        self.full = true;
        self.changed = true;
        self.held.clear();
        self.probe = None;
        let vouched = self.heard.max(self.whole);
        let since = OffsetDateTime::now_utc() - vouched.map_or(Duration::ZERO, |at| at.elapsed());
        self.broken.get_or_insert_with(|| Broken { at: Instant::now(), since, told: false });
    }

    /// What is to be done now, if anything.
    fn next_round(&mut self) -> Option<Round> {
        let now = Instant::now();
        if !self.changed || now < self.retry_at {
            return None;
        }
        let full = std::mem::take(&mut self.full);
        if full {
            self.held.clear();
        }
        let subscribe: Vec<_> = self.wanted.keys().filter(|tenant| !self.held.contains(*tenant)).cloned().collect();
        let unsubscribe: Vec<_> =
            self.held.iter().filter(|tenant| !self.wanted.contains_key(*tenant)).cloned().collect();
        self.refused.retain(|_, until| *until > now);
        let refused = |tenant: &TenantId| self.refused.contains_key(tenant);
        let open = self.wanted.iter().filter(|(tenant, _)| !refused(tenant)).filter_map(|(tenant, ticket)| {
            Some(Question::Room { tenant: tenant.clone(), ticket: (*ticket)?, after: None })
        });
        let mut questions: Vec<_> = open.take(MAX_QUESTIONS).collect();
        self.questions.retain(|question| !question.is_moot());
        let room = MAX_QUESTIONS - questions.len();
        questions.extend(self.questions.extract_if(.., |question| !refused(question.tenant())).take(room));

        // What is left over, or refused, comes with a later round.
        self.changed = !self.questions.is_empty() || self.wanted.values().any(Option::is_some);
        if !full && subscribe.is_empty() && unsubscribe.is_empty() && questions.is_empty() {
            return None;
        }
        let expected = self.wanted.len() + Wire::OWN_CHANNELS;
        let last_kick = self.last_kick.clone();
        Some(Round { full, subscribe, unsubscribe, expected, questions, width: self.width, last_kick })
    }

    async fn finish(&mut self, round: Round, proved: Result<Answers, RoundError>) {
        self.changed = true;
        if proved.as_ref().is_ok_and(Answers::cut_short) {
            self.width = (self.width / 2).max(1);
        }
        // A connection that broke meanwhile has made another full round necessary: what this one proved is void.
        match proved {
            Ok(answers) if !self.full => self.answered(round, answers).await,
            Ok(_) => self.failed(round.questions, None).await,
            Err(error) => self.failed(round.questions, Some(error)).await,
        }
        self.show();
    }

    async fn answered(&mut self, round: Round, answers: Answers) {
        self.mismatches = 0;
        self.held.extend(round.subscribe);
        round.unsubscribe.iter().for_each(|tenant| {
            self.held.remove(tenant);
        });
        if round.full {
            self.broken = None;
            self.whole = Some(Instant::now());
            if std::mem::take(&mut self.complaints.open) {
                info!(subscriptions = round.expected, "connected to Redis");
            }
            self.hub.signal(Signal::Returned).await;
        }
        for (id, kick) in answers.kicks {
            self.last_kick = id;
            self.hub.signal(Signal::Kick(kick)).await;
        }

        let mut questions = round.questions.into_iter();
        let mut broke = None;
        for (answer, question) in answers.readings.into_iter().zip(questions.by_ref()) {
            match answer {
                Ok(reading) => self.answer(question, reading).await,
                Err(error @ WireError::Connection(_)) => {
                    self.put_back(question);
                    broke = Some(error);
                }
                Err(error) => {
                    if self.complaints.may_speak() {
                        warn!(tenant = %question.tenant(), %error, "Redis does not answer for a tenant");
                    }
                    self.refused.insert(question.tenant().clone(), Instant::now() + REFUSED_PAUSE);
                    self.put_back(question);
                }
            }
        }
        match broke {
            Some(error) => self.failed(questions.collect(), Some(error.into())).await,
            None => self.width = (self.width * 2).min(MAX_WIDTH),
        }
    }

    async fn answer(&mut self, question: Question, reading: Reading) {
        match question {
            Question::Room { tenant, ticket, .. } => {
                if let Some(open) = self.wanted.get_mut(&tenant).filter(|open| **open == Some(ticket)) {
                    *open = None;
                }
                self.hub.signal(Signal::Reading { tenant, ticket, reading }).await;
            }
            Question::Head { reply, .. } => {
                // Who asked may have given up.
                let _ = reply.send(reading.head);
            }
        }
    }

    /// Keeps a question for a later round; a subscription's own is made anew from what is wanted then.
    fn put_back(&mut self, question: Question) {
        if !matches!(question, Question::Room { after: None, .. }) {
            self.questions.push(question);
        }
    }

    async fn failed(&mut self, questions: Vec<Question>, error: Option<RoundError>) {
        questions.into_iter().for_each(|question| self.put_back(question));
        self.full = true;
        self.held.clear();
        // Without an error the round was only overtaken by a new connection, and the next one need not wait.
        let Some(error) = error else { return };
        self.retry_at = Instant::now() + RETRY;
        if matches!(error, RoundError::Mismatch { .. }) {
            self.mismatches += 1;
            warn!(%error, "subscriptions are not as they should be, subscribing anew");
            if self.mismatches > 1 {
                self.wire.reconnect().await;
            }
        } else if self.complaints.may_speak() {
            warn!(%error, "Redis does not answer as it should");
        }
        self.breaks();
    }

    async fn tick(&mut self) {
        if self.probe.is_some_and(|sent| sent.elapsed() >= PROBE_LIMIT) {
            self.metrics.probe_failed();
            warn!("a probe did not come back, connecting anew");
            self.breaks();
            self.wire.reconnect().await;
            // There was time enough for it to be nothing.
            self.tell_lost(Duration::ZERO).await;
        }
        self.tell_lost(GRACE).await;

        let silent = self.heard.is_none_or(|at| at.elapsed() >= SILENCE);
        if self.broken.is_none() && silent && self.probe.is_none() {
            self.probe = Some(Instant::now());
            let wire = self.wire.clone();
            // If it can't be sent it won't come back, which is all there is to know.
            tokio::spawn(async move { wire.probe().await });
        }
        self.show();
    }

    async fn tell_lost(&mut self, grace: Duration) {
        if let Some(broken) = self.broken.as_mut().filter(|broken| !broken.told && broken.at.elapsed() >= grace) {
            broken.told = true;
            let outage = Outage { reason: "redis", since: broken.since };
            self.hub.signal(Signal::Lost(outage)).await;
        }
    }

    fn show(&self) {
        let pending = self.wanted.keys().filter(|tenant| !self.held.contains(*tenant)).count();
        self.metrics.subscriptions_pending(pending);
        let proved = self.heard.is_some_and(|at| at.elapsed() < SILENCE + PROBE_LIMIT);
        self.metrics.engine_up(proved && self.broken.as_ref().is_none_or(|broken| !broken.told));
    }
}

impl Round {
    async fn run(self, wire: Arc<Wire>) -> (Self, Result<Answers, RoundError>) {
        let result = self.attempt(&wire).await;
        (self, result)
    }

    async fn attempt(&self, wire: &Wire) -> Result<Answers, RoundError> {
        if self.full {
            wire.subscribe_own().await?;
        }
        wire.subscribe(&self.subscribe).await?;
        wire.unsubscribe(&self.unsubscribe).await?;
        let found = wire.subscriptions().await?;
        if found != self.expected {
            return Err(RoundError::Mismatch { found, expected: self.expected });
        }
        let kicks = wire.kicks_after(&self.last_kick).await?;
        let asked: Vec<_> = self.questions.iter().map(|question| question.ask(wire)).collect();
        let mut asked = stream::iter(asked).buffered(self.width);
        let mut readings = Vec::with_capacity(self.questions.len());
        while let Some(reading) = asked.next().await {
            let broken = matches!(reading, Err(WireError::Connection(_)));
            readings.push(reading);
            if broken {
                break;
            }
        }
        Ok(Answers { readings, kicks })
    }
}
