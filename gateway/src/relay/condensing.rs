//! Condensing: the rows of a tenant that has too many of them become one `metrics_updated`.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use publisher::internals::Term;
use publisher::{DashboardEvent, DashboardEventType, EventData, EventsCondensed, MAX_COUNT, MetricsUpdated, TenantId};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, PgPool, Postgres, Row, Transaction};
use tokio::task::coop::consume_budget;
use tracing::error;

use super::rows::{self, Pending, RowStatus, columns, for_a_newer_relay, known_types, moment, within_limit};
use crate::snapshots::queries;

/// A tenant's alerts are condensed only from this number on: each of them names a parent.
pub(super) const ALERTS_KEPT: usize = 500;
/// Rows that one transaction condenses at most: it holds their locks, and delays the next leader's term, for less than a second.
const CONDENSED_AT_ONCE: i64 = 5_000;

/// A leader that freezes in a condensing transaction, or whose host vanishes, must not delay the next leader's term. A row that
/// another session has locked must not hold up the other tenants' backlogs.
const CONDENSING_SETTINGS: &str =
    "set local idle_in_transaction_session_timeout = '5s'; set local statement_timeout = '9s';
    set local tcp_keepalives_idle = 3; set local tcp_keepalives_interval = 1; set local tcp_keepalives_count = 2;
    set local lock_timeout = '1s'";
/// Metrics that take longer are left out.
const METRICS_LIMIT: &str = "set local statement_timeout = '1s'";

/// Whether at least `$2` alerts of a tenant (`$1`) wait.
const MANY_ALERTS: &str = "select count(*) >= $2 from (
    select from dashboard.outbox
    where tenant_id = $1 and relayed_at is null and type = 'arrears_alert' limit $2) alerts";

/// A tenant's rows that wait, oldest first: alerts only if `$3`, and `$4` at most.
const WAITING: &str = concat!(
    "select ",
    columns!(),
    " from dashboard.outbox row
    where row.tenant_id = $2 and row.relayed_at is null and ($3 or row.type <> 'arrears_alert') and not ",
    for_a_newer_relay!(),
    " order by row.id limit $4"
);

/// The row that takes the place of condensed ones, as old as the oldest of them.
const INSERT: &str = "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at, recorded_at)
    select $1, $2, $3, $4, $5, min(recorded_at) from dashboard.outbox where id = any($6) returning id";

/// Whether condensing queries the tenant's metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetricsQuery {
    Run,
    /// A query failed a moment ago.
    Skip,
}

/// What came of an attempt to condense.
#[derive(Debug)]
pub(super) enum Condensed {
    /// This number of rows was condensed into one.
    Rows {
        rows: usize,
        into: Pending,
        /// Why its metrics are null, if they are.
        without_metrics: Option<String>,
    },
    /// No row can be condensed; this number of waiting rows was refused.
    Nothing { refused: usize },
    /// Another leader has begun its term.
    Superseded,
}

/// The rows of one transaction, added up.
#[derive(Debug, Default)]
struct Sum {
    ids: Vec<i64>,
    refused: Vec<i64>,
    events: BTreeMap<DashboardEventType, u64>,
    /// Rows that were not themselves condensed from others.
    rows: usize,
}

/// Condenses a tenant's rows that wait, at most [`CONDENSED_AT_ONCE`], into one `metrics_updated`, which takes their place in the
/// outbox. All of it is one transaction. A row that breaks a rule is refused by itself.
pub(super) async fn condense(
    pool: &PgPool,
    tenant: &TenantId,
    term: Term,
    metrics: MetricsQuery,
) -> sqlx::Result<Condensed> {
    within_limit(async {
        let mut connection = pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(CONDENSING_SETTINGS).execute(&mut *transaction).await?;
        let sum = add_up(&mut transaction, tenant).await?;
        // Delays the next leader's term from the first mark until the commit.
        let lead = sqlx::query("select from dashboard.relay where term = $1 for share");
        if lead.bind(term.0).fetch_optional(&mut *transaction).await?.is_none() {
            return Ok(Condensed::Superseded);
        }
        for (status, ids) in [(RowStatus::Condensed, &sum.ids), (RowStatus::Refused, &sum.refused)] {
            let mark = "update dashboard.outbox set relayed_at = clock_timestamp(), fate = $2 where id = any($1)";
            sqlx::query(mark).bind(ids).bind(status.as_str()).execute(&mut *transaction).await?;
        }
        if sum.ids.is_empty() {
            transaction.commit().await?;
            return Ok(Condensed::Nothing { refused: sum.refused.len() });
        }
        // Queried after the rows were read, so that the metrics have the money of each of them.
        let metrics = match metrics {
            MetricsQuery::Run => read_metrics(&mut transaction, tenant).await?,
            MetricsQuery::Skip => Err("there were none a moment ago".to_owned()),
        };
        let (event, without_metrics) = condensed_event(sum.events, metrics);
        let id = sqlx::query_scalar(INSERT)
            .bind(event.id.as_str())
            .bind(tenant.as_str())
            .bind(event.event_type().as_str())
            .bind(Json(&event.data))
            .bind(event.timestamp)
            .bind(&sum.ids)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Condensed::Rows { rows: sum.rows, into: Pending { id, event: Some(event) }, without_metrics })
    })
    .await
}

