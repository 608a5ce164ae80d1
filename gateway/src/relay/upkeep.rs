//! The leader's work beside its turns: it deletes old rows, and measures the backlog.

use std::time::Duration;

use publisher::internals::LogThrottle;
use sqlx::{PgPool, Row};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::warn;

use super::rows::{for_a_newer_relay, known_types, moment, within_limit};
use crate::metrics::relay::RelayMetrics;

/// The time between two searches for old rows.
const PRUNE_PAUSE: Duration = Duration::from_secs(10);
/// The shortest time between two measurements of the backlog.
const MEASURE_PAUSE: Duration = Duration::from_secs(1);

/// Relayed rows are kept as long as their publish-once marks in Redis, so that one can look up what became of an event.
const PRUNE: &str = "delete from dashboard.outbox where id in (
    select id from dashboard.outbox where relayed_at < now() - interval '24 hours' order by relayed_at limit 5000)";
/// Rows that one statement of [`PRUNE`] deletes at most: more would slow down other sessions.
const PRUNED_AT_ONCE: u64 = 5000;

/// How many rows wait, the age of the oldest in seconds, how many of them wait for a newer relay, and a type of these.
const MEASURE: &str = concat!(
    "select count(*),
        greatest(coalesce(extract(epoch from clock_timestamp() - min(recorded_at) filter (where ",
    moment!("row.recorded_at"),
    ")), 0), 0)::float8,
        count(*) filter (where ",
    for_a_newer_relay!(),
    "), coalesce(min(row.type) filter (where row.type <> all($1) and ",
    for_a_newer_relay!(),
    "), 'metrics_updated')
    from dashboard.outbox row where row.relayed_at is null"
);

/// Deletes old rows now and then, for ever.
pub(super) async fn keep_pruning(pool: &PgPool) {
    let mut tick = interval(PRUNE_PAUSE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = prune(pool).await {
            warn!(%error, "old outbox rows not deleted");
        }
    }
}

async fn prune(pool: &PgPool) -> sqlx::Result<()> {
    loop {
        let deleted = within_limit(async { sqlx::query(PRUNE).execute(pool).await }).await?.rows_affected();
        if deleted < PRUNED_AT_ONCE {
            return Ok(());
        }
    }
}

/// Shows the backlog in the metrics, for ever. Counting a million rows is slow: it takes a twentieth of the time at most.
pub(super) async fn keep_measuring(pool: &PgPool, metrics: &RelayMetrics) {
    let mut throttle = LogThrottle::default();
    loop {
        let began = Instant::now();
        if let Ok((rows, lag_seconds, for_a_newer_relay, newer_type)) = measure(pool).await {
            metrics.waiting(rows, lag_seconds);
            if for_a_newer_relay > 0 && throttle.is_due("newer") {
                let (rows, kind) = (for_a_newer_relay, newer_type);
                warn!(rows, kind, "rows of the outbox wait for a newer relay: this one doesn't know their type");
            }
        }
        sleep(MEASURE_PAUSE.max(20 * began.elapsed())).await;
    }
}

/// The columns of [`MEASURE`].
async fn measure(pool: &PgPool) -> sqlx::Result<(i64, f64, i64, String)> {
    let row = within_limit(async { sqlx::query(MEASURE).bind(known_types()).fetch_one(pool).await }).await?;
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
}
