//! The database at the start: what can't work is said at once, what may heal is left to heal.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use crate::config::{ConfigError, Secret};

/// Longer than a healthy Postgres takes, shorter than anybody waits for a start.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What was found at the start.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Everything, but perhaps not the two views that snapshots are read from.
    Ready {
        /// Whether they are there.
        views: bool,
    },
    /// No answer, for this reason. It may come up.
    Down(String),
}

/// Reads `DATABASE_URL`.
///
/// # Errors
/// When it can't be used.
pub fn options(url: &Secret) -> Result<PgConnectOptions, ConfigError> {
    // sqlx's own message could repeat the URL.
    PgConnectOptions::from_str(url.expose()).map_err(|_| ConfigError::new("DATABASE_URL", "can't be understood"))
}

/// Looks whether the gateway can work with this database.
///
/// # Errors
/// When Postgres answers, and it can't: wrong password, no such database, not migrated.
pub async fn look(options: &PgConnectOptions) -> Result<Found, ConfigError> {
    let looked = timeout(PATIENCE, async {
        let mut connection = PgConnection::connect_with(options).await?;
        let query = "select to_regclass('dashboard.outbox') is not null and to_regclass('dashboard.relay') is not null,
            to_regclass('dashboard.metrics') is not null and to_regclass('dashboard.recent_payments') is not null";
        let found: (bool, bool) = sqlx::query_as(query).fetch_one(&mut connection).await?;
        connection.close().await.map(|()| found)
    });
    match looked.await {
        Err(_) => Ok(Found::Down(format!("no answer within {PATIENCE:?}"))),
        Ok(Ok((true, views))) => Ok(Found::Ready { views }),
        Ok(Ok((false, _))) => Err(ConfigError::new(
            "DATABASE_URL",
            "the database has no schema `dashboard` of ours; run `gateway migrate`",
        )),
        Ok(Err(error)) => match refusal(&error) {
            Some(rule) => Err(ConfigError::new("DATABASE_URL", rule)),
            None => Ok(Found::Down(error.to_string())),
        },
    }
}

/// What waiting can't mend: credentials (class 28), a database that doesn't exist (3D000).
fn refusal(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?;
    let code = error.code()?;
    (code.starts_with("28") || code == "3D000").then(|| format!("Postgres refuses: {}", error.message()))
}
