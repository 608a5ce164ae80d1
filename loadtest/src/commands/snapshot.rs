//! `snapshot`: how long a join with a snapshot takes on the books of several years.

use std::fmt;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Row};

use super::options::{Database, Gateways, MaxP99};
use crate::client::Client;
use crate::client::token::Mint;
use crate::measure::latency::{Latency, Recorder};
use crate::report::findings::Findings;

/// Fill the reference tables with years of payments and the outbox with old rows (once), then join; report how long a join
/// takes. The database must have been migrated with `--reference`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    gateways: Gateways,
    #[command(flatten)]
    database: Database,
    /// Payments in the books; one tenant has ten times as many as each other.
    #[arg(long, default_value_t = 10_000_000)]
    payments: i64,
    /// Relayed rows in the outbox.
    #[arg(long, default_value_t = 1_000_000)]
    outbox: i64,
    /// Joins of random tenants to measure; twenty joins of the largest tenant follow.
    #[arg(long, default_value_t = 1000)]
    joins: usize,
    #[command(flatten)]
    latency: MaxP99,
}

#[derive(Serialize)]
struct Report {
    payments: i64,
    outbox: i64,
    latency: Latency,
    latency_of_the_largest: Latency,
    plan_of_the_largest: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { payments, outbox, latency, latency_of_the_largest, plan_of_the_largest } = self;
        writeln!(f, "books         {payments} payments, {outbox} relayed rows in the outbox")?;
        writeln!(f, "join→joined   {latency}")?;
        writeln!(f, "the largest   {latency_of_the_largest}")?;
        write!(f, "{}", plan_of_the_largest.join("\n"))
    }
}

/// The statements that the gateway reads a snapshot with.
const METRICS: &str = include_str!("../../../gateway/src/snapshots/metrics.sql");
const PAYMENTS: &str = include_str!("../../../gateway/src/snapshots/recent_payments.sql");
/// Tenants of the books; the first has ten times as many payments as each other.
const TENANTS: i64 = 1000;
/// Joins of the largest tenant.
const LARGEST_JOINS: usize = 20;

/// The books: one invoice for every twenty payments, two of a hundred unpaid.
const FILL: [&str; 6] = [
    "insert into billing.tenants (id, name) select 'books-' || t, 'Centre ' || t from generate_series(0, 999) t on conflict do nothing",
    "insert into billing.parents (tenant_id, id, name)
     select 'books-' || t, 'par-' || n, 'Parent ' || n from generate_series(0, 999) t, generate_series(0, 99) n on conflict do nothing",
    "insert into billing.children (tenant_id, id, parent_id, name)
     select 'books-' || t, 'chi-' || n, 'par-' || n, 'Child ' || n from generate_series(0, 999) t, generate_series(0, 99) n
     on conflict do nothing",
    "insert into billing.invoices (tenant_id, id, number, parent_id, child_id, amount, amount_paid, status, issued_on, due_on)
     select 'books-' || t, 'inv-' || n, 'INV-' || n, 'par-' || n % 100, 'chi-' || n % 100, 2000,
         case when n % 50 = 0 then 0 else 2000 end,
         case when n % 100 = 0 then 'OVERDUE' when n % 50 = 0 then 'PENDING' else 'PAID' end,
         current_date - (n % 1000)::int - 20, current_date - (n % 1000)::int
     from generate_series(0, 999) t, generate_series(1, case when t = 0 then $1 / 1009 / 2 else $1 / 1009 / 20 end) n
     on conflict do nothing",
    // 0.1 % of the payments are of today.
    "insert into billing.payments (tenant_id, id, invoice_id, amount, received_at)
     select 'books-' || t, 'p-' || n, 'inv-' || 1 + n % ($1 / 1009 / 20), 100, now() - n * interval '90 minutes' / case when t = 0 then 10 else 1 end
     from generate_series(0, 999) t, generate_series(1, case when t = 0 then $1 / 1009 * 10 else $1 / 1009 end) n
     on conflict do nothing",
    "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at, recorded_at, relayed_at, fate)
     select 'old-' || n, 'books-' || n % 1000, 'payment_received',
         jsonb_build_object('paymentId', 'p-' || n, 'amount', 100.00, 'parentName', 'Parent', 'childName', 'Child', 'invoiceNumber', 'INV-' || n),
         now(), now(), now(), 'published'
     from generate_series(1, $1) n",
];

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (payments, outbox) = runtime.block_on(fill(&options))?;
    let (mut all, mut largest) = (Recorder::new(), Recorder::new());
    let mint = options.gateways.mint();
    for join in 0..options.joins {
        let index = rand::random_range(1..TENANTS);
        all.record(join_once(&options, &mint, join, index)?);
    }
    for join in 0..LARGEST_JOINS {
        // The gateway reuses a snapshot for a second: each of these joins needs a new one.
        std::thread::sleep(Duration::from_millis(1100));
        largest.record(join_once(&options, &mint, join, 0)?);
    }
    let plan_of_the_largest = runtime.block_on(explain(&options))?;
    let report = Report {
        payments,
        outbox,
        latency: all.summary(),
        latency_of_the_largest: largest.summary(),
        plan_of_the_largest,
    };
    let slowest = report.latency.p99().max(report.latency_of_the_largest.p99());
    Findings::new(&report, options.latency.failure(slowest).into_iter().collect())
}

/// From the first byte of the handshake to the last of `joined`, in microseconds.
fn join_once(options: &Options, mint: &Mint, join: usize, tenant: i64) -> anyhow::Result<u64> {
    let token = mint.token("snapshot", &format!("books-{tenant}"))?;
    let begun = Instant::now();
    let mut client = Client::upgrade(options.gateways.of(join), join, &token)?;
    let joined = client.next_text()?;
    let micros = begun.elapsed().as_micros() as u64;
    anyhow::ensure!(memchr::memmem::find(&joined, b"totalOutstanding").is_some(), "`joined` has no figures");
    client.close()?;
    Ok(micros)
}

/// Fills the tables up to the wanted numbers of rows.
async fn fill(options: &Options) -> anyhow::Result<(i64, i64)> {
    let mut database = options.database.connect().await?;
    let payments = "select count(*) from billing.payments";
    let outbox = "select count(*) from dashboard.outbox where relayed_at is not null";
    if sqlx::query_scalar::<_, i64>(payments).fetch_one(&mut database).await? < options.payments * 99 / 100 {
        for statement in &FILL[..3] {
            sqlx::query(*statement).execute(&mut database).await?;
        }
        for statement in &FILL[3..5] {
            sqlx::query(*statement).bind(options.payments).execute(&mut database).await?;
        }
    }
    let old: i64 = sqlx::query_scalar(outbox).fetch_one(&mut database).await?;
    if old < options.outbox {
        sqlx::query(FILL[5]).bind(options.outbox - old).execute(&mut database).await?;
    }
    sqlx::raw_sql("vacuum analyze").execute(&mut database).await?;
    let payments = sqlx::query_scalar(payments).fetch_one(&mut database).await?;
    Ok((payments, sqlx::query_scalar(outbox).fetch_one(&mut database).await?))
}

async fn explain(options: &Options) -> anyhow::Result<Vec<String>> {
    let mut database = options.database.connect().await?;
    let mut plans = Vec::new();
    for statement in [METRICS, PAYMENTS] {
        let explain = AssertSqlSafe(format!("explain (analyze, buffers, costs off) {statement}"));
        let plan = sqlx::query(explain).bind("books-0").fetch_all(&mut database).await?;
        plans.extend(plan.iter().map(|line| line.get::<String, _>(0)));
    }
    Ok(plans)
}
