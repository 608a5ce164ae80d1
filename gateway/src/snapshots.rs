//! Snapshots: what a dashboard starts from, read from Postgres, and never at the price of a join.
//!
//! Three kinds of trouble are kept apart. A database that can't be reached is the trouble of all: after a failure one question at a time
//! finds out whether the database is back, and every other join is answered without a snapshot. A view that does not exist is the trouble
//! of its part: the part of every tenant pauses. A view that fails or is slow for one tenant is the trouble of that tenant: only this part
//! of its snapshot pauses, longer after each failure.

pub mod queries;

use std::fmt::{self, Display};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::{future, sync};
use publisher::{MetricsUpdated, TenantId};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool, Postgres};
use tokio::sync::{OwnedMutexGuard, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use crate::engine::Position;
use crate::socket::snapshot::{Parts, RecentPayment, Snapshot};
use queries::{LeftOut, SnapshotError};

/// For how long a snapshot is good for others, from the moment it was asked for.
pub const LIFE: Duration = Duration::from_secs(1);
/// Connections of one instance: each query is short.
const CONNECTIONS: u32 = 8;
/// Of them, those for tenants whose last query failed: any number of slow views leaves the others for everybody else.
const IN_TROUBLE: usize = 2;
/// The three waits of a snapshot, which together are what a join waits at most: for the tenant's turn, for a connection, and for the
/// answers.
const TURN_LIMIT: Duration = Duration::from_millis(400);
const CONNECT_LIMIT: Duration = Duration::from_millis(600);
const QUERY_LIMIT: Duration = Duration::from_millis(1000);
/// Begins the questions of a session: PostgreSQL itself ends each soon, so that its connection can be used again. Behind a pooler the limit
/// must not outlast the session, and a startup parameter would be refused.
const BEGIN: &str = "begin; set local statement_timeout = '900ms'";
/// After a failure of the connection no question is asked for this time.
const PAUSE: Duration = Duration::from_secs(1);
/// A part pauses for this time when its view is missing: the view has to be created first.
const MISSING_PAUSE: Duration = Duration::from_secs(30);
/// A part of a tenant's snapshot that fails pauses for `PAUSE` at first, twice as long after each further failure, and for this time at
/// most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Tenants that fail are logged this often.
const LOG_AGAIN: Duration = Duration::from_secs(60);
/// Tenants whose last answer to `GET /dashboard/snapshot` is kept for a second, and whose troubles are known.
const CACHED_TENANTS: u64 = 10_000;
/// A tenant's troubles are forgotten when no question was asked for this time.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Rows that were left out and named; each is named once a day at most.
const NAMED_ROWS: u64 = 1_000;
const NAME_AGAIN: Duration = Duration::from_secs(24 * 60 * 60);
/// Rows that are named within [`LOG_AGAIN`].
const NAMES_A_MINUTE: u32 = 10;

/// A snapshot with the position that it is no older than. Without real time there are no positions, and without a database there are no
/// snapshots.
pub type Placed = Arc<(Option<Position>, Option<Arc<Snapshot>>)>;

/// Postgres is away, or has no views to read, or fails for this tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("figures can't be read")]
pub struct Unavailable;

/// Where snapshots come from; cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    source: Source,
    placed: future::Cache<TenantId, Placed>,
}

#[derive(Clone)]
enum Source {
    Postgres(Arc<Views>),
    Books(Books),
}

/// The books of the demo's centre.
pub type Books = Arc<dyn Fn(&TenantId) -> queries::Contents + Send + Sync>;

/// The views of the database, with what is known about their state.
struct Views {
    pool: PgPool,
    health: Mutex<Health>,
    missing: Mutex<MissingViews>,
    tenants: sync::Cache<TenantId, Arc<Tenant>>,
    /// Turns of tenants that are well, and of tenants in trouble: as many as there are connections, so that a turn is a connection.
    turns: Semaphore,
    turns_in_trouble: Semaphore,
    throttle: LogThrottle,
}

/// Whether the database is worth a question.
enum Health {
    Good,
    /// Not before then.
    Pausing {
        until: Instant,
    },
    /// One question is under way to find out, since then.
    Probing {
        since: Instant,
    },
}

