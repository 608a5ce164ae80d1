//! What a gateway holds for its sockets: after a run it must be the same as before.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::machine::process;
use crate::wire::resp::RedisConnection;
use crate::wire::scrape::Scrape;

/// Longest time in which a gateway must free the last sockets: longer than any room lingers.
const RELEASE_LIMIT: Duration = Duration::from_secs(30);

/// Most database connections of a gateway, opened at their first use and then kept: eight for snapshots, five for the
/// relay.
const DATABASE_CONNECTIONS: usize = 13;

/// What a gateway holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Holdings {
    pub connections: u64,
    pub unauthenticated: u64,
    pub tenants: u64,
    pub subscriptions: usize,
    pub files: usize,
}

impl Holdings {
    /// Reads the gateway's metrics, its open files, and the subscriptions at its Redis.
    pub fn of(internal: &str, pid: u32, redis_url: &str, redis_prefix: &str) -> anyhow::Result<Self> {
        let scrape = Scrape::of(internal)?;
        let value = |name| anyhow::Ok(scrape.value(name)? as u64);
        let channels = format!("{redis_prefix}:*:events");
        let mut redis = RedisConnection::open(redis_url)?;
        Ok(Self {
            connections: value("gateway_connections")?,
            unauthenticated: value("gateway_unauthenticated")?,
            tenants: value("gateway_tenants")?,
            subscriptions: redis.command(&["PUBSUB", "CHANNELS", &channels])?.items().len(),
            files: process::open_files(pid)?,
        })
    }

    /// Whether everything since `before` was freed, except connections to the database.
    pub fn is_back_at(&self, before: &Self) -> bool {
        Self { files: before.files, ..*self } == *before && self.files <= before.files + DATABASE_CONNECTIONS
    }

    /// Waits until the gateway holds this again, or until [`RELEASE_LIMIT`] is over; returns the last reading.
    pub fn wait_until_restored(&self, now: impl Fn() -> anyhow::Result<Self>) -> anyhow::Result<Self> {
        let deadline = Instant::now() + RELEASE_LIMIT;
        loop {
            let held = now()?;
            if held == *self || Instant::now() > deadline {
                return Ok(held);
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, unauthenticated, tenants, subscriptions, files } = self;
        write!(f, "connections {connections}   unauthenticated {unauthenticated}   tenants {tenants}")?;
        write!(f, "   subscriptions {subscriptions}   files {files}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_database_connections_may_stay_open() {
        let before = Holdings { connections: 0, unauthenticated: 0, tenants: 0, subscriptions: 0, files: 20 };
        assert!(before.is_back_at(&before));
        assert!(Holdings { files: 33, ..before }.is_back_at(&before));
        assert!(!Holdings { files: 34, ..before }.is_back_at(&before), "a socket in ten thousand is a leak");
        assert!(!Holdings { tenants: 1, ..before }.is_back_at(&before));
        assert!(!Holdings { subscriptions: 1, ..before }.is_back_at(&before));
    }
}
