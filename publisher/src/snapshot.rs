//! What a tenant's dashboards start from: its figures and newest payments, read from the two views that the owner of the billing
//! tables provides (design §6).

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row, postgres::PgRow, types::Json};
use time::OffsetDateTime;

use crate::{error::InvalidEvent, money::Money, payload::MetricsUpdated, tenant::TenantId, timestamp};

/// How many payments a snapshot has.
pub const RECENT_PAYMENTS: usize = 20;

macro_rules! select_metrics {
    ($more:literal) => {
        concat!(
            "select metrics.tenant_id is not null as known,
                metrics.total_outstanding::numeric, metrics.total_arrears::numeric,
                metrics.accounts_in_arrears::bigint, metrics.payments_today::bigint,
                metrics.amount_received_today::numeric, metrics.invoices_by_status::jsonb,
                statement_timestamp() as as_of",
            $more,
            " from (values ($1)) asked (tenant_id)
              left join dashboard.metrics metrics on metrics.tenant_id = asked.tenant_id"
        )
    };
}

const METRICS: &str = select_metrics!("");

/// The statement of a snapshot: figures and payments at one moment. `$1` is the tenant.
pub const SNAPSHOT: &str = select_metrics!(
    ", (select coalesce(json_agg(json_build_object(
            'paymentId', payment_id, 'amount', trim_scale(amount::numeric), 'parentName', parent_name,
            'childName', child_name, 'invoiceNumber', invoice_number, 'receivedAt', received_at)), '[]')
        from (select * from dashboard.recent_payments where tenant_id = $1
              order by received_at desc, payment_id desc limit 20) newest) as payments"
);

/// A payment of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct RecentPayment {
    /// Names the payment.
    pub payment_id: String,
    /// What was paid.
    pub amount: Money,
    /// Who paid.
    pub parent_name: String,
    /// For whom.
    pub child_name: String,
    /// The invoice it was paid on.
    pub invoice_number: String,
    /// When it was received.
    #[serde(with = "timestamp")]
    #[cfg_attr(test, ts(type = "string"))]
    pub received_at: OffsetDateTime,
}

/// A tenant's figures and newest payments at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The figures; `None` when the views don't know the tenant.
    pub metrics: Option<MetricsUpdated>,
    /// The newest first, at most [`RECENT_PAYMENTS`].
    pub payments: Vec<RecentPayment>,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// PostgreSQL's, views that are missing among it.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// A view says what no dashboard can show; the text names the column.
    #[error("dashboard.{0}")]
    Unusable(String),
}

impl SnapshotError {
    /// Whether the views are not there, or not ours to read.
    pub fn is_missing_views(&self) -> bool {
        const UNDEFINED_TABLE: &str = "42P01";
        const UNDEFINED_SCHEMA: &str = "3F000";
        const FORBIDDEN: &str = "42501";
        let Self::Database(sqlx::Error::Database(error)) = self else { return false };
        error.code().is_some_and(|code| [UNDEFINED_TABLE, UNDEFINED_SCHEMA, FORBIDDEN].contains(&&*code))
    }
}

/// Reads a tenant's figures and newest payments.
pub async fn read(connection: &mut PgConnection, tenant: &TenantId) -> Result<Snapshot, SnapshotError> {
    let row = sqlx::query(SNAPSHOT).bind(tenant.as_str()).fetch_one(connection).await?;
    let payments: Json<Vec<RecentPayment>> =
        row.try_get("payments").map_err(|error| SnapshotError::Unusable(format!("recent_payments: {error}")))?;
    Ok(Snapshot { metrics: metrics(&row)?, payments: payments.0 })
}

/// Reads a tenant's figures; `None` when the view doesn't know the tenant.
pub async fn read_metrics(
    connection: &mut PgConnection,
    tenant: &TenantId,
) -> Result<Option<MetricsUpdated>, SnapshotError> {
    metrics(&sqlx::query(METRICS).bind(tenant.as_str()).fetch_one(connection).await?)
}

fn metrics(row: &PgRow) -> Result<Option<MetricsUpdated>, SnapshotError> {
    if !row.try_get::<bool, _>("known")? {
        return Ok(None);
    }
    let invoices_by_status: Json<BTreeMap<String, u64>> =
        row.try_get("invoices_by_status").map_err(|error| unusable("invoices_by_status", error))?;
    let metrics = MetricsUpdated {
        total_outstanding: money(row, "total_outstanding")?,
        total_arrears: money(row, "total_arrears")?,
        accounts_in_arrears: count(row, "accounts_in_arrears")?,
        payments_today: count(row, "payments_today")?,
        amount_received_today: money(row, "amount_received_today")?,
        invoices_by_status: invoices_by_status.0,
        as_of: row.try_get("as_of")?,
        condensed: None,
    };
    metrics.validate().map_err(|InvalidEvent { field, rule }| unusable(&field, rule))?;
    Ok(Some(metrics))
}

fn money(row: &PgRow, column: &str) -> Result<Money, SnapshotError> {
    let amount: Decimal = row.try_get(column).map_err(|error| unusable(column, error))?;
    Money::try_from(amount).map_err(|rule| unusable(column, rule))
}

fn count(row: &PgRow, column: &str) -> Result<u64, SnapshotError> {
    let count: i64 = row.try_get(column).map_err(|error| unusable(column, error))?;
    u64::try_from(count).map_err(|_| unusable(column, "must not be negative"))
}

fn unusable(column: &str, rule: impl std::fmt::Display) -> SnapshotError {
    SnapshotError::Unusable(format!("metrics.{column}: {rule}"))
}
