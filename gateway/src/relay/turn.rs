//! A turn of the leader on its session: marks the rows that are done, and fetches the rows that wait.

use std::collections::HashSet;
use std::time::Duration;

use publisher::TenantId;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::rows::{Pending, RowStatus, columns, for_a_newer_relay, known_types, moment, pending, tenant, within_limit};

/// Tenants of one turn, so that a turn stays short.
const MAX_TENANTS: i64 = 1000;
/// Rows of one answer to [`PUBLISHED`], so that memory is bounded.
const MAX_PUBLISHED: i64 = 20_000;

/// The first rows of each tenant that waits and isn't busy, oldest first, and how many wait (up to `$5`). At most `$4` tenants,
/// beginning after `$3`; a tenant whose rows all wait for a newer relay has one line without a row.
///
/// A row that waits is one without a mark. A cursor over ids would skip a row that commits late, since ids are taken before the commit.
/// The tenants are found by hopping along the index, one step for each, however many rows they have.
const FETCH: &str = concat!(
    "with recursive waiting as (
        (select tenant_id from dashboard.outbox where relayed_at is null and tenant_id > $3 order by tenant_id limit 1)
        union all
        select (select next.tenant_id from dashboard.outbox next
                where next.relayed_at is null and next.tenant_id > waiting.tenant_id order by next.tenant_id limit 1)
        from waiting where waiting.tenant_id is not null
    ), idle as (
        select tenant_id from waiting
        where tenant_id is not null and tenant_id <> all($2::text[]) limit $4
    )
    select idle.tenant_id, backlog.rows as backlog, backlog.alerts, first.*
    from idle
    cross join lateral (
        select count(*) as rows, count(*) filter (where type = 'arrears_alert') as alerts from (
            select row.type from dashboard.outbox row
            where row.tenant_id = idle.tenant_id and row.relayed_at is null and not ",
    for_a_newer_relay!(),
    " limit $5) counted
    ) backlog
    left join lateral (
        select ",
    columns!(),
    " from dashboard.outbox row
        where row.tenant_id = idle.tenant_id and row.relayed_at is null and not ",
    for_a_newer_relay!(),
    " order by row.id limit $6
    ) first on true
    order by idle.tenant_id, first.id"
);

/// The rows that were published in the last `$1` seconds, the newest `$2` of them, in the order of [`FETCH`].
const PUBLISHED: &str = concat!(
    "select newest.tenant_id, ",
    columns!(),
    " from (
        select id, tenant_id from dashboard.outbox
        where relayed_at > clock_timestamp() - make_interval(secs => $1) and fate = 'published'
        order by relayed_at desc limit $2
    ) newest
    join dashboard.outbox row on row.id = newest.id
    order by newest.tenant_id, row.id"
);

/// Marks rows (`$1`) with their status (`$2`), and returns the rows that other sessions have locked. Waiting for a locked row would
/// hold up every tenant.
const MARK: &str = "with marked as (
        update dashboard.outbox set relayed_at = clock_timestamp(), fate = $2
        where id in (select id from dashboard.outbox where id = any($1) for no key update skip locked)
        returning id
    )
    select id from dashboard.outbox where id = any($1) and id not in (select id from marked)";

/// A row that is done: it is to be marked in the outbox.
#[derive(Debug)]
pub(super) struct Done {
    pub tenant: TenantId,
    pub id: i64,
    pub status: RowStatus,
}

/// A tenant's oldest rows.
#[derive(Debug)]
pub(super) struct Batch {
    pub tenant: TenantId,
    pub rows: Vec<Pending>,
    /// How many rows wait, these included; at most [`Portion::count`].
    pub backlog: usize,
    /// How many rows of the backlog are `arrears_alert`.
    pub alerts: usize,
}

/// What one fetch brings at most.
#[derive(Debug, Clone)]
pub(super) struct Portion {
    /// Rows of a tenant.
    pub rows: usize,
    /// Rows of a tenant that are counted.
    pub count: usize,
    /// The fetch begins with the tenant after this one; with the first when empty.
    pub after: String,
}

