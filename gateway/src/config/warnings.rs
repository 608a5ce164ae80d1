//! What can be used and is rarely wanted: named once, at the start.

use publisher::internals::database;
use publisher::internals::topology::RedisUrl;

use super::Config;

impl Config {
    /// One line each.
    pub fn warnings(&self) -> Vec<String> {
        let flags = self.secret_flags.iter().map(|variable| {
            format!("{variable} was given as a flag, which everyone on this machine sees: use the variable or {variable}_FILE")
        });
        let origins = (self.allowed_origins.are_all() && !self.listen.ip().is_loopback()).then(|| {
            "ALLOWED_ORIGINS is *: pages of every origin may connect; list the origins of your pages".to_owned()
        });
        let claims = (self.jwt.issuer.is_none() && self.jwt.audience.is_none()).then(|| {
            "neither JWT_ISSUER nor JWT_AUDIENCE is set: a token that the same key signed for something else is accepted".to_owned()
        });
        // Both were checked when they were read.
        let database = self.database_url.as_ref().and_then(|url| database::options(url.expose()).ok());
        let database =
            database.as_ref().and_then(database::weakness).map(|weakness| format!("DATABASE_URL: {weakness}"));
        let redis = self.redis_url.as_ref().and_then(|url| RedisUrl::parse(url.expose()).ok()?.weakness());
        let redis = redis.map(|weakness| format!("REDIS_URL: {weakness}"));
        flags.chain(origins).chain(claims).chain(database).chain(redis).collect()
    }
}
