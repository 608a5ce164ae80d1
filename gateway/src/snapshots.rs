//! Snapshots: what a dashboard starts from, read from Postgres, without delaying a join by more than two seconds.
//!
//! Three kinds of failures are kept apart. A database that can't be reached concerns all tenants: after a failure one query at a time
//! finds out whether the database is back, and every other join is answered without a snapshot (`health`). A view that does not exist
//! concerns its part: this part pauses for every tenant (`health`). A view that fails or is slow for one tenant concerns that tenant:
//! this part of its snapshot pauses, longer after each failure (`tenant`).

mod health;
mod log;
mod part;
pub mod queries;
mod session;
mod tenant;
mod views;

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use publisher::{MetricsUpdated, TenantId};
use sqlx::postgres::PgConnectOptions;
use tracing::warn;

use crate::engine::Position;
use crate::socket::snapshot::{Parts, Snapshot};
use queries::Contents;
pub use views::Unavailable;
use views::Views;

/// Other dashboards can start from a snapshot for this time, from the moment its query began.
pub const LIFE: Duration = Duration::from_secs(1);
/// Tenants whose last answer to `GET /dashboard/snapshot` is kept for [`LIFE`].
const CACHED_TENANTS: u64 = 10_000;

/// A snapshot with the position that it is no older than. Without real time there are no positions, and without a database there are no
/// snapshots.
pub type Placed = Arc<(Option<Position>, Option<Arc<Snapshot>>)>;

/// Where snapshots come from; cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    source: Source,
    placed: Cache<TenantId, Placed>,
}

#[derive(Clone)]
enum Source {
    Postgres(Arc<Views>),
    Books(Books),
}

/// The books of the demo's centre.
pub type Books = Arc<dyn Fn(&TenantId) -> Contents + Send + Sync>;

impl Snapshots {
    /// Snapshots of this database, which is connected at the first query.
    pub fn new(options: &PgConnectOptions) -> Self {
        Self::of(Source::Postgres(Arc::new(Views::new(options))))
    }

    /// Snapshots of a centre that exists in memory only.
    pub fn of_books(books: Books) -> Self {
        Self::of(Source::Books(books))
    }

    fn of(source: Source) -> Self {
        Self { source, placed: Cache::builder().max_capacity(CACHED_TENANTS).time_to_live(LIFE).build() }
    }

    /// The tenant's snapshot as of now, without the parts that Postgres doesn't answer within two seconds.
    pub async fn load(&self, tenant: &TenantId) -> Arc<Snapshot> {
        let written = match &self.source {
            Source::Books(books) => {
                let Contents { metrics, payments } = books(tenant);
                Snapshot::write(&metrics, &payments, Parts::NONE)
            }
            Source::Postgres(views) => views.load(tenant).await,
        };
        Arc::new(written.unwrap_or_else(|error| {
            warn!(%tenant, %error, "snapshot can't be written");
            Snapshot::none()
        }))
    }

    /// Whether a query of one of these parts has a chance now: the database can be reached, and one of the parts does not pause.
    pub fn may_have(&self, tenant: &TenantId, parts: Parts) -> bool {
        match &self.source {
            Source::Books(_) => true,
            Source::Postgres(views) => views.may_have(tenant, parts),
        }
    }

    /// The parts that could not be had when they were last queried.
    pub fn lacking(&self, tenant: &TenantId) -> Parts {
        match &self.source {
            Source::Books(_) => Parts::NONE,
            Source::Postgres(views) => views.lacking(tenant),
        }
    }

    /// The tenant's metrics as of now, unless the view doesn't know the tenant.
    ///
    /// # Errors
    /// When Postgres doesn't answer within two seconds, or the part pauses.
    pub async fn metrics(&self, tenant: &TenantId) -> Result<Option<MetricsUpdated>, Unavailable> {
        match &self.source {
            Source::Books(books) => Ok(books(tenant).metrics),
            Source::Postgres(views) => views.metrics(tenant).await,
        }
    }

    /// A snapshot that is no older than a second, together with a position that was read before it. Requests that come meanwhile wait
    /// for the same answer. `head` reads the position; it gives `None` when there should be one, and can't be had.
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
