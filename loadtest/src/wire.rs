//! What goes over the wires: WebSocket frames, the gateway's messages, Redis' protocol and the gateway's metrics.

pub mod message;
pub mod resp;
pub mod scrape;
pub mod websocket;

use std::io::{self, ErrorKind};

/// `None` where the call would block.
pub fn unless_blocked<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}
