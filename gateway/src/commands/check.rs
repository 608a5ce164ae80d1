//! `gateway check`: would `gateway serve` work here? One line for each thing looked at.

use anyhow::{Context, bail};
use publisher::topology::{self, RedisUrl};

use super::say;
use crate::config::Config;
use crate::database::{self, Found};
use crate::tokens::Tokens;

/// Checks what an already valid configuration points at. Fails when something can't be used or reached.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    say("configuration: valid")?;
    for warning in config.warnings() {
        say(format!("warning: {warning}"))?;
    }
    match Tokens::load(&config.jwt).await?.describe() {
        Ok(keys) => say(format!("keys: {keys}"))?,
        Err(reason) => {
            say(format!("keys: JWT_JWKS {reason}"))?;
            bail!("the keys cannot be read");
        }
    }
    postgres(config).await?;
    let Some(url) = &config.redis_url else {
        return say("redis: none configured, an instance serves alone from memory");
    };
    let url = RedisUrl::parse(url.expose()).context("REDIS_URL was checked when it was read")?;
    match topology::reach(&url).await {
        Ok(layout) => {
            for server in layout.servers() {
                say(format!("redis: {server} answers"))?;
            }
            Ok(())
        }
        Err(reason) => {
            say(format!("redis: cannot be used: {reason}"))?;
            bail!("Redis cannot be used");
        }
    }
}

async fn postgres(config: &Config) -> anyhow::Result<()> {
    let Some(url) = &config.database_url else {
        return say("postgres: none configured, there are no snapshots and no outbox");
    };
    match database::look(&database::options(url)?).await? {
        Found::Ready { views: true } => say("postgres: answers, with the outbox and the views of snapshots"),
        Found::Ready { views: false } => say("postgres: answers, with the outbox; without views snapshots are null"),
        Found::Down(reason) => {
            say(format!("postgres: cannot be used: {reason}"))?;
            bail!("Postgres cannot be used");
        }
    }
}
