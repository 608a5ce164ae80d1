//! The outbox in SQL, as the leader sees it: one session that holds the lock, marks what is done and fetches what waits.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use publisher::internals::Term;
use publisher::{DashboardEvent, DashboardEventType, EventData, InvalidEvent, MAX_EVENT_BYTES, TenantId};
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{Connection, PgConnection, Row};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};
use tracing::{error, warn};

/// No answer of the database is waited for longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The lock that makes a session the leader, until a thief makes the relays change to another. "crecheRE" in ASCII.
const FIRST_LOCK: i64 = 0x6372_6563_6865_5245;
/// Between two looks at who holds the lock. The server's view of its locks is not for free.
const LOOK_AT_HOLDER: Duration = Duration::from_secs(1);
/// Tenants taken up in one turn, so that a turn stays short.
const MAX_TENANTS: i64 = 1000;

/// The price of the lock: the session of a holder that sleeps ends after five seconds without a word, and the lock with it. A host
/// that vanishes is noticed as fast. Marks need not survive a crash of the database: an event whose mark is lost is published again,
/// and Redis knows it as a duplicate.
const SETTINGS: &str = "set idle_session_timeout = '5s'; set idle_in_transaction_session_timeout = '5s';
    set tcp_keepalives_idle = 3; set tcp_keepalives_interval = 1; set tcp_keepalives_count = 2;
    set statement_timeout = '9s'; set synchronous_commit = off";

/// How often two connections compare their sessions. A pooler by transaction that lends the newest free session gives ours to the
/// other, unless a third client is faster; it would have to be every time. A pooler that lends its sessions by turns gives us two of
/// them, since we ask twice before the other asks.
const COMPARISONS: usize = 5;

/// Types of events that this relay knows: `$1` of every statement with [`for_a_newer_relay`].
pub(super) fn known_types() -> Vec<&'static str> {
    DashboardEventType::ALL.iter().map(|known| known.as_str()).collect()
}

/// A moment that RFC 3339 can write. PostgreSQL knows infinity and the year 294276 as well, and decoding them would panic.
macro_rules! moment {
    ($column:literal) => {
        concat!("(", $column, " between '0002-01-01 00:00Z' and '9998-12-31 00:00Z')")
    };
}

/// The condition of rows that wait for a newer relay: their type, or a type that was condensed into them, is not among `$1`. A row
/// that breaks a rule besides is refused at once, for no relay can publish it. The rule of types is [`MessageType`]'s.
///
/// [`MessageType`]: publisher::internals::MessageType
macro_rules! for_a_newer_relay {
    () => {
        concat!(
            "((case
                when row.type = any($1::text[]) then
                    case when row.type = 'metrics_updated' and jsonb_typeof(row.data -> 'condensed') = 'object'
                        then (row.data -> 'condensed') - $1::text[] <> '{}' end
                else row.type ~ '^[A-Za-z0-9_.:-]{1,64}$' and row.event_id ~ '^[A-Za-z0-9_-]{1,64}$' and row.event_id <> '-'
                    and jsonb_typeof(row.data) = 'object' and ",
            moment!("row.happened_at"),
            " end) is true)"
        )
    };
}

/// The columns that [`event`] reads. Null stands for a value that breaks a rule and would harm its reader.
macro_rules! columns {
    () => {
        concat!(
            "row.id, row.event_id, row.type,
            case when pg_column_size(row.data) <= 65536 then row.data::text end as data,
            case when ",
            moment!("row.happened_at"),
            " and ",
            moment!("row.recorded_at"),
            " then row.happened_at end as happened_at"
        )
    };
}

pub(super) use {columns, for_a_newer_relay, moment};

/// The first rows of each tenant that waits and isn't busy, oldest first, and how many wait (up to a limit). At most `$4` tenants,
/// beginning after `$3`; a tenant whose rows all wait for a newer relay has one line without a row.
///
/// Found by the absence of the done mark: ids are taken before commit, and a cursor over them would skip a late commit. The
/// tenants come from hopping along the index, one step for each, however many rows they have.
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

