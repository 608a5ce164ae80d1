//! The views of the database, read so that neither a slow view nor a database that is away delays a join by more than two seconds.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use publisher::{MetricsUpdated, TenantId};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::health::Health;
use super::log::DataLog;
use super::part::Part;
use super::queries::{self, SnapshotError};
use super::session::Session;
use super::tenant::Tenant;
use crate::socket::snapshot::{Parts, RecentPayment, Snapshot};

/// Connections of one gateway: each query is short.
const CONNECTIONS: u32 = 8;
/// Of these, the connections for tenants whose last query failed. Any number of slow views leaves the others to all other tenants.
const IN_TROUBLE: usize = 2;
/// A join waits for the tenant's turn, for a connection and for the answers, each for this time at most.
const TURN_LIMIT: Duration = Duration::from_millis(400);
const CONNECT_LIMIT: Duration = Duration::from_millis(600);
const QUERY_LIMIT: Duration = Duration::from_millis(1000);
/// Tenants whose failures are known.
const TENANTS: u64 = 10_000;
/// A tenant's failures are forgotten when nothing was queried for this time.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// A part can't be had now: the database is away, the view is missing, or it fails for this tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the view can't be read")]
pub struct Unavailable;

/// The views, with what is known of their state.
pub(super) struct Views {
    pool: PgPool,
    health: Health,
    tenants: Cache<TenantId, Arc<Tenant>>,
    /// Places for tenants that are well, and for tenants in trouble: as many as there are connections.
    places: Semaphore,
    places_in_trouble: Semaphore,
    log: DataLog,
}

impl Views {
    /// Connects at the first query.
    pub fn new(options: &PgConnectOptions) -> Self {
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(CONNECT_LIMIT);
        let options = options.clone().application_name("crechebooks-gateway");
        Self {
            pool: pool.connect_lazy_with(options),
            health: Health::new(CONNECT_LIMIT + QUERY_LIMIT),
            tenants: Cache::builder().max_capacity(TENANTS).time_to_idle(FORGET_AFTER).build(),
            places: Semaphore::new(CONNECTIONS as usize - IN_TROUBLE),
            places_in_trouble: Semaphore::new(IN_TROUBLE),
            log: DataLog::new(),
        }
    }

    /// Reads a tenant's snapshot; it lacks the parts that can't be had.
    pub async fn load(&self, tenant: &TenantId) -> serde_json::Result<Snapshot> {
        let known = self.tenant(tenant);
        let session = match self.due(&known) {
            Parts::NONE => Err(Unavailable),
            _ => self.session(&known).await,
        };
        let (mut metrics, mut payments) = (Err(Unavailable), Err(Unavailable));
        if let Ok(mut session) = session {
            // The part that failed last comes first, since the other part may have left it no time.
            for part in known.in_order() {
                match part {
                    Part::Metrics => metrics = self.read_metrics(&mut session, tenant, &known).await,
                    Part::Payments => payments = self.read_payments(&mut session, tenant, &known).await,
                }
            }
            session.end().await;
        }
        let missing = Parts { metrics: metrics.is_err(), payments: payments.is_err() };
        Snapshot::write(&metrics.unwrap_or(None), &payments.ok(), missing)
    }

    /// Reads a tenant's metrics; `None` when the view doesn't know the tenant.
    pub async fn metrics(&self, tenant: &TenantId) -> Result<Option<MetricsUpdated>, Unavailable> {
        let known = self.tenant(tenant);
        if !self.is_due(&known, Part::Metrics) {
            return Err(Unavailable);
        }
        let mut session = self.session(&known).await?;
        let metrics = self.read_metrics(&mut session, tenant, &known).await;
        session.end().await;
        metrics
    }

    /// Whether a query of one of these parts has a chance now.
    pub fn may_have(&self, tenant: &TenantId, parts: Parts) -> bool {
        self.health.is_worth_a_query() && self.due(&self.tenant(tenant)).and(parts) != Parts::NONE
    }

    /// The parts that could not be had when they were last queried.
    pub fn lacking(&self, tenant: &TenantId) -> Parts {
        if !self.health.is_good() {
            return Parts::ALL;
        }
        let known = self.tenant(tenant);
        let lacks = |part| known.has_failed(part) || self.health.lacks_view(part);
        Parts { metrics: lacks(Part::Metrics), payments: lacks(Part::Payments) }
    }

