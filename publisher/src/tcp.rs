//! How a connection to Redis is set up.

use std::time::Duration;

use fred::types::config::TcpConfig;

/// Small packets at once, and an end to a connection whose peer acknowledges nothing for `silence`: a write into a full buffer ends
/// with it.
pub fn config(silence: Duration) -> TcpConfig {
    TcpConfig {
        nodelay: Some(true),
        #[cfg(target_os = "linux")]
        user_timeout: Some(silence),
        // Without TCP_USER_TIMEOUT, probes find at least a peer that is gone while nothing is sent.
        #[cfg(not(target_os = "linux"))]
        keepalive: Some(socket2::TcpKeepalive::new().with_time(silence).with_interval(silence)),
        ..TcpConfig::default()
    }
}
