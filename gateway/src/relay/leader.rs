//! One leader's term: fetch, publish, mark, in turns that overlap.
//!
//! A *turn* on the leader's session marks the rows that were published since the last one and fetches what waits. Between fetch and
//! mark a tenant is *busy* and nothing more of it is fetched, so its batches follow each other; tenants don't wait for each other,
//! and no transaction is open while Redis is talked to. Rows that are cut off in between are fetched again by the next leader, and
//! Redis knows the events that it has published before.
//!
//! When Redis has moved to another master, the rows of the last seconds are published *again*: the old one may have acknowledged
//! events that the new one never got. All others are duplicates.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::OptionFuture;
use futures::stream::FuturesUnordered;
use publisher::internals::{LogThrottle, Relayed, Term, task};
use publisher::{Outcome, PublishError, TenantId};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::rows::{Batch, Done, Fate, Fetched, Pending, Portion, Session};
use super::upkeep::{ALERTS_KEPT, CONDENSED_TOGETHER, Condensed, Figures, Upkeep};
use crate::engine::Engine;
use crate::metrics::relay::RelayMetrics;

/// How often rows are looked for that no notification told of. Also what keeps the session, and the lock, alive.
const POLL: Duration = Duration::from_millis(250);
/// Publishes under way at once.
const IN_FLIGHT: usize = 128;
/// How long a tenant waits whose event couldn't be published.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// How long a tenant's figures are not asked for after there were none.
const NO_FIGURES_PAUSE: Duration = Duration::from_secs(5);
/// How long a tenant's rows go out one by one after they could not be condensed.
const ONE_BY_ONE: Duration = Duration::from_secs(30);
/// How long a flood is taken to go on after its last rows were condensed.
const FLOOD_GOES_ON: Duration = Duration::from_secs(2);
/// The lead is given up when Redis has answered nothing for this time, and rows wait: other gateways may reach it.
const CUT_OFF: Duration = Duration::from_secs(3);
/// The same when Redis answers for other tenants: one node of a cluster can't be reached.
const CUT_OFF_IN_PART: Duration = Duration::from_secs(15);
/// An old master may have acknowledged rows for this time before its end was noticed.
const DOUBTFUL: Duration = Duration::from_secs(10);
/// A publish that was under way when Redis moved is marked within this.
const MARKED: Duration = Duration::from_secs(3);
/// A move is of no interest after this: its rows have been published again by the leader of then.
const PAST: Duration = Duration::from_secs(30);
/// How long a broken listener waits before it tries again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// How often old rows are looked for.
const PRUNE: Duration = Duration::from_secs(10);
/// How often the backlog is measured, at the most.
const MEASURE: Duration = Duration::from_secs(1);
/// A stopping leader finishes what it is publishing within this.
const FINISH: Duration = Duration::from_secs(1);

/// Why a term is over.
pub(super) enum Resigned {
    Stopped,
    Superseded(Term),
    /// Redis can't be reached from here.
    CutOff,
    Lost(sqlx::Error),
}

/// What a busy tenant is busy with.
enum Busy {
    Publishing,
    Condensing,
    /// Nothing, until then: it is throttled, or Redis is away.
    Parked(Instant),
}

/// Where the rows of a batch come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// They wait for their mark.
    Waiting,
    /// They were published before, and have it.
    Again,
}

/// The end of a tenant's batch.
struct Drained {
    tenant: TenantId,
    source: Source,
    done: Vec<Done>,
    /// Rows that were not reached.
    rest: Vec<Pending>,
    /// Rows of this batch that the tenant's dashboards have now, less those that they had before.
    published: usize,
    /// Whether Redis answered.
    answered: bool,
    end: End,
}

impl Drained {
    fn mark(&mut self, id: i64, fate: Fate) {
        self.done.push(Done { tenant: self.tenant.clone(), id, fate });
    }
}

enum End {
    All,
    Throttled(Duration),
    Failed(PublishError),
    Superseded(Term),
}

type Turn = Pin<Box<dyn Future<Output = (Session, sqlx::Result<Fetched>)> + Send>>;
type Drain = Pin<Box<dyn Future<Output = Drained> + Send>>;
type Condensing = Pin<Box<dyn Future<Output = (TenantId, sqlx::Result<Condensed>)> + Send>>;

/// What a relay keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayConfig {
    /// Rows of a tenant that may wait; more are condensed.
    pub condense_after: usize,
    /// Events of a tenant in any second: more rows than that are not taken up at once.
    pub events_per_second: usize,
}

