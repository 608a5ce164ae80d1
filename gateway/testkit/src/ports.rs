//! Ports for servers that are started again on the same one.

use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ephemeral range, so that no outgoing connection takes the port while the server is down.
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

pub fn free_port() -> u16 {
    loop {
        let offset = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + ((std::process::id() as u16).wrapping_mul(37).wrapping_add(offset)) % 10_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
