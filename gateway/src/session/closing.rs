//! The end of a socket: tells the client why, closes, and gives it a moment to read that.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::slots::Slot;
use crate::socket::close::CloseReason;
use crate::socket::dialect::Outgoing;
use crate::socket::link::Link;
use crate::socket::protocol;

/// How long a last message may take to be written to a client that reads slowly.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to answer a Close, and how much it may still send.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;
/// Read at once, on the stack.
const READ_BYTES: usize = 4096;

/// Closes a socket that is in no room. Its slot is free for the next socket as soon as the last message is written.
pub async fn close(link: &Link, slot: Slot, reason: &CloseReason) {
    if matches!(reason, CloseReason::Lost) {
        return;
    }
    if reason.abandons_backlog() {
        link.forget_unsent();
    }
    if matches!(reason, CloseReason::Disabled) {
        let _ = link.write(&link.dialect.encode(&Outgoing::Message(&protocol::disabled())), 1);
    }
    link.write_last(link.dialect.encode(&Outgoing::Farewell(reason)));
    // A client that gave no sign of life won't make room in its buffer either.
    let patience = if matches!(reason, CloseReason::HeartbeatMissed) { Duration::ZERO } else { FLUSH_TIMEOUT };
    let flushed = timeout(patience, async {
        while link.congested() {
            if link.writable().await.is_err() || link.drain().is_err() {
                return false;
            }
        }
        true
    });
    let flushed = flushed.await.unwrap_or(false);
    drop(slot);
    if flushed && !matches!(reason, CloseReason::Client(_) | CloseReason::HeartbeatMissed) {
        link.finish();
        drain_input(link).await;
    }
}

/// Reads until the client has closed its half, so that unread bytes don't turn our Close into a reset. A client that goes on
/// sending is not read for long, but has the same time to take in the Close.
async fn drain_input(link: &Link) {
    let deadline = Instant::now() + LINGER_TIMEOUT;
    let mut left = LINGER_BYTES;
    while left > 0 {
        match timeout_at(deadline, link.readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
        match link.read(&mut [0; READ_BYTES]) {
            Ok(0) => return,
            Ok(read) => left = left.saturating_sub(read),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
    sleep_until(deadline).await;
}