/// The leader's state.
pub(super) struct Leader<'a> {
    engine: &'a Engine,
    config: RelayConfig,
    metrics: &'a RelayMetrics,
    throttle: &'a mut LogThrottle,
    term: Term,
    options: &'a PgConnectOptions,
    upkeep: Upkeep,

    busy: HashMap<TenantId, Busy>,
    /// Tenants whose batches are through; free once `done` is marked.
    through: Vec<TenantId>,
    done: Vec<Done>,
    /// Done rows that other sessions have locked; the next turn tries to mark them again, and fetches nothing of their tenants before.
    locked: Vec<Done>,
    /// Tenants whose backlog was condensed, and until when a smaller one is condensed too: the rest of a flood does not trickle out.
    flooded: HashMap<TenantId, Instant>,
    /// Whether the last publish was answered: nothing is condensed for want of Redis.
    answered: bool,
    /// Tenants for which there were no figures, and until when none are asked for.
    without_figures: HashMap<TenantId, Instant>,
    /// Tenants that could not be condensed, and until when that is not tried.
    one_by_one: HashMap<TenantId, Instant>,
    /// Tenants up to this one had their turn.
    after: String,
    /// Rows to be published again, before any other of their tenants.
    again: HashMap<TenantId, Vec<Pending>>,
    moves: Moves,
    /// Tenants for which Redis can't be reached, and since when.
    unreachable: HashMap<TenantId, Instant>,
    /// When Redis last answered.
    reached: Option<Instant>,
    in_flight: Arc<Semaphore>,
    condensing: Arc<Semaphore>,
    drains: FuturesUnordered<Drain>,
    condensings: FuturesUnordered<Condensing>,
}

impl<'a> Leader<'a> {
    pub(super) fn new(
        options: &'a PgConnectOptions,
        engine: &'a Engine,
        config: RelayConfig,
        metrics: &'a RelayMetrics,
        throttle: &'a mut LogThrottle,
        term: Term,
    ) -> Self {
        Self {
            engine,
            config,
            metrics,
            throttle,
            term,
            options,
            upkeep: Upkeep::new(options),
            busy: HashMap::new(),
            through: Vec::new(),
            done: Vec::new(),
            locked: Vec::new(),
            flooded: HashMap::new(),
            answered: true,
            without_figures: HashMap::new(),
            one_by_one: HashMap::new(),
            after: String::new(),
            again: HashMap::new(),
            moves: Moves::default(),
            unreachable: HashMap::new(),
            reached: None,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            condensing: Arc::new(Semaphore::new(CONDENSED_TOGETHER)),
            drains: FuturesUnordered::new(),
            condensings: FuturesUnordered::new(),
        }
    }

    /// Leads on this session until it is lost, another has succeeded, or `stop`.
    pub(super) async fn lead(mut self, session: Session, stop: &CancellationToken) -> Resigned {
        let wake = Arc::new(Notify::new());
        let (options, woken) = (self.options.clone(), wake.clone());
        let _listening = task::keep_running("outbox listener", move || listen(options.clone(), woken.clone()));
        let upkeep = self.upkeep.clone();
        let metrics = self.metrics;
        let keeping = async { tokio::join!(prune(&upkeep), measure(&upkeep, metrics)) };
        let resigned = tokio::select! {
            resigned = self.take_turns(session, &wake, stop) => resigned,
            _ = keeping => unreachable!("they never end"),
        };
        // A transaction that is under way ends here: its connection would never come back to the pool.
        self.condensings.clear();
        let _ = timeout(FINISH, upkeep.close()).await;
        resigned
    }

