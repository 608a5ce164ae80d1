//! `POST /invoices/{id}/status`: an invoice is issued, becomes overdue, or is cancelled. It is paid by payments only.

use axum::{
    Json,
    extract::{Path, State, rejection::JsonRejection},
};
use publisher::{DashboardEvent, InvoiceStatusChanged, TenantId, outbox};
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, Row};

use crate::error::ApiError;

/// The request's body.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    tenant_id: TenantId,
    status: String,
}

/// The invoice's status now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    invoice_number: String,
    status: String,
}

/// Changes an invoice's status and records the event. A status that the invoice has already makes no event.
pub async fn change_status(
    State(pool): State<PgPool>,
    Path(id): Path<String>,
    request: Result<Json<Request>, JsonRejection>,
) -> Result<Json<Changed>, ApiError> {
    let Json(Request { tenant_id, status: wanted }) = request?;
    let mut transaction = pool.begin().await?;
    let query = "select number, status from billing.invoices where tenant_id = $1 and id = $2 for update";
    let row = sqlx::query(query).bind(tenant_id.as_str()).bind(&id).fetch_optional(&mut *transaction).await?;
    let row = row.ok_or(ApiError::NotFound("invoice"))?;
    let (number, status): (String, String) = (row.try_get("number")?, row.try_get("status")?);
    if status == wanted {
        return Ok(Json(Changed { invoice_number: number, status }));
    }
    if !["PENDING", "OVERDUE", "CANCELLED"].contains(&&*wanted) {
        return Err(ApiError::Invalid { field: "status", rule: "must be PENDING, OVERDUE or CANCELLED".into() });
    }
    let legal = match &*status {
        "DRAFT" => wanted != "OVERDUE",
        "PENDING" => true,
        "OVERDUE" => wanted == "PENDING" || wanted == "CANCELLED",
        _ => false,
    };
    if !legal {
        return Err(ApiError::Conflict(format!("invoice {number} is {status} and can't become {wanted}")));
    }

    let update = "update billing.invoices set status = $3 where tenant_id = $1 and id = $2";
    sqlx::query(update).bind(tenant_id.as_str()).bind(&id).bind(&wanted).execute(&mut *transaction).await?;
    let changed = InvoiceStatusChanged {
        invoice_id: id,
        invoice_number: number.clone(),
        previous_status: status,
        new_status: wanted.clone(),
    };
    outbox::record(&mut transaction, &tenant_id, &DashboardEvent::new(changed)).await?;
    transaction.commit().await?;
    Ok(Json(Changed { invoice_number: number, status: wanted }))
}
