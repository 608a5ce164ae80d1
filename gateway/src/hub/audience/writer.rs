//! Writes to a link without looking into it. Links lie all over the memory: a look into each would cost two cache misses a delivery, a
//! tenth of the whole.

use std::os::fd::{BorrowedFd, RawFd};

use bytes::Bytes;

use crate::socket::link::{self, Link, Overflow};

/// What a write to a link that keeps up needs of it. Private to the audience, which keeps each beside the link that it belongs to.
#[derive(Debug)]
pub(super) struct RawWriter {
    socket: RawFd,
    /// The link may be congested. Only its writer makes it so, and its writer writes through this.
    congested: bool,
}

impl RawWriter {
    /// Of a link whose only writer is the caller from now on.
    pub(super) fn of(link: &Link) -> Self {
        Self { socket: link.raw_fd(), congested: link.congested() }
    }

    /// [`Link::write`] to the link that this is of.
    ///
    /// # Errors
    /// [`Overflow`], as there.
    pub(super) fn write(&mut self, link: &Link, frames: &Bytes, events: usize) -> Result<(), Overflow> {
        let written = if self.congested {
            link.write(frames, events)
        } else {
            // SAFETY: the link owns the socket, and is borrowed for longer.
            #[expect(unsafe_code, reason = "to borrow it from the link would be to look into the link")]
            let socket = unsafe { BorrowedFd::borrow_raw(self.socket) };
            match link::send(socket, frames) {
                Ok(sent) if sent == frames.len() => return Ok(()),
                sent => link.keep_unsent(sent, frames, events),
            }
        };
        self.congested = link.congested();
        written
    }

    /// Whether frames wait in the link's backlog.
    pub(super) fn congested(&mut self, link: &Link) -> bool {
        self.congested = self.congested && link.congested();
        self.congested
    }
}
