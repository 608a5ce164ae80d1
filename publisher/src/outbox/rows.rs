//! The outbox in SQL, as the leader sees it: one session that holds the lock, marks what is done and fetches what waits.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row, postgres::PgConnectOptions, postgres::PgRow};
use time::OffsetDateTime;
use tokio::time::timeout;
use tracing::error;

use super::Term;
use crate::{
    error::InvalidEvent,
    event::{DashboardEvent, EventData},
    tenant::TenantId,
};

/// No answer of the database is waited for longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The lock that makes a session the leader; one number for each database. "crecheRE" in ASCII.
const LOCK: i64 = 0x6372_6563_6865_5245;
/// Tenants taken up in one turn, so that a turn stays short.
const MAX_TENANTS: i64 = 1000;

/// What the lock costs its holder when it sleeps: the session ends after five seconds without a word from it, and with the
/// session the lock. A host that vanishes is noticed as fast. Marks need not survive a crash of the database: one that is lost
/// means that its event is published again, which Redis knows as a duplicate.
const SETTINGS: &str = "set idle_session_timeout = '5s'; set idle_in_transaction_session_timeout = '5s';
    set tcp_keepalives_idle = 3; set tcp_keepalives_interval = 1; set tcp_keepalives_count = 2;
    set statement_timeout = '9s'; set synchronous_commit = off";

/// The first rows of each tenant that waits and isn't busy, oldest first, and how many wait (up to a limit).
///
/// Found by the absence of the done mark: ids are taken before commit, and a cursor over them would skip who commits late. The
/// tenants come from hopping along the index, one step for each, however many rows they have.
const FETCH: &str = "
    with recursive waiting as (
        (select tenant_id from dashboard.outbox where relayed_at is null order by tenant_id limit 1)
        union all
        select (select next.tenant_id from dashboard.outbox next
                where next.relayed_at is null and next.tenant_id > waiting.tenant_id order by next.tenant_id limit 1)
        from waiting where waiting.tenant_id is not null
    ), idle as (
        select tenant_id from waiting
        where tenant_id is not null and tenant_id not in (select unnest($1::text[])) limit $2
    )
    select idle.tenant_id, backlog.rows as backlog, first.*
    from idle
    cross join lateral (
        select count(*) as rows from (
            select from dashboard.outbox row
            where row.tenant_id = idle.tenant_id and row.relayed_at is null limit $3) counted
    ) backlog
    cross join lateral (
        select row.id, row.event_id, row.type, row.data::text as data, row.happened_at from dashboard.outbox row
        where row.tenant_id = idle.tenant_id and row.relayed_at is null order by row.id limit $4
    ) first
    order by idle.tenant_id, first.id";

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Published,
    Refused,
}

impl Fate {
    fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Refused => "refused",
        }
    }
}

/// A row of the outbox; one that breaks a rule (written past `dashboard.emit`) has no event.
#[derive(Debug)]
pub(super) struct Pending {
    pub id: i64,
    pub event: Option<DashboardEvent>,
}

/// A tenant's oldest rows.
#[derive(Debug)]
pub(super) struct Batch {
    pub tenant: TenantId,
    pub rows: Vec<Pending>,
    /// How many wait, these included; no more are counted than asked for.
    pub backlog: usize,
}

/// What one fetch brings at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Portion {
    pub rows: usize,
    pub count: usize,
}

/// The session that the leader's lock belongs to. It ends when this is dropped.
pub(super) struct Session(PgConnection);

impl Session {
    pub(super) async fn open(options: &PgConnectOptions) -> sqlx::Result<Self> {
        patiently(async {
            let mut connection = PgConnection::connect_with(options).await?;
            sqlx::raw_sql(SETTINGS).execute(&mut connection).await?;
            Ok(Self(connection))
        })
        .await
    }

    /// Becomes the leader, unless another is: with a term later than all before, and than `seen`.
    pub(super) async fn lead(&mut self, seen: Term) -> sqlx::Result<Option<Term>> {
        patiently(async {
            let locked: bool =
                sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(LOCK).fetch_one(&mut self.0).await?;
            if !locked {
                return Ok(None);
            }
            let begin = "update dashboard.relay set term = greatest(term, $1) + 1, since = now() returning term";
            let term = sqlx::query_scalar(begin).bind(seen.0).fetch_one(&mut self.0).await?;
            Ok(Some(Term(term)))
        })
        .await
    }

    /// Marks rows as done, and fetches for tenants that aren't busy.
    pub(super) async fn turn(
        &mut self,
        done: &[(i64, Fate)],
        busy: &[String],
        portion: Portion,
    ) -> sqlx::Result<Vec<Batch>> {
        patiently(async {
            self.mark(done).await?;
            let rows = sqlx::query(FETCH)
                .bind(busy)
                .bind(MAX_TENANTS)
                .bind(portion.count as i64)
                .bind(portion.rows as i64)
                .fetch_all(&mut self.0)
                .await?;
            batches(rows)
        })
        .await
    }

    async fn mark(&mut self, done: &[(i64, Fate)]) -> sqlx::Result<()> {
        for fate in [Fate::Published, Fate::Refused] {
            let ids: Vec<_> = done.iter().filter(|(_, of)| *of == fate).map(|(id, _)| *id).collect();
            if !ids.is_empty() {
                let mark = "update dashboard.outbox set relayed_at = clock_timestamp(), fate = $2 where id = any($1)";
                sqlx::query(mark).bind(ids).bind(fate.as_str()).execute(&mut self.0).await?;
            }
        }
        Ok(())
    }

    /// Marks what is done and ends the session, and with it the lock. What can't be marked is published again by the next leader,
    /// as a duplicate.
    pub(super) async fn mark_and_close(mut self, done: &[(i64, Fate)]) {
        let _ = self.mark(done).await;
        let _ = self.0.close().await;
    }
}

fn batches(rows: Vec<PgRow>) -> sqlx::Result<Vec<Batch>> {
    let mut batches: Vec<Batch> = Vec::new();
    for row in rows {
        let pending = Pending { id: row.try_get("id")?, event: event(&row)? };
        let tenant: &str = row.try_get("tenant_id")?;
        match batches.last_mut() {
            Some(batch) if batch.tenant.as_str() == tenant => batch.rows.push(pending),
            _ => batches.push(Batch {
                // The table's rule is the type's.
                tenant: TenantId::try_from(tenant.to_owned()).map_err(|error| sqlx::Error::Decode(error.into()))?,
                rows: vec![pending],
                backlog: row.try_get::<i64, _>("backlog")?.unsigned_abs() as usize,
            }),
        }
    }
    Ok(batches)
}

fn event(row: &PgRow) -> sqlx::Result<Option<DashboardEvent>> {
    let (id, kind, data): (&str, &str, &str) = (row.try_get("event_id")?, row.try_get("type")?, row.try_get("data")?);
    let timestamp: OffsetDateTime = row.try_get("happened_at")?;
    let parsed = || {
        let id = id.parse().map_err(|rule| InvalidEvent::new("id", format!("{rule}")))?;
        let kind = kind.parse().map_err(|rule| InvalidEvent::new("type", format!("{rule}")))?;
        let event = DashboardEvent { id, timestamp, data: EventData::from_json(kind, data)? };
        event.validate()?;
        Ok::<_, InvalidEvent>(event)
    };
    let row: i64 = row.try_get("id")?;
    Ok(parsed().inspect_err(|error| error!(row, %error, "a row of the outbox breaks a rule and is passed over")).ok())
}

/// A frozen database must not freeze the relay: after a while it is given up.
pub(super) async fn patiently<T>(work: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let late = || sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer from the database"));
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(late()))
}