    /// The parts that do not pause.
    fn due(&self, known: &Tenant) -> Parts {
        Parts { metrics: self.is_due(known, Part::Metrics), payments: self.is_due(known, Part::Payments) }
    }

    fn is_due(&self, known: &Tenant, part: Part) -> bool {
        !known.pauses(part) && !self.health.pauses(part)
    }

    fn tenant(&self, tenant: &TenantId) -> Arc<Tenant> {
        self.tenants.get_with_by_ref(tenant, Arc::default)
    }

    /// A session for one tenant's queries, when the database is well and it is the tenant's turn.
    async fn session(&self, known: &Tenant) -> Result<Session<'_>, Unavailable> {
        if !self.health.is_worth_a_query() {
            return Err(Unavailable);
        }
        let turn = async {
            let turn = known.turn.clone().lock_owned().await;
            let places = if known.is_in_trouble() { &self.places_in_trouble } else { &self.places };
            // Fails only when the semaphore is closed, which it never is.
            places.acquire().await.ok().map(|place| (place, turn))
        };
        let (place, turn) = timeout(TURN_LIMIT, turn).await.ok().flatten().ok_or(Unavailable)?;
        if !self.health.may_query() {
            return Err(Unavailable);
        }
        let connected = timeout(CONNECT_LIMIT, self.pool.acquire()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        let connection = connected.map_err(|error| {
            self.health.is_unreachable(&error);
            Unavailable
        })?;
        Ok(Session::new(connection, Instant::now() + QUERY_LIMIT, place, turn))
    }

    async fn read_metrics(
        &self,
        session: &mut Session<'_>,
        tenant: &TenantId,
        known: &Tenant,
    ) -> Result<Option<MetricsUpdated>, Unavailable> {
        let query = async |connection: &mut PgConnection| queries::read_metrics(connection, tenant).await;
        self.query(session, tenant, known, Part::Metrics, query).await
    }

    async fn read_payments(
        &self,
        session: &mut Session<'_>,
        tenant: &TenantId,
        known: &Tenant,
    ) -> Result<Vec<RecentPayment>, Unavailable> {
        let query = async |connection: &mut PgConnection| queries::read_payments(connection, tenant).await;
        let read = self.query(session, tenant, known, Part::Payments, query).await?;
        read.left_out.into_iter().for_each(|row| self.log.left_out(tenant, row));
        Ok(read.payments)
    }

    /// Queries a part, unless it pauses, and learns from the answer.
    async fn query<T>(
        &self,
        session: &mut Session<'_>,
        tenant: &TenantId,
        known: &Tenant,
        part: Part,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, SnapshotError>,
    ) -> Result<T, Unavailable> {
        if session.is_given_up() || known.pauses(part) || !self.health.may_query_view(part) {
            return Err(Unavailable);
        }
        let until = session.until;
        let queried = async {
            let answer = session.query(query).await;
            let missing = match &answer {
                Err(error) if error.is_missing_view() => !has_view(&mut session.connection, part).await,
                _ => false,
            };
            (answer, missing)
        };
        let Ok((answer, missing)) = timeout_at(until, queried).await else {
            session.give_up();
            self.failed(tenant, known, part, &"no answer in time");
            self.health.is_reachable();
            return Err(Unavailable);
        };
        let failure = match answer {
            Ok(read) => {
                known.succeeded(part);
                self.health.view_exists(part);
                self.health.is_reachable();
                return Ok(read);
            }
            Err(error) => error,
        };
        if missing {
            self.health.view_is_missing(part, &failure);
            self.health.is_reachable();
        } else if failure.is_an_answer() {
            self.failed(tenant, known, part, &failure);
            self.health.view_exists(part);
            self.health.is_reachable();
        } else {
            session.give_up();
            self.health.is_unreachable(&failure);
        }
        Err(Unavailable)
    }

    /// Pauses a part of a tenant's snapshot.
    fn failed(&self, tenant: &TenantId, known: &Tenant, part: Part, error: &dyn Display) {
        known.failed(part);
        self.log.failed(tenant, part, error);
    }
}

/// Whether the view is there and the gateway may read it. An error that says otherwise then comes from within the view, for this tenant.
async fn has_view(connection: &mut PgConnection, part: Part) -> bool {
    const RIGHTS: &str = "select has_schema_privilege('dashboard', 'usage') and has_table_privilege($1, 'select')";
    let rights = sqlx::query_scalar(RIGHTS).persistent(false).bind(part.to_string());
    matches!(rights.fetch_one(connection).await, Ok(true))
}
