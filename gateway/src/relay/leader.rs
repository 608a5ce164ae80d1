//! One leader's term: fetch, publish, mark, in turns that overlap.
//!
//! A *turn* on the leader's session marks the rows that were published since the last turn, and fetches rows that wait. A tenant is *busy*
//! from the fetch of its rows to their mark, and none of its rows are fetched meanwhile, so that its batches follow each other. Tenants
//! don't wait for each other, and no transaction is open during a publish. Rows that are cut off in between are fetched again by the
//! next leader, and Redis knows the events that it has published before.
//!
//! When Redis has moved to another server, the rows of the last seconds are published *again*: the old server may have acknowledged
//! events that the new one never got. All others are duplicates.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::OptionFuture;
use futures::stream::FuturesUnordered;
use publisher::TenantId;
use publisher::internals::{LogThrottle, Term, task};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::condensing::{ALERTS_KEPT, Condensed, MetricsQuery, condense};
use super::contact::{Contact, Verdict};
use super::delivery::{Delivered, End, Reason, deliver};
use super::listener::listen;
use super::moves::Moves;
use super::rows::Pending;
use super::session::Session;
use super::tenants::{NotCondensed, Plan, RelayConfig, Tenants};
use super::turn::{Batch, Done, Fetched, Portion, Turn, mark};
use super::upkeep::{keep_measuring, keep_pruning};
use crate::engine::Engine;
use crate::metrics::relay::RelayMetrics;

/// The time between two fetches when no notification comes. The fetches also keep the session alive, and the lock with it.
const POLL: Duration = Duration::from_millis(250);
/// Publishes under way at once.
const IN_FLIGHT: usize = 128;
/// Tenants that are condensed at once.
const CONDENSED_TOGETHER: usize = 2;
/// A tenant whose event couldn't be published waits for this time.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// A leader that stops finishes its deliveries within this time.
const FINISH: Duration = Duration::from_secs(1);

/// Why a term is over.
pub(super) enum Resigned {
    Stopped,
    Superseded(Term),
    /// Redis can't be reached from here.
    CutOff,
    /// The session is lost.
    Lost(sqlx::Error),
}

type Turning = Pin<Box<dyn Future<Output = (Session, sqlx::Result<Fetched>)> + Send>>;
type Delivering = Pin<Box<dyn Future<Output = Delivered> + Send>>;
type Condensing = Pin<Box<dyn Future<Output = (TenantId, sqlx::Result<Condensed>)> + Send>>;

/// The leader's state.
pub(super) struct Leader<'a> {
    engine: &'a Engine,
    config: RelayConfig,
    metrics: &'a RelayMetrics,
    throttle: &'a mut LogThrottle,
    term: Term,
    options: &'a PgConnectOptions,
    /// The connections beside the session: for condensing, pruning and measuring.
    pool: PgPool,

    tenants: Tenants,
    contact: Contact,
    moves: Moves,
    /// Rows to be marked.
    done: Vec<Done>,
    /// Rows that could not be marked, since other sessions have locked them. The next turn tries again, and fetches nothing of their
    /// tenants before.
    locked: Vec<Done>,
    /// The last turn fetched rows of tenants up to this one; of all tenants when empty.
    after: String,
    /// Rows to be published again, before any other of their tenants.
    again: HashMap<TenantId, Vec<Pending>>,
    in_flight: Arc<Semaphore>,
    condensing: Arc<Semaphore>,
    deliveries: FuturesUnordered<Delivering>,
    condensings: FuturesUnordered<Condensing>,
}

