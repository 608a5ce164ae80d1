//! How the two views of the billing database are read, `dashboard.metrics` and `dashboard.recent_payments`, and which of their values
//! are refused. `migrations/README.md` describes their columns.

use std::collections::BTreeMap;
use std::fmt::Display;

use publisher::{InvalidEvent, MetricsUpdated, Money, TenantId};
use rust_decimal::Decimal;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};

use crate::socket::snapshot::RecentPayment;

/// The payments of a snapshot, at most.
pub const RECENT_PAYMENTS: usize = 20;

/// The statement that reads a tenant's metrics. `$1` is the tenant.
pub const METRICS: &str = include_str!("metrics.sql");

/// The statement that reads a tenant's newest payments. It reads more of them than a snapshot shows, since some may not be fit to be shown:
/// payments without a time, or with an infinite one, come first in the order of the index. `$1` is the tenant. Each payment is JSON, which
/// can hold every value of a view: an infinite time or amount is text in it, and [`RecentPayment`] refuses it.
pub const PAYMENTS: &str = include_str!("recent_payments.sql");

/// A tenant's metrics and newest payments at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// `None` when the view doesn't know the tenant.
    pub metrics: Option<MetricsUpdated>,
    /// The newest first, at most [`RECENT_PAYMENTS`].
    pub payments: Vec<RecentPayment>,
}

/// A tenant's newest payments that can be shown.
#[derive(Debug)]
pub struct RecentPayments {
    /// The newest first, at most [`RECENT_PAYMENTS`].
    pub payments: Vec<RecentPayment>,
    /// The rows that can't be shown.
    pub left_out: Vec<LeftOut>,
}

/// A row of `dashboard.recent_payments` that no dashboard can show.
#[derive(Debug)]
pub struct LeftOut {
    /// The row's `payment_id`, unless that is what it lacks.
    pub payment_id: Option<String>,
    /// The error; it repeats no value of the row.
    pub reason: String,
}

/// Why a part of a snapshot can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// PostgreSQL's error. A missing view is among these.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// A view has a value that no dashboard can show. The text names the column.
    #[error("dashboard.{0}")]
    Unusable(String),
}

impl SnapshotError {
    /// Whether a view does not exist, or the gateway may not read it.
    pub fn is_missing_view(&self) -> bool {
        const UNDEFINED_TABLE: &str = "42P01";
        const UNDEFINED_SCHEMA: &str = "3F000";
        const FORBIDDEN: &str = "42501";
        let Self::Database(sqlx::Error::Database(error)) = self else { return false };
        error.code().is_some_and(|code| [UNDEFINED_TABLE, UNDEFINED_SCHEMA, FORBIDDEN].contains(&&*code))
    }

    /// Whether PostgreSQL answered the query, if only to refuse it, so that another tenant's query may succeed. All other errors concern
    /// the connection or the server: SQLSTATE class 08, the server's shutdown and start (57P…), no place for another session (53300).
    pub fn is_an_answer(&self) -> bool {
        use sqlx::Error::{Database, Io, PoolClosed, PoolTimedOut, Protocol, Tls, WorkerCrashed};
        match self {
            Self::Database(Database(error)) => {
                error.code().is_none_or(|code| !code.starts_with("08") && !code.starts_with("57P") && code != "53300")
            }
            Self::Database(Io(_) | Tls(_) | Protocol(_) | PoolTimedOut | PoolClosed | WorkerCrashed) => false,
            Self::Database(_) | Self::Unusable(_) => true,
        }
    }
}

/// Reads a tenant's newest payments. Like [`read_metrics`] it prepares no statement, so that it works behind a pooler by transaction.
pub async fn read_payments(connection: &mut PgConnection, tenant: &TenantId) -> Result<RecentPayments, SnapshotError> {
    let rows: Vec<(Option<String>, String)> =
        sqlx::query_as(PAYMENTS).persistent(false).bind(tenant.as_str()).fetch_all(connection).await?;
    let mut read = RecentPayments { payments: Vec::new(), left_out: Vec::new() };
    for (payment_id, payment) in rows {
        if read.payments.len() == RECENT_PAYMENTS {
            break;
        }
        match serde_json::from_str(&payment) {
            Ok(payment) => read.payments.push(payment),
            Err(error) => read.left_out.push(LeftOut { payment_id, reason: error.to_string() }),
        }
    }
    Ok(read)
}

/// Reads a tenant's metrics; `None` when the view doesn't know the tenant.
pub async fn read_metrics(
    connection: &mut PgConnection,
    tenant: &TenantId,
) -> Result<Option<MetricsUpdated>, SnapshotError> {
    metrics(&sqlx::query(METRICS).persistent(false).bind(tenant.as_str()).fetch_one(connection).await?)
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
    metrics.validate().map_err(|InvalidEvent { field, rule, .. }| unusable(&field, rule))?;
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

fn unusable(column: &str, rule: impl Display) -> SnapshotError {
    SnapshotError::Unusable(format!("metrics.{column}: {rule}"))
}
