//! The link to a socket's client: writes whole frames, in order, and never waits.
//!
//! At any time exactly one task may call [`Link::write`]: the room's shard while the socket is in a room, the connection's
//! own task before and after. A socket that keeps up costs that task one `write` system call and nothing else. Once the
//! kernel's buffer is full, frames go to a bounded backlog, which the connection's task empties; until it is empty nothing
//! is written past it, so that order holds.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::close::CloseReason;
use super::dialect::Dialect;
use super::id::SocketId;

/// Frames handed to the kernel in one `writev`.
const MAX_SLICES: usize = 64;
/// Bytes of answers and events beyond `SEND_QUEUE_BYTES` that may wait in all backlogs together: a quarter of the memory that the
/// manifests give a gateway.
const MAX_LARGE_BYTES: usize = 64 * 1024 * 1024;

/// Shared by the connection's task and the shard of its room.
pub struct Link {
    pub id: SocketId,
    pub dialect: Dialect,
    /// The index of the socket in its room's audience: leaving needs no search.
    pub seat: AtomicUsize,
    stream: TcpStream,
    /// Set while the backlog holds anything: by the writer, cleared by the task that empties it.
    congested: AtomicBool,
    backlog: Mutex<Backlog>,
    wake: Notify,
    limits: Arc<QueueLimits>,
}

/// The limits of a backlog. A larger answer or event waits alone, as long as all of those together are not too large.
#[derive(Debug)]
pub struct QueueLimits {
    /// `SEND_QUEUE_EVENTS`.
    events: u32,
    /// `SEND_QUEUE_BYTES`.
    bytes: u32,
    /// Bytes in the backlogs of all sockets that were larger than `bytes` and wait alone.
    large: AtomicUsize,
}

impl QueueLimits {
    /// The limits that the sockets of a gateway share.
    pub fn new(events: u32, bytes: u32) -> Self {
        Self { events, bytes, large: AtomicUsize::new(0) }
    }

    /// Takes room for something large; false when there is none.
    fn take_large(&self, bytes: usize) -> bool {
        let add = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= MAX_LARGE_BYTES);
        self.large.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    fn give_back_large(&self, bytes: u32) {
        if bytes > 0 {
            self.large.fetch_sub(bytes as usize, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct Backlog {
    frames: VecDeque<Waiting>,
    events: u32,
    bytes: u32,
    /// So many of the frames go out before the last answer is out.
    until_answered: u32,
    /// The first frame was larger than the limit: its bytes.
    large: u32,
    close_reason: Option<CloseReason>,
}

struct Waiting {
    /// What is left of one or more whole frames.
    bytes: Bytes,
    events: u32,
}

/// The link as its socket's task holds it. When the task panics, the connection ends: the room would otherwise go on writing to a client
/// whose token, silence and messages are not checked any more.
pub struct OwnLink(pub Arc<Link>);

impl Deref for OwnLink {
    type Target = Arc<Link>;

    fn deref(&self) -> &Arc<Link> {
        &self.0
    }
}

impl Drop for OwnLink {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.finish();
        }
    }
}

/// The backlog is full: the client reads too slowly.
#[derive(Debug, PartialEq, Eq)]
pub struct Overflow;

impl Link {
    /// Wraps an upgraded connection.
    pub fn new(id: SocketId, dialect: Dialect, stream: TcpStream, limits: Arc<QueueLimits>) -> Self {
        Self {
            id,
            dialect,
            seat: AtomicUsize::new(usize::MAX),
            stream,
            congested: AtomicBool::new(false),
            backlog: Mutex::default(),
            wake: Notify::new(),
            limits,
        }
    }

    /// Sends whole frames that carry this many events (a control message counts as one).
    ///
    /// # Errors
    /// [`Overflow`] when they neither fit the kernel's buffer nor the backlog; nothing of them was kept.
    pub fn write(&self, frames: &Bytes, events: usize) -> Result<(), Overflow> {
        if self.congested.load(Ordering::Acquire) {
            return self.queue(frames.clone(), events);
        }
        let sent = send(self.stream.as_fd(), frames);
        self.keep_unsent(sent, frames, events)
    }

    /// Keeps what the kernel did not take of frames that were written to [`raw_fd`](Self::raw_fd).
    ///
    /// # Errors
    /// [`Overflow`], as [`write`](Self::write).
    pub fn keep_unsent(&self, sent: Result<usize, Errno>, frames: &Bytes, events: usize) -> Result<(), Overflow> {
        match sent {
            Ok(sent) if sent == frames.len() => Ok(()),
            Ok(sent) => self.queue(frames.slice(sent..), events),
            Err(Errno::AGAIN) => self.queue(frames.clone(), events),
            // A broken connection shows itself to the task that reads it.
            Err(_) => Ok(()),
        }
    }

    /// The socket, for a writer that borrows the link while it writes.
    pub fn raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Whether frames wait in the backlog.
    pub fn congested(&self) -> bool {
        self.congested.load(Ordering::Acquire)
    }

    /// Remembers, while frames wait, that the last of them answers a message of the client.
    pub fn note_answer(&self) {
        if self.congested() {
            let mut backlog = self.backlog();
            backlog.until_answered = backlog.frames.len() as u32;
        }
    }

    /// Whether the client has yet to read the last answer. An answer may be as large as the whole log: a client that asks for more of
    /// them than it reads would fill the memory.
    pub fn owes_answer(&self) -> bool {
        self.congested() && self.backlog().until_answered > 0
    }

    /// Tells the connection's task to close the socket. The caller has taken it out of its room and writes no more.
    pub fn close_with(&self, reason: CloseReason) {
        self.backlog().close_reason.get_or_insert(reason);
        self.wake.notify_one();
    }

    /// The room's decision to close, if there is one.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.backlog().close_reason.take()
    }

    /// Waits for an order to close, or for the backlog to be in use.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Waits until there is something to read or, when frames wait, room to write.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn ready(&self) -> io::Result<()> {
        let interest = if self.congested() { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.stream.ready(interest).await.map(drop)
    }

    /// Waits for room to write.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn writable(&self) -> io::Result<()> {
        self.stream.writable().await
    }

