//! Snapshots: what a dashboard starts from, read from Postgres, and never at the price of a join.
//!
//! A database that is away costs the first joins two seconds and the next ones nothing: after a failure, one question at a time finds
//! out whether it is back, and everybody else is answered without a snapshot.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::future::Cache;
use publisher::snapshot::{self, SnapshotError};
use publisher::{MetricsUpdated, TenantId};
use serde_json::value::RawValue;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::engine::Position;

/// For how long a snapshot is good for others, from the moment it was asked for.
pub const LIFE: Duration = Duration::from_secs(1);
/// Connections of one instance: each query is short.
const CONNECTIONS: u32 = 8;
/// The two waits of a query, which together are what a join waits at most.
const CONNECT_LIMIT: Duration = Duration::from_millis(800);
const QUERY_LIMIT: Duration = Duration::from_millis(1000);
/// After a failure nobody asks for so long.
const PAUSE: Duration = Duration::from_secs(1);
/// The same while the views are missing: somebody has to create them first.
const MISSING_PAUSE: Duration = Duration::from_secs(30);
/// A view that can't be used is logged this often.
const LOG_AGAIN: Duration = Duration::from_secs(60);
/// Tenants whose last answer to `GET /dashboard/snapshot` is kept for a second.
const CACHED_TENANTS: u64 = 10_000;

/// A tenant's snapshot as JSON, written once for all who start from it.
#[derive(Debug)]
pub struct Snapshot {
    /// The figures as in `metrics_updated`, or `null`.
    pub metrics: Box<RawValue>,
    /// The newest payments.
    pub payments: Box<RawValue>,
}

impl Snapshot {
    fn write(read: &snapshot::Snapshot) -> serde_json::Result<Self> {
        use serde_json::value::to_raw_value;
        Ok(Self { metrics: to_raw_value(&read.metrics)?, payments: to_raw_value(&read.payments)? })
    }

    /// Anything, for tests of what carries it.
    #[cfg(test)]
    pub fn of_json(metrics: &str) -> Self {
        let metrics = RawValue::from_string(metrics.to_owned()).expect("the test's JSON");
        Self { metrics, payments: RawValue::from_string("[]".to_owned()).expect("an empty list") }
    }
}

/// A snapshot with the position that it is no older than.
pub type Placed = Arc<(Position, Option<Arc<Snapshot>>)>;

/// Postgres is away, or has no views to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("figures can't be read")]
pub struct Unavailable;

/// Where snapshots come from; cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    source: Source,
    health: Arc<Mutex<Health>>,
    /// When it was last said that a view can't be used.
    complained: Arc<Mutex<Option<Instant>>>,
    placed: Cache<TenantId, Placed>,
}

#[derive(Clone)]
enum Source {
    Postgres(PgPool),
    Books(Books),
}

/// The books of the demo's centre.
pub type Books = Arc<dyn Fn(&TenantId) -> snapshot::Snapshot + Send + Sync>;

/// Whether the database is worth a question.
enum Health {
    Good,
    /// Not before then.
    Pausing {
        until: Instant,
        missing_views: bool,
    },
    /// Somebody is finding out, since then.
    Probing {
        since: Instant,
        missing_views: bool,
    },
}

impl Snapshots {
    /// Connects when the first snapshot is wanted.
    pub fn new(options: &PgConnectOptions) -> Self {
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(CONNECT_LIMIT);
        let options = options.clone().application_name("crechebooks-gateway");
        Self::of(Source::Postgres(pool.connect_lazy_with(options)))
    }