/// The views that do not exist, or are not ours to read: each is looked for when its time has come.
#[derive(Default)]
struct MissingViews {
    figures: Option<Instant>,
    payments: Option<Instant>,
}

impl MissingViews {
    fn of(&mut self, part: Part) -> &mut Option<Instant> {
        match part {
            Part::Metrics => &mut self.figures,
            Part::Payments => &mut self.payments,
        }
    }
}

/// What is known of one tenant.
#[derive(Default)]
struct Tenant {
    /// One query at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    figures: Mutex<Option<Trouble>>,
    payments: Mutex<Option<Trouble>>,
}

/// A part of a tenant's snapshot that failed.
#[derive(Clone, Copy)]
struct Trouble {
    since: Instant,
    pause: Duration,
    until: Instant,
}

/// A part of a snapshot that is read by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Metrics,
    Payments,
}

/// The right to ask for one tenant, and the connection to do it on.
struct Session<'a> {
    connection: PoolConnection<Postgres>,
    until: Instant,
    /// A transaction is open.
    begun: bool,
    /// No answer came in time: what it would have been may still come on this connection.
    spoilt: bool,
    _slot: SemaphorePermit<'a>,
    _turn: OwnedMutexGuard<()>,
}

impl Session<'_> {
    /// Asks in the session's transaction, with its limit.
    async fn ask<T>(
        &mut self,
        question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        if !std::mem::replace(&mut self.begun, true) {
            sqlx::raw_sql(BEGIN).execute(&mut *self.connection).await?;
        }
        let answer = question(&mut self.connection).await;
        if answer.is_err() {
            // Nothing can be asked in it any more.
            self.end().await;
        }
        answer
    }

    /// Ends the transaction, also one that failed.
    async fn end(&mut self) {
        if self.begun && !self.spoilt {
            let ended = timeout_at(self.until, sqlx::raw_sql("commit").execute(&mut *self.connection)).await;
            self.begun = !matches!(ended, Ok(Ok(_)));
        }
    }
}

impl Drop for Session<'_> {
    /// A transaction that was not ended ends with its connection.
    fn drop(&mut self) {
        if self.begun || self.spoilt {
            self.connection.close_on_drop();
        }
    }
}

impl Snapshots {
    /// Connects when the first snapshot is wanted.
    pub fn new(options: &PgConnectOptions) -> Self {
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(CONNECT_LIMIT);
        let options = options.clone().application_name("crechebooks-gateway");
        Self::of(Source::Postgres(Arc::new(Views {
            pool: pool.connect_lazy_with(options),
            health: Mutex::new(Health::Good),
            missing: Mutex::default(),
            tenants: sync::Cache::builder().max_capacity(CACHED_TENANTS).time_to_idle(FORGET_AFTER).build(),
            turns: Semaphore::new(CONNECTIONS as usize - IN_TROUBLE),
            turns_in_trouble: Semaphore::new(IN_TROUBLE),
            throttle: LogThrottle::new(),
        })))
    }

    /// Of a centre that exists in memory only.
    pub fn of_books(books: Books) -> Self {
        Self::of(Source::Books(books))
    }

    fn of(source: Source) -> Self {
        Self { source, placed: future::Cache::builder().max_capacity(CACHED_TENANTS).time_to_live(LIFE).build() }
    }

    /// The tenant's snapshot as of now, without the parts that Postgres doesn't give within two seconds.
    pub async fn load(&self, tenant: &TenantId) -> Arc<Snapshot> {
        let written = match &self.source {
            Source::Books(books) => {
                let queries::Contents { metrics, payments } = books(tenant);
                Snapshot::write(&metrics, &payments, Parts::NONE)
            }
            Source::Postgres(views) => views.load(tenant).await,
        };
        Arc::new(written.unwrap_or_else(|error| {
            warn!(%tenant, %error, "a snapshot can't be written");
            Snapshot::none()
        }))
    }

