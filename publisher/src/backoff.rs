//! The delays between attempts to connect.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
/// Longer than a connection takes that the other side ends at once.
const LASTED: Duration = Duration::from_millis(250);

/// Doubles from 50 ms to a limit. Each delay is drawn at random from its upper half, so that many clients do not connect in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    limit: Duration,
}

impl Backoff {
    pub(crate) fn up_to(limit: Duration) -> Self {
        Self { next: FIRST, limit }
    }

    /// The delay before the next attempt.
    pub(crate) fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.limit);
        rand::random_range(delay / 2..=delay)
    }

    /// Starts over after a connection that lasted. A connection that breaks soon after it was made keeps the longer delays: otherwise it
    /// would be opened 20 times a second.
    pub(crate) fn reset_after(&mut self, lasted: Duration) {
        if lasted > LASTED {
            self.next = FIRST;
        }
    }
}