    /// Waits for something to read.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        self.stream.readable().await
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is, and the connection's own.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.try_read(buffer)
    }

    /// Writes as much of the backlog as the kernel takes. Called by the connection's task alone.
    ///
    /// # Errors
    /// The connection's own; never `WouldBlock`.
    pub fn drain(&self) -> io::Result<()> {
        while self.congested() {
            let waiting: Vec<Bytes> =
                self.backlog().frames.iter().take(MAX_SLICES).map(|waiting| waiting.bytes.clone()).collect();
            let slices: Vec<_> = waiting.iter().map(|bytes| IoSlice::new(bytes)).collect();
            match self.stream.try_write_vectored(&slices) {
                Ok(written) => self.written(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives up on events that a slow client was never sent, but finishes the frame it is in the middle of.
    pub fn forget_unsent(&self) {
        let mut backlog = self.backlog();
        backlog.frames.truncate(1);
        backlog.forget_counts();
    }

    /// Queues a last frame behind what waits, whatever the bound says.
    pub fn write_last(&self, frame: Bytes) {
        self.backlog().forget_counts();
        // With the counts at zero there is room for one more.
        let _ = self.write(&frame, 0);
    }

    /// Ends our half of the connection; the peer reads what was written, then the end.
    pub fn finish(&self) {
        let _ = socket2::SockRef::from(&self.stream).shutdown(Shutdown::Write);
    }

    fn queue(&self, bytes: Bytes, events: usize) -> Result<(), Overflow> {
        let mut backlog = self.backlog();
        let events = clamped(events);
        let sums = (backlog.events.saturating_add(events), backlog.bytes.saturating_add(clamped(bytes.len())));
        if sums.0 > self.limits.events || sums.1 > self.limits.bytes {
            let is_alone = backlog.frames.is_empty();
            let is_large = bytes.len() > self.limits.bytes as usize;
            if !is_alone || is_large && !self.limits.take_large(bytes.len()) {
                return Err(Overflow);
            }
            backlog.large = if is_large { clamped(bytes.len()) } else { 0 };
        }
        (backlog.events, backlog.bytes) = sums;
        backlog.frames.push_back(Waiting { bytes, events });
        self.congested.store(true, Ordering::Release);
        self.wake.notify_one();
        Ok(())
    }

    fn written(&self, mut written: usize) {
        let mut backlog = self.backlog();
        backlog.bytes = backlog.bytes.saturating_sub(clamped(written));
        while let Some(first) = backlog.frames.front_mut() {
            if written < first.bytes.len() {
                let _ = first.bytes.split_to(written);
                return;
            }
            written -= first.bytes.len();
            let events = first.events;
            backlog.frames.pop_front();
            backlog.events = backlog.events.saturating_sub(events);
            backlog.until_answered = backlog.until_answered.saturating_sub(1);
            self.limits.give_back_large(std::mem::take(&mut backlog.large));
        }
        // Under the lock: a writer that found the flag set queues behind this, and sets it again.
        self.congested.store(false, Ordering::Release);
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let large = self.backlog().large;
        self.limits.give_back_large(large);
    }
}

impl Backlog {
    /// What waits doesn't count any more.
    fn forget_counts(&mut self) {
        (self.events, self.bytes) = (0, 0);
    }
}

/// As a count of a backlog, whose limits are far below its range.
fn clamped(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Writes without asking the runtime whether there is room: that would be a look-up, and the kernel decides anyway. [`Link::drain`],
/// which waits for room, asks both.
pub fn send(socket: BorrowedFd<'_>, frames: &[u8]) -> Result<usize, Errno> {
    rustix::net::send(socket, frames, SEND_FLAGS)
}

#[cfg(target_os = "linux")]
const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
/// Elsewhere only the process can refuse the signal of a broken pipe, and Rust's start does.
#[cfg(not(target_os = "linux"))]
const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT;

#[cfg(test)]
mod tests;