    /// Whether a question for these parts has a chance now: the database does not pause, and one of the parts does not.
    pub fn may_have(&self, tenant: &TenantId, parts: Parts) -> bool {
        match &self.source {
            Source::Books(_) => true,
            Source::Postgres(views) => {
                views.is_worth_a_question() && views.due(&views.tenant(tenant)).and(parts) != Parts::NONE
            }
        }
    }

    /// The parts that could not be had when they were last asked for.
    pub fn lacking(&self, tenant: &TenantId) -> Parts {
        match &self.source {
            Source::Books(_) => Parts::NONE,
            Source::Postgres(views) => views.lacking(&views.tenant(tenant)),
        }
    }

    /// The tenant's figures as of now, unless the view doesn't know it.
    ///
    /// # Errors
    /// When Postgres doesn't give them within two seconds.
    pub async fn metrics(&self, tenant: &TenantId) -> Result<Option<MetricsUpdated>, Unavailable> {
        match &self.source {
            Source::Books(books) => Ok(books(tenant).metrics),
            Source::Postgres(views) => {
                let known = views.tenant(tenant);
                if !views.due(&known).figures {
                    return Err(Unavailable);
                }
                let mut session = views.session(&known).await.ok_or(Unavailable)?;
                let figures = views.figures(&mut session, tenant, &known).await;
                session.end().await;
                figures.ok_or(Unavailable)
            }
        }
    }

    /// A snapshot that is no older than a second, together with a position that was read before it. Requests that come meanwhile wait
    /// for the same answer. `head` tells the position; it gives `None` when there should be one, and can't be had.
    ///
    /// # Errors
    /// When there is no position.
    pub async fn placed(
        &self,
        tenant: &TenantId,
        head: impl Future<Output = Option<Option<Position>>>,
    ) -> Option<Placed> {
        let load = async {
            let head = head.await?;
            Some(Arc::new((head, Some(self.load(tenant).await))))
        };
        self.placed.optionally_get_with(tenant.clone(), load).await
    }
}

impl Views {
    async fn load(&self, tenant: &TenantId) -> serde_json::Result<Snapshot> {
        let known = self.tenant(tenant);
        let session = match self.due(&known) {
            Parts::NONE => None,
            _ => self.session(&known).await,
        };
        let (mut figures, mut payments) = (None, None);
        if let Some(mut session) = session {
            // The part that failed last comes first: it may be the other one that leaves it no time.
            for part in known.in_order() {
                match part {
                    Part::Metrics => figures = self.figures(&mut session, tenant, &known).await,
                    Part::Payments => payments = self.payments(&mut session, tenant, &known).await,
                }
            }
            session.end().await;
        }
        let missing = Parts { figures: figures.is_none(), payments: payments.is_none() };
        Snapshot::write(&figures.flatten(), &payments, missing)
    }

    /// The parts that do not pause.
    fn due(&self, known: &Tenant) -> Parts {
        let is_due = |part| known.is_due(part) && self.missing().of(part).is_none_or(|until| until <= Instant::now());
        Parts { figures: is_due(Part::Metrics), payments: is_due(Part::Payments) }
    }

    fn lacking(&self, known: &Tenant) -> Parts {
        if !matches!(*self.health(), Health::Good) {
            return Parts::ALL;
        }
        let lacks = |part| known.trouble(part).is_some() || self.missing().of(part).is_some();
        Parts { figures: lacks(Part::Metrics), payments: lacks(Part::Payments) }
    }

    fn tenant(&self, tenant: &TenantId) -> Arc<Tenant> {
        self.tenants.get_with_by_ref(tenant, Arc::default)
    }

    /// A connection for one tenant's questions, when the database is well and it is the tenant's turn.
    async fn session(&self, known: &Tenant) -> Option<Session<'_>> {
        if !self.is_worth_a_question() {
            return None;
        }
        let turn = async {
            let turn = known.turn.clone().lock_owned().await;
            let slots = if known.is_in_trouble() { &self.turns_in_trouble } else { &self.turns };
            // Fails only when the semaphore is closed, which it never is.
            slots.acquire().await.ok().map(|slot| (turn, slot))
        };
        let (turn, slot) = timeout(TURN_LIMIT, turn).await.ok().flatten()?;
        if !self.may_ask() {
            return None;
        }
        let connected = timeout(CONNECT_LIMIT, self.pool.acquire()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        let connection = connected.inspect_err(|error| self.is_unreachable(error)).ok()?;
        Some(Session {
            connection,
            until: Instant::now() + QUERY_LIMIT,
            begun: false,
            spoilt: false,
            _slot: slot,
            _turn: turn,
        })
    }

