//! `gateway migrate`: brings a database's schema `dashboard` up to date with this binary. Harmless when it is already, and when
//! another does the same at the same time: the migrator holds a lock.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context;
use sqlx::migrate::{Migrate, MigrateError, Migration, Migrator};
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use super::output::say;
use crate::config::{ConfigError, MigrateOptions, Settings};
use crate::database;

/// Longer than a healthy Postgres takes to greet.
const PATIENCE: Duration = Duration::from_secs(5);
const OURS: &str = "dashboard";
/// What PostgreSQL answers to a login that may not.
const FORBIDDEN: &str = "42501";

/// Whether the login may create what the migrations of a schema (`$1`) create: the database and the login as they are written in SQL,
/// whether the schema is there and who owns it, and whether the login may create it, and things in it.
const RIGHTS: &str = "
    select quote_ident(current_database()), quote_ident(current_user), quote_ident(pg_get_userbyid(nspowner)),
        coalesce(has_schema_privilege(pg_namespace.oid, 'create'), has_database_privilege(current_database(), 'create'))
    from (values ($1)) asked (name) left join pg_namespace on nspname = asked.name";

/// Applies what is missing.
///
/// # Errors
/// When `DATABASE_URL` is missing, Postgres can't be reached, or a migration fails: then that one is rolled back.
pub async fn run(settings: &Settings, options: &MigrateOptions) -> anyhow::Result<()> {
    let Some(address) = &settings.database else {
        return Err(ConfigError::new("DATABASE_URL", "give this: it names the database to migrate").into());
    };
    let connection = timeout(PATIENCE, PgConnection::connect_with(address)).await.context("no answer from Postgres")?;
    let mut connection =
        connection.map_err(|error| anyhow::anyhow!("Postgres cannot be used: {}", database::reason(&error)))?;

    let ours = Set { schema: OURS, table: "dashboard._sqlx_migrations" };
    let applied = ours.migrate(&mut connection, sqlx::migrate!("../migrations/dashboard")).await?;
    say(format!("schema dashboard: {}", outcome(&applied)))?;
    if options.reference {
        let reference = Set { schema: "billing", table: "dashboard._sqlx_reference_migrations" };
        let applied = reference.migrate(&mut connection, sqlx::migrate!("../migrations/reference")).await?;
        say(format!("reference tables (schema billing) and views: {}", outcome(&applied)))?;
    }
    Ok(())
}

fn outcome(applied: &[Migration]) -> String {
    let names: Vec<_> = applied.iter().map(|one| format!("{:04} {}", one.version, one.description)).collect();
    if names.is_empty() { "up to date".to_owned() } else { format!("applied {}", names.join(", ")) }
}

/// A set of migrations.
struct Set {
    /// Where they create.
    schema: &'static str,
    /// Where the migrator writes what it has applied: in our schema, so that the owner of the rest never sees a table of ours.
    table: &'static str,
}

impl Set {
    /// Applies what is missing, and returns that.
    async fn migrate(&self, connection: &mut PgConnection, mut migrator: Migrator) -> anyhow::Result<Vec<Migration>> {
        migrator.dangerous_set_table_name(self.table);
        // Locked here, so that what others apply at the same time is told apart; the migrator would take the lock a second time.
        migrator.set_locking(false);
        connection.lock().await?;
        let there = self.may_create(connection).await?;
        if !there && self.schema == OURS {
            sqlx::raw_sql("create schema dashboard").execute(&mut *connection).await?;
        }
        connection.ensure_migrations_table(self.table).await?;
        let before = connection.list_applied_migrations(self.table).await?;
        let before: HashSet<_> = before.into_iter().map(|applied| applied.version).collect();
        if let Err(error) = migrator.run(&mut *connection).await {
            return Err(self.explained(connection, error).await);
        }
        connection.unlock().await?;
        Ok(migrator.iter().filter(|one| !before.contains(&one.version)).cloned().collect())
    }

    /// Whether the schema is there.
    ///
    /// # Errors
    /// With the grant that is missing.
    async fn may_create(&self, connection: &mut PgConnection) -> anyhow::Result<bool> {
        let rights = sqlx::query_as(RIGHTS).bind(self.schema).fetch_one(connection).await?;
        let (database, login, owner, may): (String, String, Option<String>, bool) = rights;
        if may {
            return Ok(owner.is_some());
        }
        let object = owner.map_or(format!("database {database}"), |_| format!("schema {}", self.schema));
        let rule = format!("{login} may not create in {object}; write: grant create on {object} to {login}");
        Err(ConfigError::new("DATABASE_URL", rule).into())
    }

    /// An error of the migrator, once and not for each layer that it came through.
    async fn explained(&self, connection: &mut PgConnection, error: MigrateError) -> anyhow::Error {
        let (migration, source) = match &error {
            MigrateError::ExecuteMigration(source, version) => (format!("migration {version:04}: "), source),
            MigrateError::Execute(source) => (String::new(), source),
            _ => return error.into(),
        };
        let Some(refusal) = source.as_database_error() else { return error.into() };
        let said = format!("{migration}{}", refusal.message());
        if refusal.code().as_deref() != Some(FORBIDDEN) {
            return anyhow::anyhow!("{said}");
        }
        let rights = sqlx::query_as(RIGHTS).bind(self.schema).fetch_one(connection).await;
        let (_, login, owner, _): (String, String, Option<String>, bool) = match rights {
            Ok(rights) => rights,
            Err(error) => return error.into(),
        };
        let owner = owner.unwrap_or_default();
        let rule = format!(
            "{said}; migrate as {owner}, who owns the schema {}, or write: grant {owner} to {login}",
            self.schema
        );
        ConfigError::new("DATABASE_URL", rule).into()
    }
}
