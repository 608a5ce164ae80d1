//! The leader's work that nobody waits for, on connections of its own: folding floods, pruning, measuring.

use std::time::Duration;

use sqlx::{Connection, PgPool, Row, postgres::PgConnectOptions, postgres::PgPoolOptions, types::Json};
use time::OffsetDateTime;
use tracing::warn;

use super::{Term, rows::patiently};
use crate::{
    event::{DashboardEvent, DashboardEventType},
    snapshot::{self, SnapshotError},
    tenant::TenantId,
};

/// Relayed rows are kept for as long as their publish-once marks, to answer what became of an event.
const PRUNE: &str = "delete from dashboard.outbox where id in (
    select id from dashboard.outbox where relayed_at < now() - interval '24 hours' order by relayed_at limit 5000)";
/// Rows that one statement of [`PRUNE`] deletes at most: more would be felt.
const PRUNED_AT_ONCE: u64 = 5000;

/// Marks every row of a tenant that waits, and adds up what they are. Folded figures count for what was folded into them.
const FOLD: &str = "
    with folded as (
        update dashboard.outbox set relayed_at = clock_timestamp(), fate = 'condensed'
        where tenant_id = $1 and relayed_at is null
        returning type, data -> 'condensed' as condensed, recorded_at
    ), counted as (
        select type, count(*) as events from folded where condensed is null group by type
        union all
        select each.key, each.value::bigint from folded cross join jsonb_each_text(condensed) each
        where condensed is not null
    )
    select
        (select jsonb_object_agg(type, events) from (
            select type, sum(events)::bigint as events from counted group by type) sums) as condensed,
        (select count(*) from folded where condensed is null) as rows,
        (select min(recorded_at) from folded) as recorded_at";

/// What came of an attempt to condense.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Condensed {
    /// So many rows were folded.
    Rows(i64),
    /// There are no figures to fold them into.
    NoFigures,
    /// Another leader has begun its term.
    Succeeded,
}

/// The leader's other connections.
#[derive(Clone)]
pub(super) struct Upkeep(PgPool);

impl Upkeep {
    pub(super) fn new(options: &PgConnectOptions) -> Self {
        // One condenses while another prunes.
        let pool = PgPoolOptions::new().max_connections(3).acquire_timeout(Duration::from_secs(3));
        Self(pool.connect_lazy_with(options.clone()))
    }

    pub(super) async fn close(&self) {
        self.0.close().await;
    }

    /// Folds all rows of a tenant that wait into one `metrics_updated`, which takes their place in the outbox: if that is cut short
    /// by a crash, either all of it has happened or nothing.
    pub(super) async fn condense(&self, tenant: &TenantId, term: Term) -> sqlx::Result<Condensed> {
        patiently(async {
            let mut connection = self.0.acquire().await?;
            let mut transaction = connection.begin().await?;
            // Holds off the next leader's term until this is committed.
            let lead = sqlx::query("select from dashboard.relay where term = $1 for share");
            if lead.bind(term.0).fetch_optional(&mut *transaction).await?.is_none() {
                return Ok(Condensed::Succeeded);
            }
            // Before any row is touched: without figures there is nothing to fold into.
            if figures(snapshot::read_metrics(&mut transaction, tenant).await)?.is_none() {
                return Ok(Condensed::NoFigures);
            }
            let row = sqlx::query(FOLD).bind(tenant.as_str()).fetch_one(&mut *transaction).await?;
            let rows: i64 = row.try_get("rows")?;
            let condensed: Option<Json<_>> = row.try_get("condensed")?;
            // Read again, since rows may have become visible in between whose money must be in the figures.
            let Some(mut metrics) = figures(snapshot::read_metrics(&mut transaction, tenant).await)? else {
                return Ok(Condensed::NoFigures);
            };
            let Some(condensed) = condensed else { return Ok(Condensed::Rows(0)) };
            metrics.condensed = Some(condensed.0);
            let event = DashboardEvent::new(metrics);
            let recorded_at: OffsetDateTime = row.try_get("recorded_at")?;
            let insert = "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at, recorded_at)
                values ($1, $2, $3, $4, $5, $6)";
            sqlx::query(insert)
                .bind(event.id.as_str())
                .bind(tenant.as_str())
                .bind(DashboardEventType::MetricsUpdated.as_str())
                .bind(Json(&event.data))
                .bind(event.timestamp)
                .bind(recorded_at)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
            Ok(Condensed::Rows(rows))
        })
        .await
    }

    /// Deletes what was relayed long ago.
    pub(super) async fn prune(&self) -> sqlx::Result<()> {
        loop {
            let deleted = patiently(async { sqlx::query(PRUNE).execute(&self.0).await }).await?.rows_affected();
            if deleted < PRUNED_AT_ONCE {
                return Ok(());
            }
        }
    }

    /// How many rows wait, and the age of the oldest in seconds.
    pub(super) async fn measure(&self) -> sqlx::Result<(i64, f64)> {
        let query = "select count(*), coalesce(extract(epoch from clock_timestamp() - min(recorded_at)), 0)::float8
            from dashboard.outbox where relayed_at is null";
        patiently(async { sqlx::query_as(query).fetch_one(&self.0).await }).await
    }
}

/// Without figures that can be used nothing is condensed: rows wait their turn instead, and none is lost.
fn figures<T>(read: Result<Option<T>, SnapshotError>) -> sqlx::Result<Option<T>> {
    match read {
        Ok(figures) => Ok(figures),
        Err(error) if error.is_missing_views() => Ok(None),
        Err(SnapshotError::Database(error)) => Err(error),
        Err(error) => {
            warn!(%error, "figures can't be used, a backlog is not condensed");
            Ok(None)
        }
    }
}