impl<'a> Leader<'a> {
    pub fn new(
        options: &'a PgConnectOptions,
        engine: &'a Engine,
        config: RelayConfig,
        metrics: &'a RelayMetrics,
        throttle: &'a mut LogThrottle,
        term: Term,
    ) -> Self {
        // One connection prunes, and one measures.
        let pool =
            PgPoolOptions::new().max_connections(CONDENSED_TOGETHER as u32 + 2).acquire_timeout(Duration::from_secs(3));
        Self {
            engine,
            config,
            metrics,
            throttle,
            term,
            options,
            pool: pool.connect_lazy_with(options.clone()),
            tenants: Tenants::new(config),
            contact: Contact::new(),
            moves: Moves::default(),
            done: Vec::new(),
            locked: Vec::new(),
            after: String::new(),
            again: HashMap::new(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            condensing: Arc::new(Semaphore::new(CONDENSED_TOGETHER)),
            deliveries: FuturesUnordered::new(),
            condensings: FuturesUnordered::new(),
        }
    }

    /// Leads on this session until the session is lost, a later leader is there, Redis can't be reached, or `stop`.
    pub async fn lead(mut self, session: Session, stop: &CancellationToken) -> Resigned {
        let wake = Arc::new(Notify::new());
        let (options, woken) = (self.options.clone(), wake.clone());
        let _listening = task::keep_running("outbox listener", move || listen(options.clone(), woken.clone()));
        let pool = self.pool.clone();
        let metrics = self.metrics;
        let upkeep = async { tokio::join!(keep_pruning(&pool), keep_measuring(&pool, metrics)) };
        let resigned = tokio::select! {
            resigned = self.take_turns(session, &wake, stop) => resigned,
            _ = upkeep => unreachable!("they never end"),
        };
        // A transaction that is under way ends here: its connection would never come back to the pool.
        self.condensings.clear();
        let _ = timeout(FINISH, pool.close()).await;
        resigned
    }

    async fn take_turns(&mut self, session: Session, wake: &Notify, stop: &CancellationToken) -> Resigned {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session = Some(session);
        let mut turning: Option<Turning> = None;
        let mut fetch_due = true;
        let resigned = loop {
            fetch_due |= self.tenants.unpark() | self.moves.are_due(self.engine.moved());
            if (fetch_due || !self.done.is_empty())
                && let Some(mut session) = session.take()
            {
                fetch_due = false;
                let turn = self.begin_turn();
                turning = Some(Box::pin(async move {
                    let fetched = turn.take(session.connection()).await;
                    (session, fetched)
                }));
            }
            let next_unpark = self.tenants.next_unpark().unwrap_or_else(|| Instant::now() + POLL);
            tokio::select! {
                Some((returned, fetched)) = OptionFuture::from(turning.as_mut()) => {
                    turning = None;
                    match fetched {
                        Ok(fetched) => {
                            session = Some(returned);
                            fetch_due |= !fetched.after.is_empty();
                            self.fetched(fetched);
                        }
                        Err(error) => return Resigned::Lost(error),
                    }
                }
                Some(delivered) = self.deliveries.next() => match self.delivered(delivered) {
                    Ok(()) => {}
                    Err(Resigned::CutOff) => break Resigned::CutOff,
                    Err(resigned) => return resigned,
                },
                Some((tenant, condensed)) = self.condensings.next() => match condensed {
                    Ok(Condensed::Superseded) => return Resigned::Superseded(self.term),
                    condensed => {
                        self.condensed(tenant, condensed);
                        fetch_due = true;
                    }
                },
                () = wake.notified() => fetch_due = true,
                _ = poll.tick() => fetch_due = true,
                () = sleep_until(next_unpark) => {}
                () = stop.cancelled() => break Resigned::Stopped,
            }
        };
        self.finish(session, turning).await;
        resigned
    }

    fn begin_turn(&mut self) -> Turn {
        let (done, busy) = self.begin_marks();
        Turn {
            done,
            busy,
            portion: Portion {
                rows: self.config.events_per_second,
                // A count up to this number tells whether the backlog is condensed.
                count: (self.config.condense_after + 1).max(ALERTS_KEPT),
                after: std::mem::take(&mut self.after),
            },
            published_within: self.moves.take_due(),
        }
    }

    /// The rows to mark, and the tenants that are busy all the same.
    fn begin_marks(&mut self) -> (Vec<Done>, Vec<String>) {
        self.tenants.marked();
        self.publish_again();
        let busy = self.tenants.busy().map(|tenant| tenant.as_str().to_owned()).collect();
        let mut done = std::mem::take(&mut self.done);
        done.append(&mut self.locked);
        (done, busy)
    }

    fn fetched(&mut self, fetched: Fetched) {
        self.after = fetched.after;
        self.locked = fetched.locked;
        self.again.extend(fetched.published);
        self.publish_again();
        fetched.batches.into_iter().for_each(|batch| self.take_up(batch));
    }

    /// Publishes a tenant's batch, or condenses its backlog.
    fn take_up(&mut self, batch: Batch) {
        match self.tenants.plan(&batch, &self.contact) {
            Plan::Leave => {}
            Plan::Publish => self.publish(batch.tenant, batch.rows, Reason::Waiting),
            Plan::Condense(metrics) => self.condense(batch.tenant, metrics),
        }
    }

    fn condense(&mut self, tenant: TenantId, metrics: MetricsQuery) {
        self.tenants.condensing(&tenant);
        let (pool, term, condensing, of) = (self.pool.clone(), self.term, self.condensing.clone(), tenant.clone());
        // A task of its own: parsing thousands of rows must not hold up the other tenants' deliveries.
        let task = task::run(async move {
            // Fails only when the semaphore is closed, which it never is.
            let _permit = condensing.acquire().await;
            condense(&pool, &of, term, metrics).await
        });
        self.condensings.push(Box::pin(async move {
            (tenant, task.await.unwrap_or_else(|panic| Err(sqlx::Error::Decode(panic.into()))))
        }));
    }

    fn publish(&mut self, tenant: TenantId, rows: Vec<Pending>, reason: Reason) {
        self.tenants.publishing(&tenant);
        let (engine, in_flight) = (self.engine.clone(), self.in_flight.clone());
        self.deliveries.push(Box::pin(deliver(engine, in_flight, self.term, tenant, rows, reason)));
    }

    /// Publishes rows again whose tenants aren't busy.
    fn publish_again(&mut self) {
        let tenants = &self.tenants;
        let free: Vec<_> = self.again.extract_if(|tenant, _| !tenants.is_busy(tenant)).collect();
        for (tenant, rows) in free {
            self.publish(tenant, rows, Reason::Again);
        }
    }

    /// A delivery has ended. An error is the end of the term.
    fn delivered(&mut self, delivered: Delivered) -> Result<(), Resigned> {
        let verdict = self.contact.heard(&delivered);
        let Delivered { tenant, reason, done, rest, published, end, .. } = delivered;
        match reason {
            Reason::Waiting => self.done.extend(done),
            Reason::Again if rest.is_empty() => {}
            // A later fetch may have found these rows already, and more.
            Reason::Again => drop(self.again.entry(tenant.clone()).or_insert(rest)),
        }
        self.metrics.published(published);
        match end {
            End::All => self.tenants.delivered(tenant),
            End::Throttled(wait) => self.tenants.park(tenant, wait),
            End::Failed(error) => {
                if self.throttle.is_due("publish") {
                    warn!(%tenant, %error, "outbox event not published, the tenant's rows wait");
                }
                self.tenants.park(tenant, RETRY_PAUSE);
                if verdict == Verdict::GiveUp {
                    return Err(Resigned::CutOff);
                }
            }
            End::Superseded(by) => return Err(Resigned::Superseded(by)),
        }
        Ok(())
    }

    fn condensed(&mut self, tenant: TenantId, condensed: sqlx::Result<Condensed>) {
        let why = match condensed {
            Ok(Condensed::Rows { rows, into, without_metrics }) => {
                self.metrics.condensed(rows);
                self.tenants.condensed(&tenant);
                if let Some(reason) = without_metrics {
                    if self.throttle.is_due("metrics") {
                        warn!(%tenant, reason, "backlog condensed without figures");
                    }
                    self.tenants.had_no_metrics(&tenant);
                }
                // At once, not behind alerts that wait.
                return self.publish(tenant, vec![into], Reason::Waiting);
            }
            Ok(Condensed::Nothing { refused: 0 }) => NotCondensed::Nothing,
            Ok(Condensed::Nothing { .. } | Condensed::Superseded) => NotCondensed::Refused,
            Err(error) => {
                if self.throttle.is_due("condense") {
                    warn!(%tenant, %error, "backlog not condensed, its rows go out one by one");
                }
                NotCondensed::Failed
            }
        };
        self.tenants.not_condensed(&tenant, why, POLL);
    }

    /// Waits for the deliveries under way, and marks their rows. The lock goes with the session. Rows that can't be marked are
    /// published again by the next leader, as duplicates.
    async fn finish(&mut self, session: Option<Session>, turning: Option<Turning>) {
        let finish = async {
            let mut session = match (session, turning) {
                (None, Some(turning)) => turning.await.0,
                (Some(session), _) => session,
                (None, None) => return,
            };
            while let Some(delivered) = self.deliveries.next().await {
                if self.delivered(delivered).is_err() {
                    return;
                }
            }
            let (done, _) = self.begin_marks();
            let _ = mark(session.connection(), done).await;
            session.close().await;
        };
        let _ = timeout(FINISH, finish).await;
    }
}
