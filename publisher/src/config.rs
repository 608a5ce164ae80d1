//! How a publisher reaches Redis, and the limits it keeps.

use std::{fmt, ops::RangeInclusive, time::Duration};

use crate::error::ConnectError;

/// A publisher's settings. [`new`](Self::new) fills in the defaults; change a field afterwards where it must differ.
///
/// All publishers and gateways on one Redis must agree on `prefix`, `events_per_second`, `recovery_events` and `recovery`.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherConfig {
    /// Where Redis is: `redis://[[user]:password@]host[:port][/database]` for one server,
    /// `redis-sentinel://…?sentinelServiceName=name` for Sentinels, `redis-cluster://…` for a Cluster. With `rediss` in place of
    /// `redis` connections use TLS.
    pub redis_url: String,
    /// What every name in Redis starts with.
    pub prefix: String,
    /// No call takes longer than this, whatever Redis does.
    pub timeout: Duration,
    /// Connections to Redis, two at least: after a lost reply the event is sent again over another connection.
    pub connections: usize,
    /// Calls that may wait for Redis at once; the next one fails with `Overloaded`.
    pub max_in_flight: usize,
    /// Events of one tenant in any second.
    pub events_per_second: u32,
    /// The newest events of a tenant are kept for browsers that were offline: so many of them.
    pub recovery_events: u32,
    /// For how long after the last event they are kept.
    pub recovery: Duration,
}

impl PublisherConfig {
    /// The default settings for this Redis.
    pub fn new(redis_url: impl Into<String>) -> Self {
        Self {
            redis_url: redis_url.into(),
            prefix: "dash".to_owned(),
            timeout: Duration::from_millis(250),
            connections: 4,
            max_in_flight: 1024,
            events_per_second: 10,
            recovery_events: 512,
            recovery: Duration::from_secs(300),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConnectError> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        within("timeout", millis(self.timeout), 10..=60_000, "must lie between 10 ms and 60 s")?;
        within("connections", self.connections as u64, 1..=64, "must lie between 1 and 64")?;
        within("max_in_flight", self.max_in_flight as u64, 1..=100_000, "must lie between 1 and 100000")?;
        within("events_per_second", self.events_per_second.into(), 1..=1000, "must lie between 1 and 1000")?;
        within("recovery_events", self.recovery_events.into(), 1..=100_000, "must lie between 1 and 100000")?;
        within("recovery", millis(self.recovery), 1000..=86_400_000, "must lie between 1 s and 24 h")
    }
}

fn within(field: &'static str, value: u64, range: RangeInclusive<u64>, rule: &'static str) -> Result<(), ConnectError> {
    if range.contains(&value) { Ok(()) } else { Err(ConnectError::Limit { field, rule }) }
}

impl fmt::Debug for PublisherConfig {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Behind the last '@' are host, port and database, and behind those Sentinels' own password.
        let (address, secret) = match self.redis_url.rsplit_once('@') {
            Some((_, address)) => (address, "***@"),
            None => (&*self.redis_url, ""),
        };
        let shown = format!("{secret}{}", address.split('?').next().unwrap_or_default());
        f.debug_struct("PublisherConfig")
            .field("redis_url", &shown)
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("connections", &self.connections)
            .field("max_in_flight", &self.max_in_flight)
            .field("events_per_second", &self.events_per_second)
            .field("recovery_events", &self.recovery_events)
            .field("recovery", &self.recovery)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_password() {
        for url in [
            "redis://billing:hunter2@redis:6379/1",
            "rediss://:hunter2@redis",
            "redis://a:hunt@er2@redis",
            "redis-sentinel://redis:26379?sentinelServiceName=a&sentinelPassword=hunter2",
        ] {
            let shown = format!("{:?}", PublisherConfig::new(url));
            assert!(!shown.contains("hunt") && shown.contains("redis"), "{shown}");
        }
    }

    #[test]
    fn a_limit_out_of_range_is_named() {
        let mut config = PublisherConfig::new("redis://localhost");
        assert_eq!(config.validate(), Ok(()));
        config.connections = 0;
        let error = config.validate().expect_err("no connections").to_string();
        assert_eq!(error, "connections must lie between 1 and 64");
    }
}
