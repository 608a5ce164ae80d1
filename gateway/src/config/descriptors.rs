//! File descriptors: enough of them for all connections that may come, or no start.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::ConfigError;

/// HTTP connections of the internal port: Prometheus, balancers' checks, and billing's.
pub const INTERNAL_SEATS: usize = 256;
/// Listeners, Redis, PostgreSQL, the log.
const RESERVE: usize = 128;

/// HTTP connections of the public port, handshakes under way among them. A handshake takes milliseconds.
pub fn public_seats(max_connections: usize) -> usize {
    max_connections.clamp(256, 1024)
}

/// Raises the soft limit to the hard one: 1024 is kept low for programs that use `select`, which we don't.
pub(super) fn reserve(max_connections: usize) -> Result<(), ConfigError> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // macOS refuses a soft limit without an end. Refused too, it stays what it is and the check below judges by it.
    let wanted = [maximum, Some(needed(max_connections))];
    let _ = wanted.into_iter().any(|current| setrlimit(Resource::Nofile, Rlimit { current, maximum }).is_ok());
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    check(max_connections, limit)
}

/// Unverified sockets may be as many again, and all HTTP connections may be taken: dashboards, health checks and Redis must find
/// descriptors all the same.
fn needed(max_connections: usize) -> u64 {
    (2 * max_connections + public_seats(max_connections) + INTERNAL_SEATS + RESERVE) as u64
}

fn check(max_connections: usize, limit: u64) -> Result<(), ConfigError> {
    let needed = needed(max_connections);
    if needed <= limit {
        return Ok(());
    }
    let rule =
        format!("needs {needed} file descriptors, this process may have {limit}; raise `ulimit -Hn`, or lower the cap");
    Err(ConfigError::with_value("MAX_CONNECTIONS", &max_connections.to_string(), rule))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn b63_a_cap_beyond_the_descriptors_that_strangers_may_take_is_refused() {
        assert_eq!(check(1000, 3384), Ok(()));
        let refusal = check(1000, 3383).unwrap_err().to_string();
        assert!(
            refusal.starts_with("MAX_CONNECTIONS=1000: needs 3384 file descriptors, this process may have 3383"),
            "{refusal}"
        );
    }

    // Elsewhere the hard limit may have no end.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        reserve(1).unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
