//! A look at the books.

use axum::{
    Json,
    extract::{Path, Query, State},
};
use publisher::TenantId;
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::{PgPool, types::Json as Column};

use crate::error::ApiError;

/// Rows of a list, at most.
const ROWS: i64 = 200;

type List = Result<Json<Box<RawValue>>, ApiError>;

/// `GET /tenants`
pub async fn tenants(State(pool): State<PgPool>) -> List {
    let query = "select coalesce(json_agg(json_build_object('tenantId', id, 'name', name) order by id), '[]')
        from (select id, name from billing.tenants order by id limit $1) tenants";
    let list: Column<Box<RawValue>> = sqlx::query_scalar(query).bind(ROWS).fetch_one(&pool).await?;
    Ok(Json(list.0))
}

/// Which invoices.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    status: Option<String>,
}

/// `GET /tenants/{tenant}/invoices?status=`: those that are due first, first.
pub async fn invoices(State(pool): State<PgPool>, Path(tenant): Path<TenantId>, Query(filter): Query<Filter>) -> List {
    let query = "select coalesce(json_agg(json_build_object(
            'invoiceId', id, 'invoiceNumber', number, 'status', status, 'amount', amount,
            'balance', amount - amount_paid, 'issuedOn', issued_on, 'dueOn', due_on)), '[]')
        from (select * from billing.invoices where tenant_id = $1 and ($2::text is null or status = $2)
              order by due_on, id limit $3) invoices";
    let list: Column<Box<RawValue>> =
        sqlx::query_scalar(query).bind(tenant.as_str()).bind(filter.status).bind(ROWS).fetch_one(&pool).await?;
    Ok(Json(list.0))
}

/// `GET /tenants/{tenant}/payments`: the newest first.
pub async fn payments(State(pool): State<PgPool>, Path(tenant): Path<TenantId>) -> List {
    let query = "select coalesce(json_agg(json_build_object(
            'paymentId', id, 'invoiceId', invoice_id, 'amount', amount, 'receivedAt', received_at)), '[]')
        from (select * from billing.payments where tenant_id = $1 order by received_at desc, id desc limit $2) payments";
    let list: Column<Box<RawValue>> =
        sqlx::query_scalar(query).bind(tenant.as_str()).bind(ROWS).fetch_one(&pool).await?;
    Ok(Json(list.0))
}

/// `GET /tenants/{tenant}/metrics`: the figures that dashboards show.
pub async fn metrics(State(pool): State<PgPool>, Path(tenant): Path<TenantId>) -> List {
    let query = "select json_build_object(
            'totalOutstanding', total_outstanding, 'totalArrears', total_arrears,
            'accountsInArrears', accounts_in_arrears, 'paymentsToday', payments_today,
            'amountReceivedToday', amount_received_today, 'invoicesByStatus', invoices_by_status, 'asOf', now())
        from dashboard.metrics where tenant_id = $1";
    let metrics: Option<Column<Box<RawValue>>> =
        sqlx::query_scalar(query).bind(tenant.as_str()).fetch_optional(&pool).await?;
    metrics.map(|metrics| Json(metrics.0)).ok_or(ApiError::NotFound("tenant"))
}
