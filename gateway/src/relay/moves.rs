//! Redis' moves to another server: which rows must be published again after one, and when.

use std::time::Duration;

use tokio::time::Instant;

/// The old server may have acknowledged rows for this time before its end was noticed.
const UNCERTAIN: Duration = Duration::from_secs(10);
/// A publish that was under way when Redis moved is marked within this time.
const MARKED_WITHIN: Duration = Duration::from_secs(3);
/// A move that is older needs nothing: the leader at that time has published its rows again.
const OLD: Duration = Duration::from_secs(30);

/// The last move, and when the rows before it are fetched: at once, and again when every publish that was under way has its mark.
#[derive(Debug, Default)]
pub(super) struct Moves {
    last: Option<Instant>,
    fetches: Vec<Instant>,
}

impl Moves {
    /// Takes note of the last move. Whether a fetch is due.
    pub fn are_due(&mut self, moved: Option<Instant>) -> bool {
        let now = Instant::now();
        if let Some(moved) = moved.filter(|moved| self.last != Some(*moved)) {
            self.last = Some(moved);
            if now - moved < OLD {
                self.fetches = vec![now, now + MARKED_WITHIN];
            }
        }
        self.fetches.first().is_some_and(|fetch| *fetch <= now)
    }

    /// The age of the oldest rows to fetch, if a fetch is due.
    pub fn take_due(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let due = self.fetches.iter().filter(|fetch| **fetch <= now).count();
        self.fetches.drain(..due);
        self.last.filter(|_| due > 0).map(|moved| now - moved + UNCERTAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rows_before_a_move_are_fetched_twice() {
        let mut moves = Moves::default();
        assert!(!moves.are_due(None));
        assert_eq!(moves.take_due(), None);
        let moved = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(moves.are_due(Some(moved)));
        assert_eq!(moves.take_due(), Some(Duration::from_secs(1) + UNCERTAIN));
        assert!(!moves.are_due(Some(moved)));
        tokio::time::advance(MARKED_WITHIN).await;
        assert!(moves.are_due(Some(moved)));
        assert_eq!(moves.take_due(), Some(Duration::from_secs(1) + MARKED_WITHIN + UNCERTAIN));
        assert!(!moves.are_due(Some(moved)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_move_needs_nothing() {
        let mut moves = Moves::default();
        let moved = Instant::now();
        tokio::time::advance(OLD).await;
        assert!(!moves.are_due(Some(moved)));
        assert_eq!(moves.take_due(), None);
    }
}