    /// Of a centre that exists in memory only.
    pub fn of_books(books: Books) -> Self {
        Self::of(Source::Books(books))
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            health: Arc::new(Mutex::new(Health::Good)),
            complained: Arc::default(),
            placed: Cache::builder().max_capacity(CACHED_TENANTS).time_to_live(LIFE).build(),
        }
    }

    /// The tenant's snapshot as of now; none when Postgres doesn't give it within two seconds.
    pub async fn load(&self, tenant: &TenantId) -> Option<Arc<Snapshot>> {
        let read = match &self.source {
            Source::Books(books) => books(tenant),
            Source::Postgres(pool) => self.ask(pool, async |asked| snapshot::read(asked, tenant).await).await?,
        };
        Snapshot::write(&read).inspect_err(|error| warn!(%error, "a snapshot can't be written")).ok().map(Arc::new)
    }

    /// The tenant's figures as of now, unless the view doesn't know it.
    ///
    /// # Errors
    /// When Postgres doesn't give them within two seconds.
    pub async fn metrics(&self, tenant: &TenantId) -> Result<Option<MetricsUpdated>, Unavailable> {
        match &self.source {
            Source::Books(books) => Ok(books(tenant).metrics),
            Source::Postgres(pool) => {
                self.ask(pool, async |asked| snapshot::read_metrics(asked, tenant).await).await.ok_or(Unavailable)
            }
        }
    }

    /// A snapshot that is no older than a second, together with a position that was read before it. Whoever asks meanwhile
    /// waits for the same answer. `head` tells the position.
    ///
    /// # Errors
    /// When there is no position.
    pub async fn placed(&self, tenant: &TenantId, head: impl Future<Output = Option<Position>>) -> Option<Placed> {
        let load = async {
            let head = head.await?;
            Some(Arc::new((head, self.load(tenant).await)))
        };
        self.placed.optionally_get_with(tenant.clone(), load).await
    }

    async fn ask<T>(
        &self,
        pool: &PgPool,
        question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, SnapshotError>,
    ) -> Option<T> {
        if !self.may_ask() {
            return None;
        }
        let answer = try_ask(pool, question).await;
        self.heard(&answer);
        answer.ok()
    }

    fn may_ask(&self) -> bool {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match *health {
            Health::Good => true,
            // A probe that was dropped must not be the last.
            Health::Pausing { until, missing_views } if until <= now => {
                *health = Health::Probing { since: now, missing_views };
                true
            }
            Health::Probing { since, missing_views } if since + CONNECT_LIMIT + QUERY_LIMIT <= now => {
                *health = Health::Probing { since: now, missing_views };
                true
            }
            Health::Pausing { .. } | Health::Probing { .. } => false,
        }
    }

    fn heard<T>(&self, answer: &Result<T, SnapshotError>) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match *health {
            Health::Good => None,
            Health::Pausing { missing_views, .. } | Health::Probing { missing_views, .. } => Some(missing_views),
        };
        match answer {
            Ok(_) => {
                if known.is_some() {
                    info!("snapshots can be read");
                }
                *health = Health::Good;
            }
            Err(error) if error.is_missing_views() => {
                if known != Some(true) {
                    warn!(%error, "the views that snapshots are read from are missing: snapshots are null");
                }
                *health = Health::Pausing { until: Instant::now() + MISSING_PAUSE, missing_views: true };
            }
            // One tenant's trouble, or a view's: the database is well.
            Err(error @ SnapshotError::Unusable(_)) => {
                let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
                if complained.is_none_or(|at| at.elapsed() >= LOG_AGAIN) {
                    *complained = Some(Instant::now());
                    warn!(%error, "a snapshot can't be used");
                }
                *health = Health::Good;
            }
            Err(error) => {
                if known != Some(false) {
                    warn!(%error, "snapshots can't be read, dashboards start without");
                }
                *health = Health::Pausing { until: Instant::now() + PAUSE, missing_views: false };
            }
        }
    }
}

async fn try_ask<T>(
    pool: &PgPool,
    question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, SnapshotError>,
) -> Result<T, SnapshotError> {
    let late = || sqlx::Error::PoolTimedOut.into();
    let mut connection = timeout(CONNECT_LIMIT, pool.acquire()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
    let answer = timeout(QUERY_LIMIT, question(&mut connection)).await;
    // A question that was given up is still being answered: the next one needs another connection.
    if answer.is_err() {
        connection.close_on_drop();
    }
    answer.unwrap_or_else(|_| Err(late()))
}
