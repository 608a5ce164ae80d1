//! A session of the database in which one tenant's parts are read, in one transaction with a deadline.

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};
use tokio::sync::{OwnedMutexGuard, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::queries::SnapshotError;

/// PostgreSQL itself ends each query soon, so that its connection can be used again. Behind a pooler the limit must not outlast the
/// session, and a startup parameter would be refused.
const BEGIN: &str = "begin; set local statement_timeout = '900ms'";

/// A connection, and the right to query one tenant's parts on it.
pub(super) struct Session<'a> {
    pub connection: PoolConnection<Postgres>,
    /// The answers must be there by then.
    pub until: Instant,
    transaction: Transaction,
    _place: SemaphorePermit<'a>,
    _turn: OwnedMutexGuard<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    None,
    Open,
    /// No answer came in time. It may still come on this connection.
    Unanswered,
}

impl<'a> Session<'a> {
    pub fn new(
        connection: PoolConnection<Postgres>,
        until: Instant,
        place: SemaphorePermit<'a>,
        turn: OwnedMutexGuard<()>,
    ) -> Self {
        Self { connection, until, transaction: Transaction::None, _place: place, _turn: turn }
    }

    /// Queries in the session's transaction.
    pub async fn query<T>(
        &mut self,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        if self.transaction == Transaction::None {
            self.transaction = Transaction::Open;
            sqlx::raw_sql(BEGIN).execute(&mut *self.connection).await?;
        }
        let answer = query(&mut self.connection).await;
        if answer.is_err() {
            // PostgreSQL refuses further queries in this transaction.
            self.end().await;
        }
        answer
    }

    /// Ends the transaction, also one that failed.
    pub async fn end(&mut self) {
        if self.transaction == Transaction::Open {
            let ended = timeout_at(self.until, sqlx::raw_sql("commit").execute(&mut *self.connection)).await;
            if matches!(ended, Ok(Ok(_))) {
                self.transaction = Transaction::None;
            }
        }
    }

    /// No answer came in time, or none from this connection: nothing more is queried on it.
    pub fn give_up(&mut self) {
        self.transaction = Transaction::Unanswered;
    }

    /// Whether the session was given up.
    pub fn is_given_up(&self) -> bool {
        self.transaction == Transaction::Unanswered
    }
}

impl Drop for Session<'_> {
    /// A transaction that was not ended ends with its connection.
    fn drop(&mut self) {
        if self.transaction != Transaction::None {
            self.connection.close_on_drop();
        }
    }
}