    async fn take_turns(&mut self, session: Session, wake: &Notify, stop: &CancellationToken) -> Resigned {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session = Some(session);
        let mut turn: Option<Turn> = None;
        let mut look = true;
        let resigned = loop {
            look |= self.unpark() | self.moves.are_due(self.engine.moved());
            if (look || !self.done.is_empty())
                && let Some(mut session) = session.take()
            {
                look = false;
                let (done, busy) = self.begin_turn();
                let portion = Portion {
                    rows: self.config.events_per_second,
                    // So many rows tell whether there are few alerts, or other rows.
                    count: (self.config.condense_after + 1).max(ALERTS_KEPT as usize),
                    after: std::mem::take(&mut self.after),
                };
                let lately = self.moves.take_due();
                turn = Some(Box::pin(async move {
                    let fetched = session.turn(done, busy, portion, lately).await;
                    (session, fetched)
                }));
            }
            let next_unpark = self.next_unpark();
            tokio::select! {
                Some((returned, fetched)) = OptionFuture::from(turn.as_mut()) => {
                    turn = None;
                    match fetched {
                        Ok(fetched) => {
                            session = Some(returned);
                            look |= !fetched.after.is_empty();
                            self.after = fetched.after;
                            self.locked = fetched.locked;
                            self.again.extend(fetched.published);
                            self.publish_again();
                            fetched.batches.into_iter().for_each(|batch| self.take_up(batch));
                        }
                        Err(error) => return Resigned::Lost(error),
                    }
                }
                Some(drained) = self.drains.next() => match self.drained(drained) {
                    Ok(()) => {}
                    Err(Resigned::CutOff) => break Resigned::CutOff,
                    Err(resigned) => return resigned,
                },
                Some((tenant, condensed)) = self.condensings.next() => match condensed {
                    Ok(Condensed::Superseded) => return Resigned::Superseded(self.term),
                    condensed => {
                        self.condensed(tenant, condensed);
                        look = true;
                    }
                },
                () = wake.notified() => look = true,
                _ = poll.tick() => look = true,
                () = sleep_until(next_unpark) => {}
                () = stop.cancelled() => break Resigned::Stopped,
            }
        };
        self.finish(session, turn).await;
        resigned
    }

    /// What the next turn marks, and whose rows it must not fetch.
    fn begin_turn(&mut self) -> (Vec<Done>, Vec<String>) {
        for tenant in self.through.drain(..) {
            self.busy.remove(&tenant);
        }
        self.publish_again();
        let busy = self.busy.keys().map(|tenant| tenant.as_str().to_owned()).collect();
        let mut done = std::mem::take(&mut self.done);
        done.append(&mut self.locked);
        (done, busy)
    }

    /// Publishes a tenant's batch, or condenses its backlog.
    fn take_up(&mut self, batch: Batch) {
        let Batch { tenant, rows, backlog, alerts } = batch;
        // Rows that are published again come first; these are fetched again after them.
        if self.busy.contains_key(&tenant) {
            return;
        }
        // The rest of a flood is condensed as well when it is more than goes out at once.
        let flooded = is_before(&mut self.flooded, &tenant);
        let patience = if flooded {
            self.config.events_per_second.min(self.config.condense_after)
        } else {
            self.config.condense_after
        };
        let can_be_condensed = backlog > alerts || alerts >= ALERTS_KEPT as usize;
        if backlog > patience && can_be_condensed && self.answered && !is_before(&mut self.one_by_one, &tenant) {
            self.busy.insert(tenant.clone(), Busy::Condensing);
            let (upkeep, term, condensing) = (self.upkeep.clone(), self.term, self.condensing.clone());
            let figures = if is_before(&mut self.without_figures, &tenant) { Figures::Null } else { Figures::Ask };
            // A task of its own: reading thousands of rows must not hold up the tenants that publish.
            let of = tenant.clone();
            let condensing = task::run(async move {
                // Fails only when the semaphore is closed, which it never is.
                let _permit = condensing.acquire().await;
                upkeep.condense(&of, term, figures).await
            });
            self.condensings.push(Box::pin(async move {
                let condensed = condensing.await.unwrap_or_else(|panic| Err(sqlx::Error::Decode(panic.into())));
                (tenant, condensed)
            }));
            return;
        }
        if flooded && backlog <= rows.len() {
            self.flooded.remove(&tenant);
        }
        self.publish(tenant, rows, Source::Waiting);
    }

    fn publish(&mut self, tenant: TenantId, rows: Vec<Pending>, source: Source) {
        self.busy.insert(tenant.clone(), Busy::Publishing);
        let (engine, in_flight, term) = (self.engine.clone(), self.in_flight.clone(), self.term);
        self.drains.push(Box::pin(drain(engine, in_flight, term, tenant, rows, source)));
    }

    /// Publishes rows again whose tenants aren't busy.
    fn publish_again(&mut self) {
        let busy = &self.busy;
        let free: Vec<_> = self.again.extract_if(|tenant, _| !busy.contains_key(tenant)).collect();
        for (tenant, rows) in free {
            self.publish(tenant, rows, Source::Again);
        }
    }

