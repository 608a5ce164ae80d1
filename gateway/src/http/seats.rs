//! Seats: how many connections of a port are not (yet) WebSockets. Every connection is accepted. When the seats are taken, the
//! connection that has been longest without a request in progress is closed; no client can keep the others out by waiting.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, interval, timeout};

/// The head of a connection's first request must be complete within this, or the connection is cut: slow-loris.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The same while the seats are short. A phone's handshake takes a second at most.
const SHORT_HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// From a request to the last byte of its answer; a client of 100 kbit/s gets 375 kB in this time, which is more than any file has.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// An answer that takes longer waits for another server.
const LONG_WORK: Duration = Duration::from_secs(5);
/// How often connections are looked at for being overdue.
const LOOK: Duration = Duration::from_millis(250);
/// Wait for a seat before another connection is closed for it: the one before may be slow to end.
const PATIENCE: Duration = Duration::from_millis(100);

/// The seats of a port.
#[derive(Clone)]
pub struct Seats(Arc<Room>);

struct Room {
    size: usize,
    free: Arc<Semaphore>,
    taken: Mutex<HashMap<u64, Arc<Exchange>>>,
    number: AtomicU64,
}

/// A connection's seat; given back when it is dropped.
pub struct Seat {
    /// What the connection is doing.
    pub exchange: Arc<Exchange>,
    number: u64,
    room: Arc<Room>,
    _permit: OwnedSemaphorePermit,
}

/// What a connection is doing: the connection sets it, the port reads it.
pub struct Exchange {
    state: Mutex<State>,
    close: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No request is in progress: none came yet, or the last answer is out.
    Waiting { since: Instant, answered: bool },
    /// The gateway works on an answer.
    Handling { since: Instant },
    /// An answer is on its way to the client.
    Writing { since: Instant },
}

impl Seats {
    /// So many.
    pub fn new(size: usize) -> Self {
        let room = Room { size, free: Arc::new(Semaphore::new(size)), taken: Mutex::default(), number: 0.into() };
        Self(Arc::new(room))
    }

    /// A seat for a connection that was accepted. When none is free, `closed` is called for each connection that loses its seat.
    pub async fn take(&self, mut closed: impl FnMut()) -> Option<Seat> {
        let permit = match self.0.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => loop {
                if self.close_one() {
                    closed();
                }
                if let Ok(permit) = timeout(PATIENCE, self.0.free.clone().acquire_owned()).await {
                    break permit.ok()?;
                }
            },
        };
        let exchange = Arc::new(Exchange::new());
        let number = self.0.number.fetch_add(1, Ordering::Relaxed);
        self.0.taken().insert(number, exchange.clone());
        Some(Seat { exchange, number, room: self.0.clone(), _permit: permit })
    }

    /// Closes the connection that has been longest without a request in progress; without one, the connection whose answer has
    /// been longest on its way. `false` when the gateway works on an answer for each.
    fn close_one(&self) -> bool {
        let mut taken = self.0.taken();
        let ranked = taken.iter().filter_map(|(number, exchange)| Some((exchange.rank()?, *number)));
        let Some((_, number)) = ranked.min() else { return false };
        if let Some(exchange) = taken.remove(&number) {
            exchange.close.notify_one();
        }
        true
    }

    /// Closes, for ever, each connection whose request or answer takes too long.
    pub async fn close_overdue(&self) {
        let mut look = interval(LOOK);
        loop {
            look.tick().await;
            let short = self.0.free.available_permits() < self.0.size / 4;
            let header = if short { SHORT_HEADER_TIMEOUT } else { HEADER_TIMEOUT };
            self.0.taken().retain(|_, exchange| {
                let overdue = exchange.is_overdue(header);
                if overdue {
                    exchange.close.notify_one();
                }
                !overdue
            });
        }
    }
}

impl Room {
    fn taken(&self) -> MutexGuard<'_, HashMap<u64, Arc<Exchange>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.taken().remove(&self.number);
    }
}

impl Exchange {
    fn new() -> Self {
        Self { state: Mutex::new(State::Waiting { since: Instant::now(), answered: false }), close: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request's head is complete. Requests that are sent ahead (pipelining) share one time limit.
    pub fn asked(&self) {
        let mut state = self.state();
        let since = match *state {
            State::Waiting { .. } => Instant::now(),
            State::Handling { since } | State::Writing { since } => since,
        };
        *state = State::Handling { since };
    }

    /// The answer to it is ready to be written.
    pub fn answered(&self) {
        let mut state = self.state();
        if let State::Handling { since } = *state {
            *state = State::Writing { since };
        }
    }

    /// All that was to be written is in the kernel's hands.
    pub fn flushed(&self) {
        let mut state = self.state();
        if let State::Writing { .. } = *state {
            *state = State::Waiting { since: Instant::now(), answered: true };
        }
    }

    /// Whether a request has come so far.
    pub fn was_asked(&self) -> bool {
        !matches!(*self.state(), State::Waiting { answered: false, .. })
    }

    /// Waits until the port wants the connection closed.
    pub async fn closed(&self) {
        self.close.notified().await;
    }

    /// The lowest loses its seat first; none while the gateway works on an answer, unless that takes it long.
    fn rank(&self) -> Option<(u8, Instant)> {
        match *self.state() {
            State::Waiting { since, .. } => Some((0, since)),
            State::Writing { since } => Some((1, since)),
            State::Handling { since } => (since.elapsed() >= LONG_WORK).then_some((2, since)),
        }
    }

    fn is_overdue(&self, header: Duration) -> bool {
        match *self.state() {
            State::Waiting { since, answered: false } => since.elapsed() >= header,
            // hyper has the time limit of later heads.
            State::Waiting { answered: true, .. } => false,
            State::Handling { since } | State::Writing { since } => since.elapsed() >= EXCHANGE_TIMEOUT,
        }
    }
}

#[cfg(test)]
mod tests;
