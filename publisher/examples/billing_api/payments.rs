//! `POST /payments`: a payment comes in.

use axum::{
    Json,
    extract::{State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode},
};
use publisher::{DashboardEvent, InvoiceStatusChanged, Money, PaymentReceived, TenantId, outbox};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::{Acquire, PgPool, Postgres, Row, Transaction};

use crate::error::ApiError;

/// What the caller says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    tenant_id: TenantId,
    invoice_id: String,
    amount: Money,
}

/// What became of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    payment_id: String,
    invoice_number: String,
    /// What is left to pay on the invoice.
    balance: Money,
    invoice_status: String,
}

/// An invoice that nobody else can change until the transaction ends.
struct Invoice {
    number: String,
    status: String,
    balance: Decimal,
    parent: String,
    child: String,
}

/// Allocates a payment to its invoice, and tells the dashboards; all of it or nothing.
///
/// With an `Idempotency-Key`, asking again gives the first answer: a client that lost the reply may simply retry.
pub async fn record(
    State(pool): State<PgPool>,
    headers: HeaderMap,
    request: Result<Json<Request>, JsonRejection>,
) -> Result<(StatusCode, Json<Receipt>), ApiError> {
    let Json(request) = request?;
    let key = idempotency_key(&headers)?;
    if request.amount <= Money::ZERO {
        return Err(ApiError::Invalid { field: "amount", rule: "must be more than 0".into() });
    }

    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    // The lock comes first: two payments of one invoice are recorded one after the other, retries with one key too.
    let invoice = lock_invoice(&mut transaction, &request).await?;
    if let Some(payment_id) = recorded_before(&mut transaction, &request.tenant_id, key).await? {
        let receipt = receipt(payment_id, &invoice, invoice.balance)?;
        return Ok((StatusCode::OK, Json(receipt)));
    }
    let amount = request.amount.as_decimal();
    if !matches!(&*invoice.status, "PENDING" | "OVERDUE") {
        return Err(ApiError::Conflict(format!("invoice {} is {}", invoice.number, invoice.status)));
    }
    if amount > invoice.balance {
        let rule = format!("exceeds the {:.2} that is left to pay on {}", invoice.balance, invoice.number);
        return Err(ApiError::Invalid { field: "amount", rule });
    }

    let settled = amount == invoice.balance;
    let payment_id = write_payment(&mut transaction, &request, key, settled).await?;
    let received = PaymentReceived {
        payment_id: payment_id.clone(),
        amount: request.amount,
        parent_name: invoice.parent.clone(),
        child_name: invoice.child.clone(),
        invoice_number: invoice.number.clone(),
    };
    outbox::record(&mut transaction, &request.tenant_id, &DashboardEvent::new(received)).await?;
    if settled {
        let changed = InvoiceStatusChanged {
            invoice_id: request.invoice_id.clone(),
            invoice_number: invoice.number.clone(),
            previous_status: invoice.status.clone(),
            new_status: "PAID".into(),
        };
        outbox::record(&mut transaction, &request.tenant_id, &DashboardEvent::new(changed)).await?;
    }
    transaction.commit().await?;

    let status = if settled { "PAID".to_owned() } else { invoice.status.clone() };
    let receipt = receipt(payment_id, &Invoice { status, ..invoice }, invoice.balance - amount)?;
    Ok((StatusCode::CREATED, Json(receipt)))
}

fn receipt(payment_id: String, invoice: &Invoice, balance: Decimal) -> Result<Receipt, ApiError> {
    Ok(Receipt {
        payment_id,
        invoice_number: invoice.number.clone(),
        balance: Money::try_from(balance).map_err(anyhow::Error::from)?,
        invoice_status: invoice.status.clone(),
    })
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let rule = || ApiError::Invalid { field: "Idempotency-Key", rule: "must be 1 to 128 visible characters".into() };
    let key = key.to_str().map_err(|_| rule())?;
    if (1..=128).contains(&key.len()) { Ok(Some(key)) } else { Err(rule()) }
}

async fn lock_invoice(transaction: &mut Transaction<'_, Postgres>, request: &Request) -> Result<Invoice, ApiError> {
    let query = "select invoice.number, invoice.status, invoice.amount - invoice.amount_paid as balance,
            parent.name as parent, child.name as child
        from billing.invoices invoice
        join billing.parents parent on parent.tenant_id = invoice.tenant_id and parent.id = invoice.parent_id
        join billing.children child on child.tenant_id = invoice.tenant_id and child.id = invoice.child_id
        where invoice.tenant_id = $1 and invoice.id = $2 for update of invoice";
    let row = sqlx::query(query)
        .bind(request.tenant_id.as_str())
        .bind(&request.invoice_id)
        .fetch_optional(&mut **transaction)
        .await?
        .ok_or(ApiError::NotFound("invoice"))?;
    Ok(Invoice {
        number: row.try_get("number")?,
        status: row.try_get("status")?,
        balance: row.try_get("balance")?,
        parent: row.try_get("parent")?,
        child: row.try_get("child")?,
    })
}

async fn recorded_before(
    transaction: &mut Transaction<'_, Postgres>,
    tenant: &TenantId,
    key: Option<&str>,
) -> Result<Option<String>, ApiError> {
    let query = "select id from billing.payments where tenant_id = $1 and idempotency_key = $2";
    Ok(sqlx::query_scalar(query).bind(tenant.as_str()).bind(key).fetch_optional(&mut **transaction).await?)
}

async fn write_payment(
    transaction: &mut Transaction<'_, Postgres>,
    request: &Request,
    key: Option<&str>,
    settled: bool,
) -> Result<String, ApiError> {
    let insert = "insert into billing.payments (tenant_id, id, invoice_id, amount, idempotency_key)
        values ($1, 'pay-' || gen_random_uuid(), $2, $3, $4) returning id";
    let payment_id = sqlx::query_scalar(insert)
        .bind(request.tenant_id.as_str())
        .bind(&request.invoice_id)
        .bind(request.amount.as_decimal())
        .bind(key)
        .fetch_one(&mut **transaction)
        .await?;
    let update = "update billing.invoices
        set amount_paid = amount_paid + $3, status = case when $4 then 'PAID' else status end
        where tenant_id = $1 and id = $2";
    sqlx::query(update)
        .bind(request.tenant_id.as_str())
        .bind(&request.invoice_id)
        .bind(request.amount.as_decimal())
        .bind(settled)
        .execute(&mut **transaction)
        .await?;
    Ok(payment_id)
}
