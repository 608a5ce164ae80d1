//! `relay`: how many events a second go from the outbox to Redis, while they are being written.

use std::fmt;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use sqlx::{Connection, PgConnection};
use tokio::time::sleep;

use super::{Findings, duration};
use crate::scrape::Scrape;

/// Write events through `dashboard.emit`, a little below every tenant's limit; report what the relay sustains.
#[derive(Debug, Args)]
pub struct Options {
    /// The gateways' DATABASE_URL.
    #[arg(long, env, hide_env_values = true)]
    database_url: String,
    /// The leading gateway's internal port, host:port.
    #[arg(long, default_value = "127.0.0.1:9090")]
    internal: String,
    /// Tenants that events are written for, in turn.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    tenants: u32,
    /// Events a second to write.
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// For how long.
    #[arg(long, default_value = "30s", value_parser = duration)]
    duration: Duration,
    /// Fail when fewer a second are relayed while they are written.
    #[arg(long)]
    min_rate: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    written: u64,
    written_per_second: f64,
    relayed_per_second: f64,
    condensed: f64,
    lag_at_the_end_seconds: f64,
    drained_after: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { written, written_per_second, relayed_per_second, condensed, lag_at_the_end_seconds, drained_after } =
            self;
        writeln!(f, "written   {written}, {written_per_second:.0} a second")?;
        writeln!(f, "relayed   {relayed_per_second:.0} a second meanwhile, {condensed:.0} condensed")?;
        write!(f, "backlog   {lag_at_the_end_seconds:.2} s old at the end, gone after {drained_after:?}")
    }
}

/// Events of one transaction, each of another tenant.
const PORTION: u32 = 100;

/// Events for tenants `relay-n`, from one on and wrapping around.
const EMIT: &str = "select count(dashboard.emit('relay-' || n % $2, 'payment_received', jsonb_build_object(
        'paymentId', 'p-' || n, 'amount', 1500.00, 'parentName', 'Thandi Mokoena', 'childName', 'Lwazi',
        'invoiceNumber', 'INV-' || n)))
    from generate_series($1::bigint, $1 + $3 - 1) n";

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(measure(&options))?;
    let mut failures = Vec::new();
    if options.min_rate.is_some_and(|least| report.relayed_per_second < least) {
        failures.push(format!("{:.0} events a second are too few", report.relayed_per_second));
    }
    Findings::new(&report, failures)
}

async fn measure(options: &Options) -> anyhow::Result<Report> {
    let before = Scrape::of(&options.internal)?;
    let mut database = PgConnection::connect_with(&publisher::database::options(&options.database_url)?).await?;
    let begin = Instant::now();
    let mut written = 0_u64;
    while begin.elapsed() < options.duration {
        let due = begin + Duration::from_secs_f64(written as f64 / f64::from(options.rate));
        sleep(due.saturating_duration_since(Instant::now())).await;
        sqlx::query(EMIT)
            .bind(i64::try_from(written)?)
            .bind(i64::from(options.tenants))
            .bind(i64::from(PORTION))
            .execute(&mut database)
            .await?;
        written += u64::from(PORTION);
    }
    let took = begin.elapsed().as_secs_f64();
    let at_the_end = Scrape::of(&options.internal)?;
    let relayed = at_the_end.value("relay_published_total")? - before.value("relay_published_total")?;
    let ended = Instant::now();
    while sqlx::query_scalar("select exists (select from dashboard.outbox where relayed_at is null)")
        .fetch_one(&mut database)
        .await?
    {
        sleep(Duration::from_millis(20)).await;
    }
    let drained_after = ended.elapsed();
    let condensed =
        Scrape::of(&options.internal)?.value("relay_condensed_total")? - before.value("relay_condensed_total")?;
    Ok(Report {
        written,
        written_per_second: written as f64 / took,
        relayed_per_second: relayed / took,
        condensed,
        lag_at_the_end_seconds: at_the_end.value("relay_lag_seconds")?,
        drained_after,
    })
}