/// The lock that counts, in a statement that reads `dashboard.relay relay`. Written so that it also works before migration 0004; then it
/// is always `$1`, [`FIRST_LOCK`].
macro_rules! lock {
    () => {
        "coalesce((to_jsonb(relay) ->> 'lock_key')::bigint, $1)"
    };
}

/// Takes the lock that counts, unless another session has it.
const TRY_LOCK: &str = concat!(
    "select lock, pg_try_advisory_lock(lock) from (select ",
    lock!(),
    " as lock from dashboard.relay relay offset 0) relay"
);

/// Begins a term later than all before and than `$2`, unless the lock that counts is no longer `$3`.
const BEGIN_TERM: &str = concat!(
    "update dashboard.relay relay set term = greatest(term, $2) + 1, since = now() where ",
    lock!(),
    " = $3 returning term"
);

/// The same, and from then on the lock `$4` counts.
const BEGIN_TERM_WITH_LOCK: &str = concat!(
    "update dashboard.relay relay set term = greatest(term, $2) + 1, since = now(), lock_key = $4 where ",
    lock!(),
    " = $3 returning term"
);

/// The logins that hold the lock `$1`, and whether each may lead: by a right of its own, or of a role that it may become. A lock that no
/// session holds, but a prepared transaction, has no login.
const HOLDERS: &str = "select holder.usename::text, exists (
        select from pg_roles role
        where pg_has_role(holder.usesysid, role.oid, 'MEMBER') and has_any_column_privilege(role.oid, 'dashboard.relay', 'UPDATE')
    )
    from pg_locks held left join pg_stat_activity holder using (pid)
    where held.locktype = 'advisory' and held.granted and held.objsubid = 1
        and held.database = (select oid from pg_database where datname = current_database())
        and held.classid::bigint = ($1 >> 32) & 4294967295 and held.objid::bigint = $1 & 4294967295";

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
/// Marks rows (`$1`) with their fate (`$2`), and returns those that other sessions have locked: waiting for one of them would hold up
/// every tenant.
const MARK: &str = "with marked as (
        update dashboard.outbox set relayed_at = clock_timestamp(), fate = $2
        where id in (select id from dashboard.outbox where id = any($1) for no key update skip locked)
        returning id
    )
    select id from dashboard.outbox where id = any($1) and id not in (select id from marked)";

/// Rows that [`PUBLISHED`] brings at most, so that memory is bounded.
const MAX_PUBLISHED: i64 = 20_000;

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Published,
    Condensed,
    Refused,
}

impl Fate {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Condensed => "condensed",
            Self::Refused => "refused",
        }
    }
}

/// What became of a row, to be marked in the outbox.
#[derive(Debug)]
pub(super) struct Done {
    pub tenant: TenantId,
    pub id: i64,
    pub fate: Fate,
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
    /// How many of the backlog are `arrears_alert`.
    pub alerts: usize,
}

/// What one fetch brings at most.
#[derive(Debug, Clone)]
pub(super) struct Portion {
    pub rows: usize,
    pub count: usize,
    /// Tenants up to this one had their turn; none when empty.
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
    /// Rows that were published lately, by tenant, when they were asked for.
    pub published: Vec<(TenantId, Vec<Pending>)>,
}

/// Why no session was opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSession {
    #[error(
        "{0} is a pooler that pools by transaction, and the relay's lock and settings belong to a session: give DATABASE_URL a \
         direct connection to PostgreSQL, or set pool_mode=session (PgBouncer's words) there"
    )]
    Pooled(String),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// The session that the leader's lock belongs to. It ends when this is dropped.
pub(super) struct Session {
    connection: PgConnection,
    /// When it last looked at who holds the lock.
    looked: Option<Instant>,
}

impl Session {
    /// Opens a session, and leaves no trace on one that a pooler lends.
    pub(super) async fn open(options: &PgConnectOptions) -> Result<Self, NoSession> {
        let opened = patiently(async {
            let mut connection = PgConnection::connect_with(options).await?;
            let pooled = is_pooled_by_transaction(&mut connection, options).await?;
            if !pooled {
                sqlx::raw_sql(SETTINGS).execute(&mut connection).await?;
            }
            Ok((connection, pooled))
        });
        match opened.await? {
            (_, true) => Err(NoSession::Pooled(format!("{}:{}", options.get_host(), options.get_port()))),
            (connection, false) => Ok(Self { connection, looked: None }),
        }
    }

