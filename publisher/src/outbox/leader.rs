//! One leader's term: fetch, publish, mark, in turns that overlap.
//!
//! A *turn* on the leader's session marks the rows that were published since the last one and fetches what waits. Between fetch and
//! mark a tenant is *busy* and nothing more of it is fetched, so its batches follow each other; tenants don't wait for each other,
//! and no transaction is open while Redis is talked to. Whatever is cut off in between is fetched again by the next leader, and
//! Redis knows what it has published before.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, future::OptionFuture, stream::FuturesUnordered};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::warn;

use super::{
    Relayed, Sink, Term,
    relay::RelayConfig,
    rows::{Batch, Fate, Pending, Portion, Session},
    upkeep::{Condensed, Upkeep},
};
use crate::{error::PublishError, metrics::RelayMetrics, publisher::Outcome, tenant::TenantId};

/// How often rows are looked for that no notification told of. Also what keeps the session, and the lock, alive.
const POLL: Duration = Duration::from_millis(250);
/// Publishes under way at once.
const IN_FLIGHT: usize = 128;
/// How long a tenant waits whose event couldn't be published.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// How long a backlog is left alone after there were no figures to condense it into.
const NO_FIGURES_PAUSE: Duration = Duration::from_secs(30);
/// How long a broken listener waits before it tries again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// How often old rows are looked for.
const PRUNE: Duration = Duration::from_secs(10);
/// How often the backlog is measured, at the most.
const MEASURE: Duration = Duration::from_secs(1);
/// A stopping leader finishes what it is publishing within this.
const FINISH: Duration = Duration::from_secs(1);
/// A cause that stays is logged this often.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// Why a term is over.
pub(super) enum Resigned {
    Stopped,
    Succeeded(Term),
    Lost(sqlx::Error),
}

/// What a busy tenant is busy with.
enum Busy {
    Publishing,
    Condensing,
    /// Nothing, until then: it is throttled, or Redis is away.
    Parked(Instant),
}

/// The end of a tenant's batch.
struct Drained {
    tenant: TenantId,
    done: Vec<(i64, Fate)>,
    /// Rows of this batch that the tenant's dashboards have now, less those that they had before.
    published: usize,
    end: End,
}

enum End {
    All,
    Throttled(Duration),
    Failed(PublishError),
    Succeeded(Term),
}

type Turn = Pin<Box<dyn Future<Output = (Session, sqlx::Result<Vec<Batch>>)> + Send>>;
type Drain = Pin<Box<dyn Future<Output = Drained> + Send>>;
type Condensing = Pin<Box<dyn Future<Output = (TenantId, sqlx::Result<Condensed>)> + Send>>;

/// The leader's state.
pub(super) struct Leader<'a, S> {
    sink: &'a S,
    config: RelayConfig,
    metrics: &'a RelayMetrics,
    term: Term,
    options: &'a PgConnectOptions,
    upkeep: Upkeep,

    busy: HashMap<TenantId, Busy>,
    /// Tenants whose batches are through; free once `done` is marked.
    through: Vec<TenantId>,
    done: Vec<(i64, Fate)>,
    /// Tenants whose backlog was condensed, until they have caught up: what is left of a flood isn't dripped out.
    flooded: HashSet<TenantId>,
    /// Whether the last publish was answered: nothing is condensed for want of Redis.
    answered: bool,
    /// Tenants for which there were no figures, and until when their backlogs are left alone.
    without_figures: HashMap<TenantId, Instant>,
    in_flight: Arc<Semaphore>,
    drains: FuturesUnordered<Drain>,
    condensings: FuturesUnordered<Condensing>,
    complained: Option<Instant>,
}

