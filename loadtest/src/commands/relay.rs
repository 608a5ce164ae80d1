//! `relay`: how many events a second the relay moves from the outbox to Redis while more are written.

use std::fmt;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tokio::time::sleep;

use super::options::{Database, Internal, Writing};
use crate::report::findings::Findings;
use crate::wire::scrape::Scrape;

/// Write events with `dashboard.emit`, a little below every tenant's limit; report the rate that the relay sustains.
/// `--internal` is the leader's: its metric `relay_leader` is 1.
#[derive(Debug, Args)]
#[command(mut_arg("tenants", |arg| arg.default_value("1000")), mut_arg("rate", |arg| arg.default_value("6000")))]
pub struct Options {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    internal: Internal,
    #[command(flatten)]
    writing: Writing,
    /// Fail when fewer events a second than this are relayed during the writing.
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
const BATCH: u32 = 100;

/// Writes `$3` events of the tenants `relay-0` to `relay-($2 - 1)` in turn, the first with number `$1`.
const EMIT: &str = "select count(dashboard.emit('relay-' || n % $2, 'payment_received', jsonb_build_object(
        'paymentId', 'p-' || n, 'amount', 1500.00, 'parentName', 'Thandi Mokoena', 'childName', 'Lwazi',
        'invoiceNumber', 'INV-' || n)))
    from generate_series($1::bigint, $1 + $3 - 1) n";

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(measure(&options))?;
    let mut failures = Vec::new();
    if options.min_rate.is_some_and(|least| report.relayed_per_second < least) {
        failures.push(format!("the relay moved {:.0} events a second, too few", report.relayed_per_second));
    }
    Findings::new(&report, failures)
}

async fn measure(options: &Options) -> anyhow::Result<Report> {
    let internal = &options.internal.internal;
    let Writing { tenants, rate, duration } = options.writing;
    let before = Scrape::of(internal)?;
    let mut database = options.database.connect().await?;
    let begin = Instant::now();
    let mut written = 0_u64;
    while begin.elapsed() < duration {
        let due = begin + Duration::from_secs_f64(written as f64 / f64::from(rate));
        sleep(due.saturating_duration_since(Instant::now())).await;
        sqlx::query(EMIT)
            .bind(i64::try_from(written)?)
            .bind(i64::from(tenants))
            .bind(i64::from(BATCH))
            .execute(&mut database)
            .await?;
        written += u64::from(BATCH);
    }
    let took = begin.elapsed().as_secs_f64();
    let at_the_end = Scrape::of(internal)?;
    let relayed = at_the_end.value("relay_published_total")? - before.value("relay_published_total")?;
    let ended = Instant::now();
    while sqlx::query_scalar("select exists (select from dashboard.outbox where relayed_at is null)")
        .fetch_one(&mut database)
        .await?
    {
        sleep(Duration::from_millis(20)).await;
    }
    let drained_after = ended.elapsed();
    let condensed = Scrape::of(internal)?.value("relay_condensed_total")? - before.value("relay_condensed_total")?;
    Ok(Report {
        written,
        written_per_second: written as f64 / took,
        relayed_per_second: relayed / took,
        condensed,
        lag_at_the_end_seconds: at_the_end.value("relay_lag_seconds")?,
        drained_after,
    })
}