    /// Becomes the leader, unless another is: with a term later than all before, and than `seen`.
    ///
    /// Every login may take an advisory lock. One that holds ours and has no right to lead is no leader: another lock takes the place of
    /// the stolen one, and only a login with UPDATE on `dashboard.relay` can say so.
    pub(super) async fn lead(&mut self, seen: Term) -> sqlx::Result<Option<Term>> {
        patiently(async {
            let tried = sqlx::query_as(TRY_LOCK).bind(FIRST_LOCK).fetch_one(&mut self.connection);
            let (lock, locked): (i64, bool) = tried.await?;
            if locked {
                return self.begin_term(seen, lock, lock).await;
            }
            if !self.is_stolen(lock).await? {
                return Ok(None);
            }
            let other = rand::random();
            match try_lock(&mut self.connection, other).await? {
                true => self.begin_term(seen, lock, other).await,
                false => Ok(None),
            }
        })
        .await
    }

    /// Begins a term with the lock `held`, if `counts` is still the lock that counts; else gives `held` back.
    async fn begin_term(&mut self, seen: Term, counts: i64, held: i64) -> sqlx::Result<Option<Term>> {
        // A term that a crash of the database takes back would be given out twice.
        let mut transaction = self.connection.begin().await?;
        sqlx::raw_sql("set local synchronous_commit = on").execute(&mut *transaction).await?;
        let begin = if counts == held {
            sqlx::query_scalar(BEGIN_TERM).bind(FIRST_LOCK).bind(seen.0).bind(counts)
        } else {
            sqlx::query_scalar(BEGIN_TERM_WITH_LOCK).bind(FIRST_LOCK).bind(seen.0).bind(counts).bind(held)
        };
        let term: Option<i64> = begin.fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        if term.is_none() {
            sqlx::query("select pg_advisory_unlock($1)").bind(held).execute(&mut self.connection).await?;
        }
        Ok(term.map(Term))
    }

    /// Whether none of those that hold the lock may lead.
    async fn is_stolen(&mut self, lock: i64) -> sqlx::Result<bool> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_AT_HOLDER) {
            return Ok(false);
        }
        self.looked = Some(Instant::now());
        let holders: Vec<(Option<String>, bool)> =
            sqlx::query_as(HOLDERS).bind(lock).fetch_all(&mut self.connection).await?;
        let stolen = !holders.is_empty() && holders.iter().all(|(_, may_lead)| !may_lead);
        if stolen {
            let login = holders.into_iter().find_map(|(login, _)| login).unwrap_or_default();
            warn!(login, "a login without rights on dashboard.relay holds the relay's lock, changing to another lock");
        }
        Ok(stolen)
    }

    /// Marks rows as done, and fetches for tenants that aren't busy; and what was published within `lately`.
    pub(super) async fn turn(
        &mut self,
        done: Vec<Done>,
        mut busy: Vec<String>,
        portion: Portion,
        lately: Option<Duration>,
    ) -> sqlx::Result<Fetched> {
        patiently(async {
            let locked = self.mark(done).await?;
            busy.extend(locked.iter().map(|done| done.tenant.as_str().to_owned()));
            let rows = sqlx::query(FETCH)
                .bind(known_types())
                .bind(busy)
                .bind(&portion.after)
                .bind(MAX_TENANTS)
                .bind(portion.count as i64)
                .bind(portion.rows as i64)
                .fetch_all(&mut self.connection)
                .await?;
            let mut fetched = fetched(rows)?;
            fetched.locked = locked;
            if let Some(lately) = lately {
                let published = sqlx::query(PUBLISHED).bind(lately.as_secs_f64()).bind(MAX_PUBLISHED);
                fetched.published = by_tenant(published.fetch_all(&mut self.connection).await?)?;
            }
            Ok(fetched)
        })
        .await
    }

    /// Marks rows as done; returns those that other sessions have locked.
    async fn mark(&mut self, mut done: Vec<Done>) -> sqlx::Result<Vec<Done>> {
        let mut locked = HashSet::new();
        for fate in [Fate::Published, Fate::Refused] {
            let ids: Vec<_> = done.iter().filter(|done| done.fate == fate).map(|done| done.id).collect();
            if !ids.is_empty() {
                let mark = sqlx::query_scalar::<_, i64>(MARK).bind(ids).bind(fate.as_str());
                locked.extend(mark.fetch_all(&mut self.connection).await?);
            }
        }
        done.retain(|done| locked.contains(&done.id));
        Ok(done)
    }

    /// Marks what is done and ends the session, and with it the lock. What can't be marked is published again by the next leader,
    /// as a duplicate.
    pub(super) async fn mark_and_close(mut self, done: Vec<Done>) {
        let _ = self.mark(done).await;
        let _ = self.connection.close().await;
    }
}