    async fn figures(
        &self,
        session: &mut Session<'_>,
        tenant: &TenantId,
        known: &Tenant,
    ) -> Option<Option<MetricsUpdated>> {
        let question = async |asked: &mut PgConnection| queries::read_metrics(asked, tenant).await;
        self.ask(session, tenant, known, Part::Metrics, question).await
    }

    async fn payments(
        &self,
        session: &mut Session<'_>,
        tenant: &TenantId,
        known: &Tenant,
    ) -> Option<Vec<RecentPayment>> {
        let question = async |asked: &mut PgConnection| queries::read_payments(asked, tenant).await;
        let read = self.ask(session, tenant, known, Part::Payments, question).await?;
        read.left_out.into_iter().for_each(|row| self.throttle.of_row(tenant, row));
        Some(read.payments)
    }

    /// Asks for a part, unless it pauses, and learns from the answer.
    async fn ask<T>(
        &self,
        session: &mut Session<'_>,
        tenant: &TenantId,
        known: &Tenant,
        part: Part,
        question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, SnapshotError>,
    ) -> Option<T> {
        if session.spoilt || !known.is_due(part) || !self.may_look_for(part) {
            return None;
        }
        let until = session.until;
        let asked = async {
            let answer = session.ask(question).await;
            let missing = match &answer {
                Err(error) if error.is_missing_view() => !has_view(&mut session.connection, part).await,
                _ => false,
            };
            (answer, missing)
        };
        let Ok((answer, missing)) = timeout_at(until, asked).await else {
            session.spoilt = true;
            self.failed(tenant, known, part, &"no answer in time");
            self.is_reachable();
            return None;
        };
        match answer {
            Ok(read) => {
                known.is_well(part);
                self.is_there(part);
                self.is_reachable();
                Some(read)
            }
            Err(error) if missing => {
                self.is_missing(part, &error);
                self.is_reachable();
                None
            }
            Err(error) if error.is_an_answer() => {
                self.failed(tenant, known, part, &error);
                self.is_there(part);
                self.is_reachable();
                None
            }
            Err(error) => {
                session.spoilt = true;
                self.is_unreachable(&error);
                None
            }
        }
    }

    /// Pauses a part of a tenant's snapshot.
    fn failed(&self, tenant: &TenantId, known: &Tenant, part: Part, error: &dyn Display) {
        known.failed(part);
        self.throttle.of_tenant(tenant, part, error);
    }

    fn is_worth_a_question(&self) -> bool {
        let now = Instant::now();
        match *self.health() {
            Health::Good => true,
            Health::Pausing { until } => until <= now,
            // A probe that was dropped must not be the last.
            Health::Probing { since } => since + CONNECT_LIMIT + QUERY_LIMIT <= now,
        }
    }

    /// The same, for the caller that asks then.
    fn may_ask(&self) -> bool {
        let may = self.is_worth_a_question();
        let mut health = self.health();
        if may && !matches!(*health, Health::Good) {
            *health = Health::Probing { since: Instant::now() };
        }
        may
    }

    fn is_reachable(&self) {
        let mut health = self.health();
        if !matches!(*health, Health::Good) {
            info!("snapshots can be read");
            *health = Health::Good;
        }
    }

    fn is_unreachable(&self, error: &dyn Display) {
        let mut health = self.health();
        if matches!(*health, Health::Good) {
            warn!(%error, "snapshots can't be read, dashboards start without");
        }
        *health = Health::Pausing { until: Instant::now() + PAUSE };
    }

