//! How a connection to Redis is set up: small packets go out at once, and a connection whose peer acknowledges nothing ends.

use std::{io, time::Duration};

use fred::types::config::TcpConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// For the client library: a write into a full buffer ends with the connection after `silence`.
pub(crate) fn config(silence: Duration) -> TcpConfig {
    TcpConfig {
        nodelay: Some(true),
        #[cfg(target_os = "linux")]
        user_timeout: Some(silence),
        // Without TCP_USER_TIMEOUT, probes find at least a peer that is gone while nothing is sent.
        #[cfg(not(target_os = "linux"))]
        keepalive: Some(keepalive(silence)),
        ..TcpConfig::default()
    }
}

/// For our own connection, which waits for pushes and may send nothing for long.
pub(crate) fn set_up(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(silence))?;
    socket.set_tcp_keepalive(&keepalive(silence))
}

fn keepalive(silence: Duration) -> TcpKeepalive {
    TcpKeepalive::new().with_time(silence).with_interval(silence)
}
