//! What the gateway knows of one tenant's snapshots: a part that fails pauses, longer after each failure.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::part::{ByPart, Part};

/// A part pauses for this time after its first failure, and twice as long after each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is known of one tenant.
#[derive(Debug, Default)]
pub(super) struct Tenant {
    /// Held during the tenant's queries: one at a time.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    failures: ByPart<Mutex<Option<Failure>>>,
}

/// The last failure of a part that has not succeeded since.
#[derive(Debug, Clone, Copy)]
struct Failure {
    at: Instant,
    pause: Duration,
}

impl Tenant {
    /// Whether the part failed when it was last queried.
    pub fn has_failed(&self, part: Part) -> bool {
        self.failure(part).is_some()
    }

    /// Whether one of the parts failed when it was last queried.
    pub fn is_in_trouble(&self) -> bool {
        self.has_failed(Part::Metrics) || self.has_failed(Part::Payments)
    }

    /// Whether it is too early to query the part again.
    pub fn pauses(&self, part: Part) -> bool {
        self.failure(part).is_some_and(|failure| failure.at + failure.pause > Instant::now())
    }

    /// The parts, first the one that failed last.
    pub fn in_order(&self) -> [Part; 2] {
        let at = |part| self.failure(part).map(|failure| failure.at);
        if at(Part::Payments) > at(Part::Metrics) {
            [Part::Payments, Part::Metrics]
        } else {
            [Part::Metrics, Part::Payments]
        }
    }

    pub fn succeeded(&self, part: Part) {
        *self.failure(part) = None;
    }

    pub fn failed(&self, part: Part) {
        let mut failure = self.failure(part);
        let pause = failure.map_or(FIRST_PAUSE, |before| (before.pause * 2).min(LONGEST_PAUSE));
        *failure = Some(Failure { at: Instant::now(), pause });
    }

    fn failure(&self, part: Part) -> MutexGuard<'_, Option<Failure>> {
        self.failures.of(part).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_a_minute_and_end_with_a_success() {
        let tenant = Tenant::default();
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            tenant.failed(Part::Metrics);
            assert!(!tenant.pauses(Part::Payments) && tenant.is_in_trouble());
            tokio::time::advance(Duration::from_secs(pause) - Duration::from_millis(1)).await;
            assert!(tenant.pauses(Part::Metrics), "{pause} s");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(!tenant.pauses(Part::Metrics) && tenant.has_failed(Part::Metrics), "{pause} s");
        }
        tenant.succeeded(Part::Metrics);
        assert!(!tenant.is_in_trouble());
        tenant.failed(Part::Metrics);
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(!tenant.pauses(Part::Metrics), "the pauses begin anew");
    }

    #[tokio::test(start_paused = true)]
    async fn the_part_that_failed_last_comes_first() {
        let tenant = Tenant::default();
        assert_eq!(tenant.in_order(), [Part::Metrics, Part::Payments]);
        tenant.failed(Part::Payments);
        assert_eq!(tenant.in_order(), [Part::Payments, Part::Metrics]);
        tokio::time::advance(Duration::from_millis(1)).await;
        tenant.failed(Part::Metrics);
        assert_eq!(tenant.in_order(), [Part::Metrics, Part::Payments]);
    }
}