/// Reads the rows that can be condensed, and adds up their events. A row that was condensed counts for the events in it.
async fn add_up(transaction: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<Sum> {
    let many_alerts = sqlx::query_scalar(MANY_ALERTS).bind(tenant.as_str()).bind(ALERTS_KEPT as i64);
    let with_alerts: bool = many_alerts.fetch_one(&mut *transaction).await?;
    let mut rows = sqlx::query(WAITING)
        .bind(known_types())
        .bind(tenant.as_str())
        .bind(with_alerts)
        .bind(CONDENSED_AT_ONCE)
        .fetch(transaction);
    let mut sum = Sum::default();
    // Row by row: all of them together can be large.
    while let Some(row) = rows.try_next().await? {
        // Parsing thousands of rows must leave the processor to other tasks now and then.
        consume_budget().await;
        let id = row.try_get("id")?;
        match rows::event(&row)? {
            Ok(event) => sum.add(id, &event),
            Err(error) => {
                if sum.refused.is_empty() {
                    error!(row = id, %tenant, %error, "outbox row refused: it breaks a rule, and perhaps more rows of the tenant");
                }
                sum.refused.push(id);
            }
        }
    }
    Ok(sum)
}

impl Sum {
    fn add(&mut self, id: i64, event: &DashboardEvent) {
        self.ids.push(id);
        let mut add = |kind, events: u64| {
            let sum = self.events.entry(kind).or_default();
            *sum = sum.saturating_add(events).min(MAX_COUNT);
        };
        let condensed = match &event.data {
            EventData::MetricsUpdated(MetricsUpdated { condensed, .. }) => condensed.as_ref(),
            EventData::EventsCondensed(EventsCondensed { condensed, .. }) => Some(condensed),
            _ => None,
        };
        match condensed {
            Some(condensed) => condensed.iter().for_each(|(kind, events)| add(*kind, *events)),
            None => {
                add(event.event_type(), 1);
                self.rows += 1;
            }
        }
    }
}

/// The tenant's metrics, or why there are none: the view doesn't know the tenant, is missing, fails, or is slow. The rows are condensed
/// all the same.
async fn read_metrics(
    transaction: &mut Transaction<'_, Postgres>,
    tenant: &TenantId,
) -> sqlx::Result<Result<MetricsUpdated, String>> {
    // A savepoint: a failure in it doesn't fail the transaction, and its setting ends with it.
    let mut attempt = transaction.begin().await?;
    sqlx::raw_sql(METRICS_LIMIT).execute(&mut *attempt).await?;
    let read = queries::read_metrics(&mut attempt, tenant).await;
    attempt.rollback().await?;
    let unknown = || "dashboard.metrics has no row of the tenant".to_owned();
    Ok(read.map_err(|error| error.to_string()).and_then(|metrics| metrics.ok_or_else(unknown)))
}

/// The event that stands for condensed events, and why it has no metrics, if it has none.
fn condensed_event(
    events: BTreeMap<DashboardEventType, u64>,
    metrics: Result<MetricsUpdated, String>,
) -> (DashboardEvent, Option<String>) {
    let with_metrics = metrics.and_then(|metrics| {
        let event = DashboardEvent::new(MetricsUpdated { condensed: Some(events.clone()), ..metrics });
        // Metrics with a great many statuses can be larger than an event.
        event.validate().map(|()| event).map_err(|error| error.to_string())
    });
    match with_metrics {
        Ok(event) => (event, None),
        Err(reason) => (DashboardEvent::new(EventsCondensed::new(events)), Some(reason)),
    }
}
