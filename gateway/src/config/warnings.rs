//! Values that can be used and are rarely meant: each is named once, at the start.

use std::net::SocketAddr;

use clap::ArgMatches;
use clap::parser::ValueSource;
use publisher::internals::database;
use publisher::internals::topology::RedisUrl;
use sqlx::postgres::PgConnectOptions;

use super::cli::Variables;
use super::groups::ClaimRules;
use super::origins::Origins;
use super::secret::Secret;

/// The settings that are looked at.
pub(super) struct Parts<'a> {
    pub(super) secret_flags: Vec<&'static str>,
    pub(super) listen: SocketAddr,
    pub(super) origins: &'a Origins,
    pub(super) claims: &'a ClaimRules,
    pub(super) database: Option<&'a PgConnectOptions>,
    pub(super) redis: Option<&'a RedisUrl>,
}

/// A line for each such value.
pub(super) fn of(parts: Parts<'_>) -> Vec<String> {
    let Parts { secret_flags, listen, origins, claims, database, redis } = parts;
    let flags = secret_flags.iter().map(|variable| {
        format!(
            "{variable} was given as a flag, which everyone on this machine sees: use the variable or {variable}_FILE"
        )
    });
    let origins = (origins.are_all() && !listen.ip().is_loopback())
        .then(|| "ALLOWED_ORIGINS is *: pages of every origin may connect; list the origins of your pages".to_owned());
    let claims = (claims.issuer.is_none() && claims.audience.is_none()).then(|| {
        "neither JWT_ISSUER nor JWT_AUDIENCE is set: a token that the same key signed for something else is accepted".to_owned()
    });
    let database = database.and_then(database::weakness).map(|weakness| format!("DATABASE_URL: {weakness}"));
    let redis = redis.and_then(RedisUrl::weakness).map(|weakness| format!("REDIS_URL: {weakness}"));
    flags.chain(origins).chain(claims).chain(database).chain(redis).collect()
}

/// The variables whose secrets were given as flags. An address is a secret once it has a password.
pub(super) fn secret_flags(variables: &Variables, matches: &ArgMatches) -> Vec<&'static str> {
    let address = |url: &Option<Secret>| url.as_ref().is_some_and(|url| url.expose().contains('@'));
    [
        ("JWT_SECRET", "secret", true),
        ("PUBLISH_API_KEY", "publish_api_key", true),
        ("REDIS_URL", "redis_url", address(&variables.redis_url)),
        ("DATABASE_URL", "database_url", address(&variables.database_url)),
    ]
    .into_iter()
    .filter(|(_, flag, secret)| *secret && matches.value_source(flag) == Some(ValueSource::CommandLine))
    .map(|(variable, ..)| variable)
    .collect()
}
