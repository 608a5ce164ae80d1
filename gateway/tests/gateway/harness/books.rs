//! Billing in SQL: what a test writes into the reference tables and the outbox.

use publisher::TenantId;
use sqlx::{Connection, PgConnection, Row};

use super::postgres::Database;

/// Whose books these are; as secret as [the others](super::events::PARENT).
pub const PARENT: &str = "Thandi Mokoena";
pub const CHILD: &str = "Lwazi";

/// A payment as billing emits it; `number` makes it a different one.
pub fn payment_data(number: u32) -> String {
    format!(
        r#"{{"paymentId":"p-{number}","amount":{number}.50,"parentName":"{PARENT}","childName":"{CHILD}","invoiceNumber":"INV-{number}"}}"#
    )
}

/// Emits on the caller's connection, in the caller's transaction if one is open; returns the event's id.
pub async fn emit(client: &mut PgConnection, tenant: &TenantId, number: u32) -> String {
    try_emit(client, tenant, number).await.unwrap()
}

/// The same where the database may fail.
pub async fn try_emit(client: &mut PgConnection, tenant: &TenantId, number: u32) -> sqlx::Result<String> {
    sqlx::query_scalar("select dashboard.emit($1, 'payment_received', $2::jsonb)::text")
        .bind(tenant.as_str())
        .bind(payment_data(number))
        .fetch_one(client)
        .await
}

/// Emits so many payments in one transaction; their ids, in order.
pub async fn emit_all(database: &Database, tenant: &TenantId, numbers: std::ops::Range<u32>) -> Vec<String> {
    let mut client = database.client().await;
    let mut transaction = client.begin().await.unwrap();
    let mut ids = Vec::new();
    for number in numbers {
        ids.push(emit(&mut transaction, tenant, number).await);
    }
    transaction.commit().await.unwrap();
    ids
}

/// A centre with one family and one invoice of R1000 that is due in a week.
pub async fn open_books(database: &Database, tenant: &TenantId) {
    database
        .run(&format!(
            "insert into billing.tenants (id, name) values ('{tenant}', 'Acorn');
             insert into billing.parents (tenant_id, id, name) values ('{tenant}', 'par-1', '{PARENT}');
             insert into billing.children (tenant_id, id, parent_id, name) values ('{tenant}', 'chi-1', 'par-1', '{CHILD}');
             insert into billing.invoices (tenant_id, id, number, parent_id, child_id, amount, status, issued_on, due_on)
             values ('{tenant}', 'inv-1', 'INV-1', 'par-1', 'chi-1', 100000, 'PENDING', current_date - 7, current_date + 7)"
        ))
        .await;
}

/// Records a payment in the books, without telling anybody.
pub async fn pay(client: &mut PgConnection, tenant: &TenantId, number: u32, rand: u32) {
    sqlx::query(
        "with paid as (
            insert into billing.payments (tenant_id, id, invoice_id, amount) values ($1, $2, 'inv-1', $3) returning amount
        )
        update billing.invoices set amount_paid = amount_paid + paid.amount from paid
        where tenant_id = $1 and id = 'inv-1'",
    )
    .bind(tenant.as_str())
    .bind(format!("p-{number}"))
    .bind(i64::from(rand))
    .execute(client)
    .await
    .unwrap();
}

/// A payment of R10 in the books and in the outbox, in one transaction; its id in the books.
pub async fn record(database: &Database, tenant: &TenantId, number: u32) -> String {
    let mut client = database.client().await;
    let mut transaction = client.begin().await.unwrap();
    pay(&mut transaction, tenant, number, 10).await;
    emit(&mut transaction, tenant, number).await;
    transaction.commit().await.unwrap();
    format!("p-{number}")
}

/// The tenant's rows by fate; `null` ones wait.
pub async fn fates(database: &Database, tenant: &TenantId) -> std::collections::BTreeMap<String, i64> {
    let query = "select coalesce(fate, 'pending') as fate, count(*) as rows from dashboard.outbox where tenant_id = $1 group by 1";
    let rows = sqlx::query(query).bind(tenant.as_str()).fetch_all(&mut database.client().await).await.unwrap();
    rows.iter().map(|row| (row.get("fate"), row.get("rows"))).collect()
}