    /// Hears of the end of a batch; an error is the end of the term.
    fn drained(&mut self, drained: Drained) -> Result<(), Resigned> {
        let Drained { tenant, source, done, rest, published, answered, end } = drained;
        if source == Source::Waiting {
            self.done.extend(done);
        } else if !rest.is_empty() {
            // A later look may have found them already, and more.
            self.again.entry(tenant.clone()).or_insert(rest);
        }
        self.metrics.published(published);
        self.answered = !matches!(&end, End::Failed(error) if is_unreachable(error));
        if answered {
            self.reached = Some(Instant::now());
            self.unreachable.remove(&tenant);
        }
        match end {
            End::All => self.through.push(tenant),
            End::Throttled(wait) => {
                self.busy.insert(tenant, Busy::Parked(Instant::now() + wait));
            }
            End::Failed(error) => {
                if self.throttle.is_due("publish") {
                    warn!(%tenant, %error, "an event of the outbox can't be published, its tenant's rows wait");
                }
                let cut_off = is_unreachable(&error) && self.is_cut_off(&tenant);
                self.busy.insert(tenant, Busy::Parked(Instant::now() + TRY_AGAIN));
                if cut_off {
                    return Err(Resigned::CutOff);
                }
            }
            End::Superseded(by) => return Err(Resigned::Superseded(by)),
        }
        Ok(())
    }

    /// Whether this one failure more means that others should lead.
    fn is_cut_off(&mut self, tenant: &TenantId) -> bool {
        let now = Instant::now();
        let since = *self.unreachable.entry(tenant.clone()).or_insert(now);
        let limit = if self.reached.is_some_and(|reached| reached > since) { CUT_OFF_IN_PART } else { CUT_OFF };
        now - since >= limit
    }

    fn condensed(&mut self, tenant: TenantId, condensed: sqlx::Result<Condensed>) {
        let until = match condensed {
            Ok(Condensed::Rows { rows, into, without_figures }) => {
                self.metrics.condensed(rows);
                self.flooded.insert(tenant.clone(), Instant::now() + FLOOD_GOES_ON);
                if let Some(reason) = without_figures {
                    if self.throttle.is_due("figures") {
                        warn!(%tenant, reason, "a backlog is condensed without figures");
                    }
                    self.without_figures.entry(tenant.clone()).or_insert(Instant::now() + NO_FIGURES_PAUSE);
                }
                // At once, not behind alerts that wait.
                return self.publish(tenant, vec![into], Source::Waiting);
            }
            Ok(Condensed::Nothing { refused: 1.. } | Condensed::Superseded) => Instant::now(),
            Ok(Condensed::Nothing { refused: 0 }) => Instant::now() + POLL,
            Err(error) => {
                if self.throttle.is_due("condense") {
                    warn!(%tenant, %error, "a backlog can't be condensed, its rows go out one by one");
                }
                Instant::now() + ONE_BY_ONE
            }
        };
        self.busy.remove(&tenant);
        self.one_by_one.insert(tenant, until);
    }

    /// Frees the tenants whose wait is over; whether there were any.
    fn unpark(&mut self) -> bool {
        let (now, before) = (Instant::now(), self.busy.len());
        self.busy.retain(|_, busy| !matches!(busy, Busy::Parked(until) if *until <= now));
        self.busy.len() < before
    }

    fn next_unpark(&self) -> Instant {
        let parked = self.busy.values().filter_map(|busy| match busy {
            Busy::Parked(until) => Some(*until),
            Busy::Publishing | Busy::Condensing => None,
        });
        parked.min().unwrap_or_else(|| Instant::now() + POLL)
    }

    /// Lets what is being published come to its end, and marks it; the lock goes with the session.
    async fn finish(&mut self, session: Option<Session>, turn: Option<Turn>) {
        let finish = async {
            let session = match (session, turn) {
                (None, Some(turn)) => turn.await.0,
                (Some(session), _) => session,
                (None, None) => return,
            };
            while let Some(drained) = self.drains.next().await {
                if self.drained(drained).is_err() {
                    return;
                }
            }
            let (done, _) = self.begin_turn();
            session.mark_and_close(done).await;
        };
        let _ = timeout(FINISH, finish).await;
    }
}

