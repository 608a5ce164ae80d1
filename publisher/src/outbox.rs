//! The transactional outbox: an event is recorded in the transaction that makes it true, and published after it has committed
//! (design §6).
//!
//! ```no_run
//! use publisher::{DashboardEvent, PaymentReceived, TenantId, outbox};
//! use sqlx::{Connection, PgConnection};
//!
//! # async fn example(database: &mut PgConnection, acorn: TenantId, payment: PaymentReceived) -> Result<(), Box<dyn std::error::Error>> {
//! let mut transaction = database.begin().await?;
//! sqlx::query("insert into payments …").execute(&mut *transaction).await?;
//! outbox::record(&mut transaction, &acorn, &DashboardEvent::new(payment)).await?;
//! transaction.commit().await?; // now, and only now, the dashboards will show it
//! # Ok(())
//! # }
//! ```
//!
//! Whoever doesn't write Rust calls `dashboard.emit` in SQL; both end in the same function. The [`Relay`], which every gateway
//! with a database runs, publishes the rows: one leader in the cluster, a tenant's rows in the order in which they became
//! visible, each at least once to Redis and exactly once to clients.

mod leader;
mod relay;
mod rows;
mod upkeep;

use std::fmt;

use sqlx::PgConnection;
use tokio::time::Instant;

pub use relay::{Relay, RelayConfig};

use crate::{
    error::{InvalidEvent, PublishError},
    event::DashboardEvent,
    publisher::{Outcome, Publisher},
    tenant::TenantId,
    timestamp,
};

/// Why an event was not recorded. The transaction it was to be part of can only roll back.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The event breaks a rule; nothing was sent to the database, and the transaction is still good.
    #[error("the event is invalid: {0}")]
    Invalid(#[from] InvalidEvent),
    /// The database refused, or can't be reached.
    #[error("the event was not recorded: {0}")]
    Database(#[from] sqlx::Error),
}

/// Records an event as part of the transaction that is open on `connection`: dashboards show it if that commits.
///
/// The event keeps its id. Publishing it directly as well, for speed, is harmless: it is shown once.
pub async fn record(
    connection: &mut PgConnection,
    tenant: &TenantId,
    event: &DashboardEvent,
) -> Result<(), RecordError> {
    event.validate()?;
    let data = serde_json::to_string(&event.data).expect("plain fields and string keys always serialise");
    sqlx::query("select dashboard.record($1, $2, $3, $4::jsonb, $5::timestamptz)")
        .bind(event.id.as_str())
        .bind(tenant.as_str())
        .bind(event.event_type().as_str())
        .bind(data)
        .bind(timestamp::format(event.timestamp))
        .execute(connection)
        .await?;
    Ok(())
}

/// Counts the relay's leaders: each has a later term than all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Term(pub i64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What became of a leader's event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relayed {
    /// As for any event.
    Outcome(Outcome),
    /// Refused: a later leader has been here. This one must stop.
    Superseded {
        /// The later leader's term.
        term: Term,
    },
}

/// Where a relay publishes to.
pub trait Sink: Clone + Send + Sync + 'static {
    /// Publishes an event as the leader of `term`, as [`Publisher::relay`] does.
    fn relay(
        &self,
        tenant: &TenantId,
        event: &DashboardEvent,
        term: Term,
    ) -> impl Future<Output = Result<Relayed, PublishError>> + Send;

    /// When Redis was last found on another server, as [`Publisher::moved`] tells.
    fn moved(&self) -> Option<Instant>;
}

impl Sink for Publisher {
    async fn relay(&self, tenant: &TenantId, event: &DashboardEvent, term: Term) -> Result<Relayed, PublishError> {
        Self::relay(self, tenant, event, term).await
    }

    fn moved(&self) -> Option<Instant> {
        Self::moved(self)
    }
}