impl<'a, S: Sink> Leader<'a, S> {
    pub(super) fn new(
        options: &'a PgConnectOptions,
        sink: &'a S,
        config: RelayConfig,
        metrics: &'a RelayMetrics,
        term: Term,
    ) -> Self {
        Self {
            sink,
            config,
            metrics,
            term,
            options,
            upkeep: Upkeep::new(options),
            busy: HashMap::new(),
            through: Vec::new(),
            done: Vec::new(),
            flooded: HashSet::new(),
            answered: true,
            without_figures: HashMap::new(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            drains: FuturesUnordered::new(),
            condensings: FuturesUnordered::new(),
            complained: None,
        }
    }

    /// Leads on this session until it is lost, another has succeeded, or `stop`.
    pub(super) async fn lead(mut self, session: Session, stop: &CancellationToken) -> Resigned {
        let wake = Arc::new(Notify::new());
        let _listening = AbortOnDropHandle::new(tokio::spawn(listen(self.options.clone(), wake.clone())));
        let upkeep = self.upkeep.clone();
        let metrics = self.metrics;
        let keeping = async { tokio::join!(prune(&upkeep), measure(&upkeep, metrics)) };
        let resigned = tokio::select! {
            resigned = self.take_turns(session, &wake, stop) => resigned,
            _ = keeping => unreachable!("they never end"),
        };
        upkeep.close().await;
        resigned
    }

    async fn take_turns(&mut self, session: Session, wake: &Notify, stop: &CancellationToken) -> Resigned {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session = Some(session);
        let mut turn: Option<Turn> = None;
        let mut look = true;
        loop {
            look |= self.unpark();
            if (look || !self.done.is_empty())
                && let Some(mut session) = session.take()
            {
                look = false;
                let (done, busy) = self.begin_turn();
                let portion = Portion { rows: self.config.events_per_second, count: self.config.condense_after + 1 };
                turn = Some(Box::pin(async move {
                    let fetched = session.turn(&done, &busy, portion).await;
                    (session, fetched)
                }));
            }
            let next_unpark = self.next_unpark();
            tokio::select! {
                Some((returned, fetched)) = OptionFuture::from(turn.as_mut()) => {
                    turn = None;
                    match fetched {
                        Ok(batches) => {
                            session = Some(returned);
                            batches.into_iter().for_each(|batch| self.take_up(batch));
                        }
                        Err(error) => return Resigned::Lost(error),
                    }
                }
                Some(drained) = self.drains.next() => if let Err(by) = self.drained(drained) {
                    return Resigned::Succeeded(by);
                },
                Some((tenant, condensed)) = self.condensings.next() => match condensed {
                    Ok(Condensed::Succeeded) => return Resigned::Succeeded(self.term),
                    condensed => {
                        self.condensed(tenant, condensed);
                        look = true;
                    }
                },
                () = wake.notified() => look = true,
                _ = poll.tick() => look = true,
                () = sleep_until(next_unpark) => {}
                () = stop.cancelled() => break,
            }
        }
        self.finish(session, turn).await;
        Resigned::Stopped
    }

    /// What the next turn marks, and whose rows it must not fetch.
    fn begin_turn(&mut self) -> (Vec<(i64, Fate)>, Vec<String>) {
        for tenant in self.through.drain(..) {
            self.busy.remove(&tenant);
        }
        let busy = self.busy.keys().map(|tenant| tenant.as_str().to_owned()).collect();
        (std::mem::take(&mut self.done), busy)
    }

    /// Publishes a tenant's batch, or condenses its backlog.
    fn take_up(&mut self, batch: Batch) {
        let Batch { tenant, rows, backlog } = batch;
        // What is left of a flood is condensed as well when it is more than goes out at once.
        let flooded = self.flooded.contains(&tenant);
        let patience = if flooded {
            self.config.events_per_second.min(self.config.condense_after)
        } else {
            self.config.condense_after
        };
        let figures = self.without_figures.get(&tenant).is_none_or(|until| *until <= Instant::now());
        if backlog > patience && self.answered && figures {
            self.busy.insert(tenant.clone(), Busy::Condensing);
            let (upkeep, term) = (self.upkeep.clone(), self.term);
            self.condensings.push(Box::pin(async move {
                let condensed = upkeep.condense(&tenant, term).await;
                (tenant, condensed)
            }));
            return;
        }
        if flooded && backlog <= rows.len() {
            self.flooded.remove(&tenant);
        }
        self.busy.insert(tenant.clone(), Busy::Publishing);
        let (sink, in_flight, term) = (self.sink.clone(), self.in_flight.clone(), self.term);
        self.drains.push(Box::pin(drain(sink, in_flight, term, tenant, rows)));
    }

    fn drained(&mut self, drained: Drained) -> Result<(), Term> {
        let Drained { tenant, done, published, end } = drained;
        self.done.extend(done);
        self.metrics.published(published);
        self.answered = !matches!(end, End::Failed(_));
        match end {
            End::All => self.through.push(tenant),
            End::Throttled(wait) => {
                self.busy.insert(tenant, Busy::Parked(Instant::now() + wait));
            }
            End::Failed(error) => {
                if self.may_complain() {
                    warn!(%tenant, %error, "an event of the outbox can't be published, its tenant's rows wait");
                }
                self.busy.insert(tenant, Busy::Parked(Instant::now() + TRY_AGAIN));
            }
            End::Succeeded(by) => return Err(by),
        }
        Ok(())
    }

    fn condensed(&mut self, tenant: TenantId, condensed: sqlx::Result<Condensed>) {
        self.busy.remove(&tenant);
        match condensed {
            Ok(Condensed::Rows(rows)) => {
                self.metrics.condensed(rows);
                self.flooded.insert(tenant);
            }
            Ok(Condensed::NoFigures | Condensed::Succeeded) => {
                if self.may_complain() {
                    warn!(%tenant, "a backlog is not condensed: dashboard.metrics has no figures for it");
                }
                let now = Instant::now();
                self.without_figures.retain(|_, until| *until > now);
                self.without_figures.insert(tenant, now + NO_FIGURES_PAUSE);
            }
            Err(error) => {
                self.busy.insert(tenant, Busy::Parked(Instant::now() + TRY_AGAIN));
                if self.may_complain() {
                    warn!(%error, "a backlog could not be condensed");
                }
            }
        }
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
            session.mark_and_close(&done).await;
        };
        let _ = timeout(FINISH, finish).await;
    }