/// What one turn brings.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    pub batches: Vec<Batch>,
    /// Done rows that could not be marked, since other sessions have locked them. Nothing was fetched for their tenants.
    pub locked: Vec<Done>,
    /// More tenants may wait after this one; none when empty.
    pub after: String,
    /// The rows of [`Turn::published_within`], by tenant.
    pub published: Vec<(TenantId, Vec<Pending>)>,
}

/// What a turn does.
#[derive(Debug)]
pub(super) struct Turn {
    /// Rows to mark.
    pub done: Vec<Done>,
    /// Tenants for which nothing is fetched.
    pub busy: Vec<String>,
    pub portion: Portion,
    /// Also fetch the rows that were published within this time.
    pub published_within: Option<Duration>,
}

impl Turn {
    /// Takes the turn.
    pub async fn take(self, connection: &mut PgConnection) -> sqlx::Result<Fetched> {
        let Self { done, mut busy, portion, published_within } = self;
        within_limit(async {
            let locked = mark(connection, done).await?;
            busy.extend(locked.iter().map(|done| done.tenant.as_str().to_owned()));
            let rows = sqlx::query(FETCH)
                .bind(known_types())
                .bind(busy)
                .bind(&portion.after)
                .bind(MAX_TENANTS)
                .bind(portion.count as i64)
                .bind(portion.rows as i64)
                .fetch_all(&mut *connection)
                .await?;
            let mut fetched = fetched(rows)?;
            fetched.locked = locked;
            if let Some(within) = published_within {
                let published = sqlx::query(PUBLISHED).bind(within.as_secs_f64()).bind(MAX_PUBLISHED);
                fetched.published = by_tenant(published.fetch_all(connection).await?)?;
            }
            Ok(fetched)
        })
        .await
    }
}

/// Marks rows as done; returns the rows that other sessions have locked.
pub(super) async fn mark(connection: &mut PgConnection, mut done: Vec<Done>) -> sqlx::Result<Vec<Done>> {
    let mut locked = HashSet::new();
    for status in [RowStatus::Published, RowStatus::Refused] {
        let ids: Vec<_> = done.iter().filter(|done| done.status == status).map(|done| done.id).collect();
        if !ids.is_empty() {
            let mark = sqlx::query_scalar::<_, i64>(MARK).bind(ids).bind(status.as_str());
            locked.extend(mark.fetch_all(&mut *connection).await?);
        }
    }
    done.retain(|done| locked.contains(&done.id));
    Ok(done)
}

fn fetched(rows: Vec<PgRow>) -> sqlx::Result<Fetched> {
    let (mut fetched, mut tenants) = (Fetched::default(), 0);
    for row in rows {
        let tenant = tenant(&row)?;
        if fetched.after != tenant.as_str() {
            tenants += 1;
            fetched.after = tenant.as_str().to_owned();
        }
        let Some(pending) = pending(&row)? else { continue };
        match fetched.batches.last_mut() {
            Some(batch) if batch.tenant == tenant => batch.rows.push(pending),
            _ => fetched.batches.push(Batch {
                tenant,
                rows: vec![pending],
                backlog: row.try_get::<i64, _>("backlog")?.unsigned_abs() as usize,
                alerts: row.try_get::<i64, _>("alerts")?.unsigned_abs() as usize,
            }),
        }
    }
    if tenants < MAX_TENANTS {
        fetched.after.clear();
    }
    Ok(fetched)
}

fn by_tenant(rows: Vec<PgRow>) -> sqlx::Result<Vec<(TenantId, Vec<Pending>)>> {
    let mut tenants: Vec<(TenantId, Vec<Pending>)> = Vec::new();
    for row in rows {
        let (tenant, Some(pending)) = (tenant(&row)?, pending(&row)?) else { continue };
        match tenants.last_mut() {
            Some((last, rows)) if *last == tenant => rows.push(pending),
            _ => tenants.push((tenant, vec![pending])),
        }
    }
    Ok(tenants)
}
