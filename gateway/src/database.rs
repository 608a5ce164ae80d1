//! The check of the database at the start: an error that time can't mend ends the start, a database that doesn't answer is only logged.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;
use tracing::warn;

use crate::config::ConfigError;

/// Longer than a healthy Postgres takes, and short enough for a start to wait.
const ANSWER_LIMIT: Duration = Duration::from_millis(1500);

/// What was found at the start.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// The tables, and perhaps the two views that snapshots are read from.
    Ready {
        /// Whether the views exist.
        views: bool,
    },
    /// No answer, for this reason. The database may come up later.
    Down(String),
}

/// Checks the database of these options, and passes them on if the gateway can work with it, or if it doesn't answer yet.
///
/// # Errors
/// When Postgres answers, and the gateway can't work with it.
pub async fn open(options: Option<&PgConnectOptions>) -> Result<Option<&PgConnectOptions>, ConfigError> {
    let Some(options) = options else { return Ok(None) };
    match look(options).await? {
        Found::Ready { views: true } => {}
        Found::Ready { views: false } => {
            warn!("the database has no views dashboard.metrics and dashboard.recent_payments: snapshots are null");
        }
        Found::Down(reason) => warn!(reason, "Postgres can't be reached: no snapshots, and the outbox waits"),
    }
    Ok(Some(options))
}

/// Checks whether the gateway can work with this database.
///
/// # Errors
/// When Postgres answers, and the gateway can't work with it: wrong password, no such database, not migrated.
pub async fn look(options: &PgConnectOptions) -> Result<Found, ConfigError> {
    let looked = timeout(ANSWER_LIMIT, async {
        let mut connection = PgConnection::connect_with(options).await?;
        // The catalogue can be read without a right on the schema.
        let query = "select count(*) filter (where relname in ('outbox', 'relay')) = 2,
            count(*) filter (where relname in ('metrics', 'recent_payments')) = 2
            from pg_class join pg_namespace on pg_namespace.oid = relnamespace
            where nspname = 'dashboard' and relkind in ('r', 'v', 'm', 'p', 'f')";
        let found: (bool, bool) = sqlx::query_as(query).persistent(false).fetch_one(&mut connection).await?;
        connection.close().await.map(|()| found)
    });
    match looked.await {
        Err(_) => Ok(Found::Down(format!("no answer within {ANSWER_LIMIT:?}"))),
        Ok(Ok((true, views))) => Ok(Found::Ready { views }),
        Ok(Ok((false, _))) => Err(ConfigError::new(
            "DATABASE_URL",
            "the database has no schema `dashboard` of ours; run `gateway migrate`",
        )),
        Ok(Err(error)) => match refusal(&error) {
            Some(rule) => Err(ConfigError::new("DATABASE_URL", rule)),
            None => Ok(Found::Down(reason(&error))),
        },
    }
}

/// Why there is no connection, and what to write instead, where that is known.
pub fn reason(error: &sqlx::Error) -> String {
    let instead = match error {
        sqlx::Error::Tls(error) if error.to_string().contains("does not support TLS") => {
            "; let the server speak it (ssl = on), or write sslmode=disable in DATABASE_URL, which sends the password in clear text"
        }
        error
            if error.to_string().contains("InvalidCertificate")
                || error.to_string().contains("invalid peer certificate") =>
        {
            "; write the name that the certificate has as DATABASE_URL's host, and the file of its authority as sslrootcert=… or \
             SSL_CERT_FILE"
        }
        _ => "",
    };
    format!("{error}{instead}")
}

/// The errors that time can't mend: credentials (class 28), and a database that doesn't exist (3D000).
fn refusal(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?;
    let code = error.code()?;
    let instead = match &*code {
        "28P01" => "; write the password of that role",
        "3D000" => "; create it, or write another name",
        _ => "",
    };
    (code.starts_with("28") || code == "3D000").then(|| format!("Postgres refuses: {}{instead}", error.message()))
}
