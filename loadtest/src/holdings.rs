//! What a gateway holds for its sockets: afterwards it must be what it was before.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::process;
use crate::resp::RedisConnection;
use crate::scrape::Scrape;

/// How long a gateway may take to forget the last sockets: longer than any linger.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connections to a database at the most, which come when they are first needed and stay: a snapshot's eight, the relay's five.
const DATABASE: usize = 13;

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
    /// Asks the gateway (its internal port, its process) and its Redis.
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

    /// Whether nothing of what came since `before` has stayed, but for connections to the database.
    pub fn is_back_at(&self, before: &Self) -> bool {
        Self { files: before.files, ..*self } == *before && self.files <= before.files + DATABASE
    }

    /// What is held once it is this again, or when that has been waited for long enough.
    pub fn restored(&self, now: impl Fn() -> anyhow::Result<Self>) -> anyhow::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
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
    fn only_a_database_may_keep_what_it_opened() {
        let before = Holdings { connections: 0, unauthenticated: 0, tenants: 0, subscriptions: 0, files: 20 };
        assert!(before.is_back_at(&before));
        assert!(Holdings { files: 33, ..before }.is_back_at(&before));
        assert!(!Holdings { files: 34, ..before }.is_back_at(&before), "a socket in ten thousand is a leak");
        assert!(!Holdings { tenants: 1, ..before }.is_back_at(&before));
        assert!(!Holdings { subscriptions: 1, ..before }.is_back_at(&before));
    }
}