    /// Whether the part's view is known, or it is time to look for it: one caller looks.
    fn may_look_for(&self, part: Part) -> bool {
        let now = Instant::now();
        let mut missing = self.missing();
        let Some(until) = missing.of(part) else { return true };
        let may = *until <= now;
        if may {
            *until = now + MISSING_PAUSE;
        }
        may
    }

    fn is_missing(&self, view: Part, error: &SnapshotError) {
        if self.missing().of(view).replace(Instant::now() + MISSING_PAUSE).is_none() {
            warn!(%view, %error, "a view is missing, this part of every snapshot is null");
        }
    }

    fn is_there(&self, view: Part) {
        if self.missing().of(view).take().is_some() {
            info!(%view, "a view that was missing is there");
        }
    }

    fn missing(&self) -> MutexGuard<'_, MissingViews> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the view is there, and ours to read: then an error that says otherwise comes from within it, for this tenant.
async fn has_view(connection: &mut PgConnection, part: Part) -> bool {
    const RIGHTS: &str = "select has_schema_privilege('dashboard', 'usage') and has_table_privilege($1, 'select')";
    let asked = sqlx::query_scalar(RIGHTS).persistent(false).bind(part.to_string());
    matches!(asked.fetch_one(connection).await, Ok(true))
}

impl Tenant {
    fn trouble(&self, part: Part) -> MutexGuard<'_, Option<Trouble>> {
        let trouble = match part {
            Part::Metrics => &self.figures,
            Part::Payments => &self.payments,
        };
        trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_due(&self, part: Part) -> bool {
        self.trouble(part).is_none_or(|trouble| trouble.until <= Instant::now())
    }

    /// The parts, and first the one that failed last.
    fn in_order(&self) -> [Part; 2] {
        let since = |part| self.trouble(part).map(|trouble| trouble.since);
        if since(Part::Payments) > since(Part::Metrics) {
            [Part::Payments, Part::Metrics]
        } else {
            [Part::Metrics, Part::Payments]
        }
    }

    fn is_in_trouble(&self) -> bool {
        self.trouble(Part::Metrics).is_some() || self.trouble(Part::Payments).is_some()
    }

    fn is_well(&self, part: Part) {
        *self.trouble(part) = None;
    }

    fn failed(&self, part: Part) {
        let mut trouble = self.trouble(part);
        let pause = trouble.map_or(PAUSE, |before| (before.pause * 2).min(LONGEST_PAUSE));
        let since = Instant::now();
        *trouble = Some(Trouble { since, pause, until: since + pause });
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Metrics => "dashboard.metrics",
            Self::Payments => "dashboard.recent_payments",
        })
    }
}

/// What the log is told of tenants' data, and how often.
struct LogThrottle {
    /// When a tenant's failure was last logged.
    tenant: Mutex<Option<Instant>>,
    named: sync::Cache<(TenantId, Option<String>), ()>,
    /// How many rows were named since then.
    names: Mutex<(Instant, u32)>,
}

impl LogThrottle {
    fn new() -> Self {
        Self {
            tenant: Mutex::default(),
            named: sync::Cache::builder().max_capacity(NAMED_ROWS).time_to_live(NAME_AGAIN).build(),
            names: Mutex::new((Instant::now(), 0)),
        }
    }

    fn of_tenant(&self, tenant: &TenantId, view: Part, error: &dyn Display) {
        let mut said = self.tenant.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|at| at.elapsed() >= LOG_AGAIN) {
            *said = Some(Instant::now());
            warn!(%tenant, %view, %error, "a view fails for a tenant, its dashboards start without this part");
        }
    }

    fn of_row(&self, tenant: &TenantId, LeftOut { payment_id, reason }: LeftOut) {
        let row = (tenant.clone(), payment_id);
        if self.named.contains_key(&row) {
            return;
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.0.elapsed() >= LOG_AGAIN {
            *names = (Instant::now(), 0);
        }
        if names.1 < NAMES_A_MINUTE {
            names.1 += 1;
            warn!(%tenant, payment_id = row.1.as_deref().unwrap_or("null"), reason, "a row of dashboard.recent_payments can't be shown, it is left out");
            self.named.insert(row, ());
        }
    }
}