/// Publishes a tenant's rows, one after the other, up to the first that has to wait.
async fn drain(
    engine: Engine,
    in_flight: Arc<Semaphore>,
    term: Term,
    tenant: TenantId,
    rows: Vec<Pending>,
    source: Source,
) -> Drained {
    let done = Vec::with_capacity(rows.len());
    let mut drained = Drained { tenant, source, done, rest: Vec::new(), published: 0, answered: false, end: End::All };
    let mut rows = rows.into_iter();
    while let Some(Pending { id, event }) = rows.next() {
        let Some(event) = event else {
            drained.mark(id, Fate::Refused);
            continue;
        };
        // Fails only when the semaphore is closed, which it never is.
        let _permit = in_flight.acquire().await;
        let relayed = engine.relay(&drained.tenant, &event, term).await;
        drained.answered |= relayed.as_ref().map_or_else(|error| !is_unreachable(error), |_| true);
        drained.end = match relayed {
            Ok(Relayed::Outcome(outcome @ (Outcome::Published { .. } | Outcome::Duplicate { .. }))) => {
                drained.mark(id, Fate::Published);
                drained.published += usize::from(matches!(outcome, Outcome::Published { .. }));
                continue;
            }
            Ok(Relayed::Outcome(Outcome::Throttled { retry_after })) => End::Throttled(retry_after),
            Ok(Relayed::Outcome(outcome)) => End::Failed(PublishError::Refused(format!("unknown outcome {outcome:?}"))),
            Ok(Relayed::Superseded { term }) => End::Superseded(term),
            // It was read with the same rules: only the rules of another version can refuse it.
            Err(PublishError::Invalid(error)) => {
                tracing::error!(row = id, %error, "a row of the outbox breaks a rule and is passed over");
                drained.mark(id, Fate::Refused);
                continue;
            }
            Err(error) => End::Failed(error),
        };
        drained.rest = std::iter::once(Pending { id, event: Some(event) }).chain(rows).collect();
        break;
    }
    drained
}

/// Whether Redis gave no answer, or none that it would give to every gateway.
fn is_unreachable(error: &PublishError) -> bool {
    match error {
        PublishError::Unavailable | PublishError::Unknown { .. } | PublishError::Overloaded => true,
        PublishError::Refused(why) => why.starts_with("NOPERM"),
        _ => false,
    }
}

/// Whether a tenant's time isn't over.
fn is_before(times: &mut HashMap<TenantId, Instant>, tenant: &TenantId) -> bool {
    let now = Instant::now();
    times.retain(|_, until| *until > now);
    times.contains_key(tenant)
}

/// What this leader knows of Redis' moves, and when it looks for rows that one of them may have lost: at once, and again when
/// every publish that was under way has its mark.
#[derive(Debug, Default)]
struct Moves {
    last: Option<Instant>,
    looks: Vec<Instant>,
}

impl Moves {
    /// Whether it is time to look.
    fn are_due(&mut self, moved: Option<Instant>) -> bool {
        let now = Instant::now();
        if let Some(moved) = moved.filter(|moved| self.last != Some(*moved)) {
            self.last = Some(moved);
            if now - moved < PAST {
                self.looks = vec![now, now + MARKED];
            }
        }
        self.looks.first().is_some_and(|look| *look <= now)
    }

    /// How far to look back, if it is time.
    fn take_due(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let due = self.looks.iter().filter(|look| **look <= now).count();
        self.looks.drain(..due);
        self.last.filter(|_| due > 0).map(|moved| now - moved + DOUBTFUL)
    }
}

/// Wakes the leader for every notification. Notifications get lost (a connection that breaks, a pooler in between): the poll finds
/// what they would have told of.
async fn listen(options: PgConnectOptions, wake: Arc<Notify>) {
    loop {
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
        let listening = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen("dashboard_outbox").await?;
            loop {
                // None: the connection was lost, and with it perhaps a notification.
                listener.try_recv().await?;
                wake.notify_one();
            }
        };
        let _: sqlx::Result<()> = listening.await;
        sleep(LISTEN_AGAIN).await;
    }
}

async fn prune(upkeep: &Upkeep) {
    let mut tick = interval(PRUNE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = upkeep.prune().await {
            warn!(%error, "relayed rows could not be pruned");
        }
    }
}

/// Counting a backlog of a million takes its time: it may take a twentieth of all there is.
async fn measure(upkeep: &Upkeep, metrics: &RelayMetrics) {
    let mut throttle = LogThrottle::default();
    loop {
        let began = Instant::now();
        if let Ok(backlog) = upkeep.measure().await {
            metrics.waiting(backlog.rows, backlog.lag_seconds);
            let (rows, kind) = (backlog.for_a_newer_relay, backlog.newer_type);
            if rows > 0 && throttle.is_due("newer") {
                warn!(rows, kind, "rows of the outbox wait for a newer relay: this one doesn't know their type");
            }
        }
        sleep(MEASURE.max(20 * began.elapsed())).await;
    }
}
