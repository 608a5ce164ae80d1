//! File descriptors: enough of them for the connections that were promised, or no start.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::ConfigError;

/// Listeners, Redis, logs, /metrics, handshakes, and some sockets that have not joined yet. Those are counted apart, up to
/// as many again, but are not promised a descriptor each: without one they wait in the kernel's backlog.
const RESERVE: u64 = 256;

/// Raises the soft limit to the hard one: 1024 is kept low for programs that use `select`, which we don't.
pub(super) fn reserve(max_connections: usize) -> Result<(), ConfigError> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Refused, the soft limit stays what it is and the check below judges by it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    check(max_connections, limit)
}

fn check(max_connections: usize, limit: u64) -> Result<(), ConfigError> {
    let needed = max_connections as u64 + RESERVE;
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
    fn a_cap_beyond_the_descriptors_is_refused() {
        assert_eq!(check(1000, 1256), Ok(()));
        assert!(
            check(1000, 1255).unwrap_err().to_string().starts_with("MAX_CONNECTIONS=1000: needs 1256 file descriptors")
        );
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        reserve(1).unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
