//! Books for a start: a small centre, or many of them for load tests.

use sqlx::PgPool;

/// A centre of 24 families, four months of invoices, most of them paid.
pub async fn centre(pool: &PgPool) -> sqlx::Result<()> {
    write(pool, "acorn-montessori", "Acorn Montessori, Observatory").await
}

/// `load-1` to `load-<centres>`.
pub async fn load(pool: &PgPool, centres: u32) -> sqlx::Result<()> {
    for number in 1..=centres {
        write(pool, &format!("load-{number}"), &format!("Load centre {number}")).await?;
    }
    Ok(())
}

/// Leaves rows that exist as they are.
async fn write(pool: &PgPool, tenant: &str, name: &str) -> sqlx::Result<()> {
    let mut transaction = pool.begin().await?;
    for statement in [
        "insert into billing.tenants (id, name) values ($1, $2) on conflict do nothing",
        "insert into billing.parents (tenant_id, id, name)
         select $1, 'par-' || n, name from unnest(array[
             'Thandi Mokoena', 'Pieter van der Merwe', 'Naledi Dlamini', 'Fatima Patel', 'Johan Botha', 'Lerato Nkosi',
             'Sarah Naidoo', 'Bongani Khumalo', 'Anneke Pretorius', 'Sipho Zulu', 'Priya Govender', 'Michael Abrahams',
             'Zanele Mthembu', 'Elize Steyn', 'Kagiso Molefe', 'Ayesha Davids', 'Themba Ndlovu', 'Charlotte Williams',
             'Nomsa Sithole', 'Riaan Coetzee', 'Palesa Mahlangu', 'Yusuf Ebrahim', 'Busisiwe Cele', 'Daniel Jacobs'
         ]) with ordinality names (name, n) where $2 is not null on conflict do nothing",
        "insert into billing.children (tenant_id, id, parent_id, name)
         select $1, 'chi-' || n, 'par-' || n, name from unnest(array[
             'Lwazi', 'Anika', 'Sipho', 'Zayn', 'Mia', 'Amahle', 'Kiran', 'Nomvula', 'Liam', 'Lethabo', 'Aarav', 'Emma',
             'Minenhle', 'Ruan', 'Tshepo', 'Layla', 'Sibusiso', 'Olivia', 'Thandeka', 'Jaco', 'Karabo', 'Imaan', 'Ayanda', 'Noah'
         ]) with ordinality names (name, n) where $2 is not null on conflict do nothing",
        // Four months of fees: the oldest paid, one family in six behind with the last, this month's not due yet.
        "insert into billing.invoices
             (tenant_id, id, number, parent_id, child_id, amount, amount_paid, status, issued_on, due_on)
         select $1, 'inv-' || to_char(number, 'fm000'), to_char(issued, '\"INV-\"yyyy-') || to_char(number, 'fm000'),
             'par-' || family, 'chi-' || family, fee, case when status = 'PAID' then fee else 0 end, status, issued, issued + 14
         from (
             select month * 24 + family as number, family, issued,
                 (array[1500.00, 1850.00, 2400.00, 3625.50, 2950.00, 1200.00])[1 + family % 6] as fee,
                 case when month = 0 then 'PENDING' when month = 1 and family % 6 = 0 then 'OVERDUE' else 'PAID' end as status
             from generate_series(0, 3) month
             cross join generate_series(1, 24) family
             cross join lateral (select current_date - 5 - 30 * month as issued) issues
         ) invoices where $2 is not null on conflict do nothing",
        "insert into billing.payments (tenant_id, id, invoice_id, amount, received_at)
         select $1, 'pay-' || id, id, amount, least(due_on, current_date - 1) + interval '9 hours'
         from billing.invoices where tenant_id = $1 and status = 'PAID' and $2 is not null on conflict do nothing",
    ] {
        sqlx::query(statement).bind(tenant).bind(name).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}
