//! `gateway migrate`: brings a database's schema `dashboard` up to date with this binary. Harmless when it is already, and when
//! another does the same at the same time: the migrator holds a lock.

use std::time::Duration;

use anyhow::Context;
use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use super::say;
use crate::config::{Config, ConfigError, MigrateOptions};

/// Longer than a healthy Postgres takes to greet.
const PATIENCE: Duration = Duration::from_secs(5);

/// Applies what is missing.
///
/// # Errors
/// When `DATABASE_URL` is missing, Postgres can't be reached, or a migration fails: then that one is rolled back.
pub async fn run(config: &Config, options: &MigrateOptions) -> anyhow::Result<()> {
    let Some(url) = &config.database_url else {
        return Err(ConfigError::new("DATABASE_URL", "give this: it names the database to migrate").into());
    };
    let connection = timeout(PATIENCE, PgConnection::connect(url.expose())).await;
    let mut connection = connection.context("no answer from Postgres")?.context("Postgres cannot be used")?;

    migrate(&mut connection, sqlx::migrate!("../migrations/dashboard"), "dashboard._sqlx_migrations").await?;
    say("schema dashboard: up to date")?;
    if options.reference {
        let reference = sqlx::migrate!("../migrations/reference");
        migrate(&mut connection, reference, "dashboard._sqlx_reference_migrations").await?;
        say("reference tables (schema billing) and views: up to date")?;
    }
    Ok(())
}

/// Our schema holds the migrator's table too: whoever owns the rest of the database never sees a table of ours.
async fn migrate(connection: &mut PgConnection, mut migrator: Migrator, table: &'static str) -> anyhow::Result<()> {
    migrator.create_schema("dashboard");
    migrator.dangerous_set_table_name(table);
    Ok(migrator.run(connection).await?)
}