async fn try_lock(connection: &mut PgConnection, lock: i64) -> sqlx::Result<bool> {
    sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(lock).fetch_one(connection).await
}

/// Whether one transaction of a connection may run in another session than the next one, as a second connection shows: both are
/// given the same session, or one is given several. Only reads, and by the simple protocol, which every pooler understands.
async fn is_pooled_by_transaction(connection: &mut PgConnection, options: &PgConnectOptions) -> sqlx::Result<bool> {
    async fn session(connection: &mut PgConnection) -> sqlx::Result<i32> {
        sqlx::raw_sql("select pg_backend_pid()").fetch_one(connection).await?.try_get(0)
    }
    let mut other = PgConnection::connect_with(options).await?;
    let (mut ours, mut others) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..COMPARISONS {
        ours.insert(session(connection).await?);
        ours.insert(session(connection).await?);
        others.insert(session(&mut other).await?);
    }
    other.close().await?;
    Ok(ours.len() > 1 || !ours.is_disjoint(&others))
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

fn tenant(row: &PgRow) -> sqlx::Result<TenantId> {
    let tenant: &str = row.try_get("tenant_id")?;
    // The table's rule is the type's.
    TenantId::try_from(tenant.to_owned()).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// The row of a line that has one.
fn pending(row: &PgRow) -> sqlx::Result<Option<Pending>> {
    let Some(id) = row.try_get::<Option<i64>, _>("id")? else { return Ok(None) };
    let event = event(row)?;
    let event =
        event.inspect_err(|error| error!(row = id, %error, "a row of the outbox breaks a rule and is passed over"));
    Ok(Some(Pending { id, event: event.ok() }))
}

/// Reads the columns of [`columns`].
pub(super) fn event(row: &PgRow) -> sqlx::Result<Result<DashboardEvent, InvalidEvent>> {
    let (id, kind): (&str, &str) = (row.try_get("event_id")?, row.try_get("type")?);
    let data: Option<&str> = row.try_get("data")?;
    let timestamp: Option<OffsetDateTime> = row.try_get("happened_at")?;
    let parsed = || {
        let id = id.parse().map_err(|rule| InvalidEvent::new("id", format!("{rule}")))?;
        let kind = kind.parse().map_err(|rule| InvalidEvent::new("type", format!("{rule}")))?;
        let timestamp =
            timestamp.ok_or_else(|| InvalidEvent::new("timestamp", "must lie in the years 0002 to 9998"))?;
        let data = data.ok_or_else(|| InvalidEvent::new("data", "must be at most 65536 bytes of JSON"))?;
        let event = DashboardEvent { id, timestamp, data: EventData::from_json(kind, data)? };
        // Most events are so small that they need not be written to be measured.
        if data.len() > MAX_EVENT_BYTES / 2 {
            event.validate()?
        } else {
            event.data.validate()?
        }
        Ok(event)
    };
    Ok(parsed())
}

/// A frozen database must not freeze the relay: after a while it is given up.
pub(super) async fn patiently<T>(work: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let late = || sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer from the database"));
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(late()))
}
