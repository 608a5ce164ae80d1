//! The arrears sweep: alerts for accounts that have crossed their centre's threshold, once for each crossing.

use std::time::Duration;

use axum::{Json, extract::State};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use crate::error::ApiError;

/// What each account owes that is overdue, and whether that is over its threshold: set-based, and events from SQL itself.
///
/// An account is marked when it crosses and unmarked when it falls below, so that crossing again alerts again. The mark is what two
/// sweeps at once compete for: the second waits for the row, sees it marked, and leaves it.
const SWEEP: &str = "
    with owed as (
        select parent.tenant_id, parent.id, parent.name, tenant.arrears_threshold,
            coalesce(sum(invoice.amount - invoice.amount_paid), 0) as arrears,
            coalesce(max(today.date - invoice.due_on), 0) as days
        from billing.parents parent
        join billing.tenants tenant on tenant.id = parent.tenant_id
        cross join lateral (select (now() at time zone tenant.time_zone)::date as date) today
        left join billing.invoices invoice on invoice.tenant_id = parent.tenant_id and invoice.parent_id = parent.id
            and invoice.status in ('PENDING', 'OVERDUE') and invoice.due_on < today.date
        group by parent.tenant_id, parent.id, parent.name, tenant.arrears_threshold
    ), calmed as (
        update billing.parents set arrears_alerted_at = null from owed
        where parents.tenant_id = owed.tenant_id and parents.id = owed.id
          and parents.arrears_alerted_at is not null and owed.arrears < owed.arrears_threshold
    ), crossed as (
        update billing.parents set arrears_alerted_at = now() from owed
        where parents.tenant_id = owed.tenant_id and parents.id = owed.id
          and parents.arrears_alerted_at is null and owed.arrears >= owed.arrears_threshold
        returning owed.*
    )
    select count(dashboard.emit(tenant_id, 'arrears_alert', jsonb_build_object(
        'parentId', id, 'parentName', name, 'totalArrears', arrears, 'daysOverdue', days)))
    from crossed";

async fn sweep(pool: &PgPool) -> sqlx::Result<i64> {
    // One statement is one transaction: marks and events are written together.
    sqlx::query_scalar(SWEEP).fetch_one(pool).await
}

/// `POST /arrears/sweep`: sweeps now.
pub async fn sweep_now(State(pool): State<PgPool>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({ "alerts": sweep(&pool).await? })))
}

/// Sweeps for ever.
pub async fn keep_sweeping(pool: PgPool, every: Duration) {
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match sweep(&pool).await {
            Ok(0) => {}
            Ok(alerts) => info!(alerts, "accounts have crossed their threshold"),
            Err(error) => error!(%error, "the arrears sweep failed, and is tried again"),
        }
    }
}