    fn may_complain(&mut self) -> bool {
        let may = self.complained.is_none_or(|at| at.elapsed() >= LOG_AGAIN);
        if may {
            self.complained = Some(Instant::now());
        }
        may
    }
}

/// Publishes a tenant's rows, one after the other, up to the first that has to wait.
async fn drain<S: Sink>(
    sink: S,
    in_flight: Arc<Semaphore>,
    term: Term,
    tenant: TenantId,
    rows: Vec<Pending>,
) -> Drained {
    let mut drained = Drained { tenant, done: Vec::with_capacity(rows.len()), published: 0, end: End::All };
    for Pending { id, event } in rows {
        let Some(event) = event else {
            drained.done.push((id, Fate::Refused));
            continue;
        };
        // Fails only when the semaphore is closed, which it never is.
        let _permit = in_flight.acquire().await;
        drained.end = match sink.relay(&drained.tenant, &event, term).await {
            Ok(Relayed::Outcome(outcome @ (Outcome::Published { .. } | Outcome::Duplicate { .. }))) => {
                drained.done.push((id, Fate::Published));
                drained.published += usize::from(matches!(outcome, Outcome::Published { .. }));
                continue;
            }
            Ok(Relayed::Outcome(Outcome::Throttled { retry_after })) => End::Throttled(retry_after),
            Ok(Relayed::Succeeded { term }) => End::Succeeded(term),
            // It was read with the same rules: only the rules of another version can refuse it.
            Err(PublishError::Invalid(error)) => {
                tracing::error!(row = id, %error, "a row of the outbox breaks a rule and is passed over");
                drained.done.push((id, Fate::Refused));
                continue;
            }
            Err(error) => End::Failed(error),
        };
        break;
    }
    drained
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
    loop {
        let began = Instant::now();
        if let Ok((rows, lag)) = upkeep.measure().await {
            metrics.waiting(rows, lag);
        }
        sleep(MEASURE.max(20 * began.elapsed())).await;
    }
}
