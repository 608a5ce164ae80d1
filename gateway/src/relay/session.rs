//! The session that leads: it holds the relay's lock, and gives the leader its term.

use std::collections::BTreeSet;
use std::time::Duration;

use publisher::internals::Term;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Row};
use tokio::time::Instant;
use tracing::warn;

use super::rows::within_limit;

/// The lock that makes a session the leader, until a login without rights takes it and the relays change to another lock.
/// "crecheRE" in ASCII.
const FIRST_LOCK: i64 = 0x6372_6563_6865_5245;
/// The time between two queries of the lock's holders: the server's view of its locks is not for free.
const HOLDERS_PAUSE: Duration = Duration::from_secs(1);

/// The session of a leader that freezes ends after five seconds of silence, and the lock with it. A host that vanishes is noticed as
/// fast. Marks may be lost in a crash of the database: their events are published again, and Redis knows them as duplicates.
const SETTINGS: &str = "set idle_session_timeout = '5s'; set idle_in_transaction_session_timeout = '5s';
    set tcp_keepalives_idle = 3; set tcp_keepalives_interval = 1; set tcp_keepalives_count = 2;
    set statement_timeout = '9s'; set synchronous_commit = off";

/// How often two connections compare their sessions. A pooler by transaction that lends the newest free session gives ours to the
/// other connection, unless a third client is faster; it would have to be faster every time. A pooler that lends its sessions in turn
/// gives us two of them, since we ask twice before the other connection asks.
const COMPARISONS: usize = 5;

/// The lock that counts, in a statement that reads `dashboard.relay relay`. It also works before migration 0004; then it is always
/// `$1`, [`FIRST_LOCK`].
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

/// Begins a term that is later than all before and than `$2`, unless the lock that counts is no longer `$3`.
const BEGIN_TERM: &str = concat!(
    "update dashboard.relay relay set term = greatest(term, $2) + 1, since = now() where ",
    lock!(),
    " = $3 returning term"
);

/// The same; from then on the lock `$4` counts.
const BEGIN_TERM_WITH_LOCK: &str = concat!(
    "update dashboard.relay relay set term = greatest(term, $2) + 1, since = now(), lock_key = $4 where ",
    lock!(),
    " = $3 returning term"
);

/// The logins that hold the lock `$1`, and whether each may lead: by a right of its own, or of a role that it may become. A lock of a
/// prepared transaction, which no session holds, has no login.
const HOLDERS: &str = "select holder.usename::text, exists (
        select from pg_roles role
        where pg_has_role(holder.usesysid, role.oid, 'MEMBER') and has_any_column_privilege(role.oid, 'dashboard.relay', 'UPDATE')
    )
    from pg_locks held left join pg_stat_activity holder using (pid)
    where held.locktype = 'advisory' and held.granted and held.objsubid = 1
        and held.database = (select oid from pg_database where datname = current_database())
        and held.classid::bigint = ($1 >> 32) & 4294967295 and held.objid::bigint = $1 & 4294967295";

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

/// A session that leads, or may. It ends when this is dropped, and the lock with it.
pub(super) struct Session {
    connection: PgConnection,
    /// When the lock's holders were last queried.
    holders_queried: Option<Instant>,
}

impl Session {
    /// Opens a session. A session that a pooler lends is left as it was.
    pub async fn open(options: &PgConnectOptions) -> Result<Self, NoSession> {
        let opened = within_limit(async {
            let mut connection = PgConnection::connect_with(options).await?;
            let pooled = is_pooled_by_transaction(&mut connection, options).await?;
            if !pooled {
                sqlx::raw_sql(SETTINGS).execute(&mut connection).await?;
            }
            Ok((connection, pooled))
        });
        match opened.await? {
            (_, true) => Err(NoSession::Pooled(format!("{}:{}", options.get_host(), options.get_port()))),
            (connection, false) => Ok(Self { connection, holders_queried: None }),
        }
    }

    /// The session's connection.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Ends the session, and gives the lock back.
    pub async fn close(self) {
        let _ = self.connection.close().await;
    }

    /// Becomes the leader, unless another session leads: with a term later than all before, and than `seen`.
    ///
    /// Every login can take an advisory lock. A login without a right to lead that holds ours is no leader: another lock takes the
    /// place of the stolen one, which only a login with UPDATE on `dashboard.relay` can write down.
    pub async fn lead(&mut self, seen: Term) -> sqlx::Result<Option<Term>> {
        within_limit(async {
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

    /// Begins a term with the lock `held`, if `counts` is still the lock that counts; otherwise gives `held` back.
    async fn begin_term(&mut self, seen: Term, counts: i64, held: i64) -> sqlx::Result<Option<Term>> {
        // A term that is lost in a crash of the database would be given out twice.
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

    /// Whether the lock is held, and none of its holders may lead.
    async fn is_stolen(&mut self, lock: i64) -> sqlx::Result<bool> {
        if self.holders_queried.is_some_and(|at| at.elapsed() < HOLDERS_PAUSE) {
            return Ok(false);
        }
        self.holders_queried = Some(Instant::now());
        let holders: Vec<(Option<String>, bool)> =
            sqlx::query_as(HOLDERS).bind(lock).fetch_all(&mut self.connection).await?;
        let stolen = !holders.is_empty() && holders.iter().all(|(_, may_lead)| !may_lead);
        if stolen {
            let login = holders.into_iter().find_map(|(login, _)| login).unwrap_or_default();
            warn!(login, "a login without rights on dashboard.relay holds the relay's lock, changing to another lock");
        }
        Ok(stolen)
    }
}

async fn try_lock(connection: &mut PgConnection, lock: i64) -> sqlx::Result<bool> {
    sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(lock).fetch_one(connection).await
}

/// Whether two transactions of a connection may run in different sessions. A second connection shows it: both are lent the same
/// session, or one is lent several. The queries only read, by the simple protocol, which every pooler understands.
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
