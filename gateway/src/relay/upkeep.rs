//! The leader's work beside its turns, on connections of its own: condensing floods, pruning, measuring.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt;
use publisher::internals::Term;
use publisher::{DashboardEvent, DashboardEventType, EventData, EventsCondensed, MAX_COUNT, MetricsUpdated, TenantId};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, PgPool, Postgres, Row, Transaction};
use tokio::task::coop::consume_budget;
use tracing::error;

use super::rows::{self, Fate, Pending, columns, for_a_newer_relay, known_types, moment, patiently};
use crate::snapshots::queries;

/// Fewer alerts of a tenant than this are never condensed: each of them names a parent.
pub(super) const ALERTS_KEPT: i64 = 500;
/// Tenants that are condensed at once.
pub(super) const CONDENSED_TOGETHER: usize = 2;
/// A leader that freezes in a condensing transaction, or whose host vanishes, must not hold off the next leader's term. A row that
/// another session has locked must not hold up the other tenants' backlogs.
const CONDENSING_SETTINGS: &str =
    "set local idle_in_transaction_session_timeout = '5s'; set local statement_timeout = '9s';
    set local tcp_keepalives_idle = 3; set local tcp_keepalives_interval = 1; set local tcp_keepalives_count = 2;
    set local lock_timeout = '1s'";
/// Figures that take longer are gone without.
const FIGURES_LIMIT: &str = "set local statement_timeout = '1s'";

/// Relayed rows are kept for as long as their publish-once marks, to answer what became of an event.
const PRUNE: &str = "delete from dashboard.outbox where id in (
    select id from dashboard.outbox where relayed_at < now() - interval '24 hours' order by relayed_at limit 5000)";
/// Rows that one statement of [`PRUNE`] deletes at most: more would be felt.
const PRUNED_AT_ONCE: u64 = 5000;

/// Whether enough alerts of a tenant (`$2`) wait that they may be condensed.
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
/// Rows that one transaction condenses at most: it holds their locks, and the next leader's term, for less than a second.
const CONDENSED_AT_ONCE: i64 = 5_000;

/// The row that takes the place of condensed ones, as old as the oldest of them.
const INSERT: &str = "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at, recorded_at)
    select $1, $2, $3, $4, $5, min(recorded_at) from dashboard.outbox where id = any($6) returning id";

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

/// Whether a tenant's figures are worth a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figures {
    Ask,
    /// There were none a moment ago.
    Null,
}

/// What came of an attempt to condense.
#[derive(Debug)]
pub(super) enum Condensed {
    /// So many rows were condensed into one.
    Rows {
        rows: usize,
        into: Pending,
        /// Why its figures are null, if they are.
        without_figures: Option<String>,
    },
    /// No row can be condensed; this number of waiting rows was refused.
    Nothing { refused: usize },
    /// Another leader has begun its term.
    Superseded,
}

/// What the relay shows of its backlog.
#[derive(Debug)]
pub(super) struct Backlog {
    pub rows: i64,
    pub lag_seconds: f64,
    /// Rows that wait for a newer relay, and the type of one of them.
    pub for_a_newer_relay: i64,
    pub newer_type: String,
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

/// The leader's other connections.
#[derive(Clone)]
pub(super) struct Upkeep(PgPool);

impl Upkeep {
    pub(super) fn new(options: &PgConnectOptions) -> Self {
        // One more prunes, and one measures.
        let pool =
            PgPoolOptions::new().max_connections(CONDENSED_TOGETHER as u32 + 2).acquire_timeout(Duration::from_secs(3));
        Self(pool.connect_lazy_with(options.clone()))
    }

    pub(super) async fn close(&self) {
        self.0.close().await;
    }

