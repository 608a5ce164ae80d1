//! Admission: how many joins are under way at once, so that a storm of joins never delays events.
//!
//! A join costs what its answer costs: a question to the engine, and up to `RECOVERY_EVENTS` events that are read, put together and
//! written. Events take the same way, through the engine's one connection and the shards' mailboxes, in the order in which things
//! happen; so a thousand joins must not be ahead of them. A few are under way; the others wait for their turn in their own tasks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Joins under way at once: a few milliseconds of work together even when each of them has the whole log to catch up with, and enough
/// that the engine has the next question at hand.
const AT_ONCE: usize = 8;
/// A join that isn't answered by then waits for Redis, and gives its turn to the next.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// How long a join may wait for its turn.
const QUEUE_LIMIT: Duration = Duration::from_secs(5);

/// The queue of all joins; cheap to clone.
#[derive(Clone)]
pub struct Admission(Arc<Semaphore>);

/// A join's turn, until this is dropped.
pub struct Permit(#[expect(dead_code, reason = "it is held, not used")] OwnedSemaphorePermit);

impl Admission {
    /// An empty queue.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }

    /// Waits for a turn, in order; `None` when it takes too long.
    pub async fn turn(&self) -> Option<Permit> {
        // An error would mean that the semaphore is closed, which it never is.
        timeout(QUEUE_LIMIT, self.0.clone().acquire_owned()).await.ok()?.ok().map(Permit)
    }
}
