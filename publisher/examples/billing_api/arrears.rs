//! The arrears sweep: alerts for accounts that have crossed their centre's threshold, once for each crossing.

use std::time::Duration;

use axum::{Json, extract::State};
use serde::Serialize;
use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use crate::error::ApiError;

/// Finds the accounts of a centre that owe more than its threshold, marks them, and records their events, all in SQL.
///
/// An account is marked when it crosses and unmarked when it falls below, so that crossing again alerts again. Of two
/// sweeps at once the second waits for the row, finds it marked, and leaves it.
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
        where parent.tenant_id = $1
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

/// The result of a sweep.
#[derive(Debug, Default, Serialize)]
pub struct Swept {
    alerts: i64,
    /// Centres whose sweep failed.
    failed: Vec<String>,
}

/// Sweeps centre by centre, so that an error in the books of one does not stop the others.
async fn sweep(pool: &PgPool) -> sqlx::Result<Swept> {
    let centres: Vec<String> = sqlx::query_scalar("select id from billing.tenants order by id").fetch_all(pool).await?;
    let mut swept = Swept::default();
    for centre in centres {
        // One statement is one transaction: marks and events are written together.
        match sqlx::query_scalar::<_, i64>(SWEEP).bind(&centre).fetch_one(pool).await {
            Ok(alerts) => swept.alerts += alerts,
            Err(error) => {
                error!(centre, %error, "the arrears sweep of a centre failed, and is tried again");
                swept.failed.push(centre);
            }
        }
    }
    Ok(swept)
}

/// `POST /arrears/sweep`: sweeps now.
pub async fn sweep_now(State(pool): State<PgPool>) -> Result<Json<Swept>, ApiError> {
    Ok(Json(sweep(&pool).await?))
}

/// Sweeps for ever.
pub async fn keep_sweeping(pool: PgPool, every: Duration) {
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match sweep(&pool).await {
            Ok(Swept { alerts: 0, .. }) => {}
            Ok(Swept { alerts, .. }) => info!(alerts, "accounts have crossed their threshold"),
            Err(error) => error!(%error, "the arrears sweep failed, and is tried again"),
        }
    }
}
