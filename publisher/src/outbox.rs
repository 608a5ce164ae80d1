//! The transactional outbox: an event is recorded in the billing transaction, and published after the transaction has committed.
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
//! Programs in other languages call `dashboard.emit` in SQL; both end in the same function. The gateways' relay publishes the rows:
//! a tenant's rows in the order in which they became visible, each exactly once to clients.

use sqlx::PgConnection;

use crate::{event::DashboardEvent, invalid_event::InvalidEvent, tenant::TenantId, timestamp};

/// Why an event was not recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The event breaks a rule. Nothing was sent to the database, and the transaction can go on.
    #[error("the event is invalid: {0}")]
    Invalid(#[from] InvalidEvent),
    /// The database refused the event, or can't be reached. The transaction can only be rolled back.
    #[error("the event was not recorded: {0}")]
    Database(#[from] sqlx::Error),
}

/// Records an event in the transaction that is open on `connection`. Dashboards show the event if the transaction commits.
///
/// The event keeps its id. Publishing it directly as well, for speed, is harmless: it is shown once.
///
/// # Errors
/// [`RecordError`].
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
