//! `POST /payments`: records a payment.

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

/// The request's body.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    tenant_id: TenantId,
    invoice_id: String,
    amount: Money,
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    payment_id: String,
    invoice_number: String,
    /// What is left to pay on the invoice.
    balance: Money,
    invoice_status: String,
}

/// An invoice that is locked until the transaction ends.
struct Invoice {
    number: String,
    status: String,
    balance: Decimal,
    parent: String,
    child: String,
}

/// Allocates a payment to its invoice and records the events, in one transaction.
///
/// With an `Idempotency-Key`, the same request again gives the first answer, so that a client that lost the reply can retry. The key
/// belongs to this invoice and amount; another payment with the same key is refused.
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
    // The locks come first: requests with one key are carried out one after the other, and payments of one invoice too.
    if let Some(key) = key
        && let Some(receipt) = recorded_before(&mut transaction, &request, key).await?
    {
        return Ok((StatusCode::OK, Json(receipt)));
    }
    let invoice = lock_invoice(&mut transaction, &request).await?;
    let amount = request.amount.as_decimal();
    if !matches!(&*invoice.status, "PENDING" | "OVERDUE") {
        return Err(ApiError::Conflict(format!("invoice {} is {}", invoice.number, invoice.status)));
    }
    if amount > invoice.balance {
        let rule = format!("exceeds the {:.2} that is left to pay on {}", invoice.balance, invoice.number);
        return Err(ApiError::Invalid { field: "amount", rule });
    }

    let settled = amount == invoice.balance;
    let status = if settled { "PAID" } else { &invoice.status };
    let balance = invoice.balance - amount;
    let payment_id = write_payment(&mut transaction, &request, key, status, balance).await?;
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

    let receipt = Receipt {
        payment_id,
        invoice_status: status.to_owned(),
        invoice_number: invoice.number,
        balance: Money::try_from(balance).map_err(anyhow::Error::from)?,
    };
    Ok((StatusCode::CREATED, Json(receipt)))
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

/// The first answer to a key. Waits for earlier requests with the same key.
async fn recorded_before(
    transaction: &mut Transaction<'_, Postgres>,
    request: &Request,
    key: &str,
) -> Result<Option<Receipt>, ApiError> {
    let tenant = request.tenant_id.as_str();
    // Two keys with the same hash wait for each other; that does no harm.
    let lock = "select pg_advisory_xact_lock(hashtextextended($1 || ' ' || $2, 0))";
    sqlx::query(lock).bind(tenant).bind(key).execute(&mut **transaction).await?;
    let query = "select payment.id, payment.invoice_id, payment.amount, invoice.number,
            coalesce(payment.balance_after, invoice.amount - invoice.amount_paid) as balance,
            coalesce(payment.status_after, invoice.status) as status
        from billing.payments payment
        join billing.invoices invoice on invoice.tenant_id = payment.tenant_id and invoice.id = payment.invoice_id
        where payment.tenant_id = $1 and payment.idempotency_key = $2";
    let row = sqlx::query(query).bind(tenant).bind(key).fetch_optional(&mut **transaction).await?;
    let Some(row) = row else { return Ok(None) };
    let (invoice, amount): (&str, Decimal) = (row.try_get("invoice_id")?, row.try_get("amount")?);
    if invoice != request.invoice_id || amount != request.amount.as_decimal() {
        let rule = "was used for a payment of another invoice or amount".into();
        return Err(ApiError::Invalid { field: "Idempotency-Key", rule });
    }
    Ok(Some(Receipt {
        payment_id: row.try_get("id")?,
        invoice_number: row.try_get("number")?,
        balance: Money::try_from(row.try_get::<Decimal, _>("balance")?).map_err(anyhow::Error::from)?,
        invoice_status: row.try_get("status")?,
    }))
}

async fn write_payment(
    transaction: &mut Transaction<'_, Postgres>,
    request: &Request,
    key: Option<&str>,
    status: &str,
    balance: Decimal,
) -> Result<String, ApiError> {
    let insert = "insert into billing.payments
            (tenant_id, id, invoice_id, amount, idempotency_key, balance_after, status_after)
        values ($1, 'pay-' || gen_random_uuid(), $2, $3, $4, $5, $6) returning id";
    let payment_id = sqlx::query_scalar(insert)
        .bind(request.tenant_id.as_str())
        .bind(&request.invoice_id)
        .bind(request.amount.as_decimal())
        .bind(key)
        .bind(balance)
        .bind(status)
        .fetch_one(&mut **transaction)
        .await?;
    let update = "update billing.invoices set amount_paid = amount_paid + $3, status = $4
        where tenant_id = $1 and id = $2";
    sqlx::query(update)
        .bind(request.tenant_id.as_str())
        .bind(&request.invoice_id)
        .bind(request.amount.as_decimal())
        .bind(status)
        .execute(&mut **transaction)
        .await?;
    Ok(payment_id)
}