    /// Condenses the rows of a tenant that wait, or the oldest of very many, into one `metrics_updated`, which takes their place in
    /// the outbox: a crash leaves either all of it done or nothing. A row that breaks a rule is refused by itself.
    pub(super) async fn condense(&self, tenant: &TenantId, term: Term, figures: Figures) -> sqlx::Result<Condensed> {
        patiently(async {
            let mut connection = self.0.acquire().await?;
            let mut transaction = connection.begin().await?;
            sqlx::raw_sql(CONDENSING_SETTINGS).execute(&mut *transaction).await?;
            let sum = add_up(&mut transaction, tenant).await?;
            // Holds off the next leader's term from the first mark until the commit.
            let lead = sqlx::query("select from dashboard.relay where term = $1 for share");
            if lead.bind(term.0).fetch_optional(&mut *transaction).await?.is_none() {
                return Ok(Condensed::Superseded);
            }
            for (fate, ids) in [(Fate::Condensed, &sum.ids), (Fate::Refused, &sum.refused)] {
                let mark = "update dashboard.outbox set relayed_at = clock_timestamp(), fate = $2 where id = any($1)";
                sqlx::query(mark).bind(ids).bind(fate.as_str()).execute(&mut *transaction).await?;
            }
            if sum.ids.is_empty() {
                transaction.commit().await?;
                return Ok(Condensed::Nothing { refused: sum.refused.len() });
            }
            // Read after the rows: the money of each of them is in the figures.
            let figures = match figures {
                Figures::Ask => read_figures(&mut transaction, tenant).await?,
                Figures::Null => Err("there were none a moment ago".to_owned()),
            };
            let (event, without_figures) = event(sum.events, figures);
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
            Ok(Condensed::Rows { rows: sum.rows, into: Pending { id, event: Some(event) }, without_figures })
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

    /// Counts the rows that wait.
    pub(super) async fn measure(&self) -> sqlx::Result<Backlog> {
        let row = patiently(async { sqlx::query(MEASURE).bind(known_types()).fetch_one(&self.0).await }).await?;
        Ok(Backlog {
            rows: row.try_get(0)?,
            lag_seconds: row.try_get(1)?,
            for_a_newer_relay: row.try_get(2)?,
            newer_type: row.try_get(3)?,
        })
    }
}

/// Reads the rows that can be condensed, and adds up their events. Condensed figures count for what was condensed into them.
async fn add_up(transaction: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<Sum> {
    let alerts: bool =
        sqlx::query_scalar(MANY_ALERTS).bind(tenant.as_str()).bind(ALERTS_KEPT).fetch_one(&mut *transaction).await?;
    let mut rows = sqlx::query(WAITING)
        .bind(known_types())
        .bind(tenant.as_str())
        .bind(alerts)
        .bind(CONDENSED_AT_ONCE)
        .fetch(transaction);
    let mut sum = Sum::default();
    // Row by row: ten thousand large ones together would not be small.
    while let Some(row) = rows.try_next().await? {
        // Parsing is work for the processor, which others wait for as well.
        consume_budget().await;
        let id = row.try_get("id")?;
        match rows::event(&row)? {
            Ok(event) => sum.add(id, &event),
            Err(error) => {
                if sum.refused.is_empty() {
                    error!(row = id, %tenant, %error, "a row of the outbox breaks a rule and is passed over, and perhaps more");
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

/// The tenant's figures, or why there are none: the view doesn't know the tenant, is missing, fails, or takes its time. That is this
/// tenant's trouble alone, and its rows are condensed all the same.
async fn read_figures(
    transaction: &mut Transaction<'_, Postgres>,
    tenant: &TenantId,
) -> sqlx::Result<Result<MetricsUpdated, String>> {
    // A savepoint: what fails in it doesn't fail the rest, and its setting ends with it.
    let mut attempt = transaction.begin().await?;
    sqlx::raw_sql(FIGURES_LIMIT).execute(&mut *attempt).await?;
    let read = queries::read_metrics(&mut attempt, tenant).await;
    attempt.rollback().await?;
    let unknown = || "dashboard.metrics has no row of the tenant".to_owned();
    Ok(read.map_err(|error| error.to_string()).and_then(|figures| figures.ok_or_else(unknown)))
}

/// The event that stands for these, and why it has no figures.
fn event(
    events: BTreeMap<DashboardEventType, u64>,
    figures: Result<MetricsUpdated, String>,
) -> (DashboardEvent, Option<String>) {
    let with_figures = figures.and_then(|figures| {
        let event = DashboardEvent::new(MetricsUpdated { condensed: Some(events.clone()), ..figures });
        // Figures of a great many statuses can be larger than an event.
        event.validate().map(|()| event).map_err(|error| error.to_string())
    });
    match with_figures {
        Ok(event) => (event, None),
        Err(reason) => (DashboardEvent::new(EventsCondensed::new(events)), Some(reason)),
    }
}
