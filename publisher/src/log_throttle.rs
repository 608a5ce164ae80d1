//! The throttle of the log: a failure that repeats is logged once a minute, not each time.

use std::time::Duration;

use tokio::time::Instant;

/// A cause that repeats is logged this often.
const AGAIN: Duration = Duration::from_secs(60);
/// Causes that are told apart. More within a minute are texts that change each time.
const CAUSES: usize = 32;

/// The causes that were logged lately.
#[derive(Debug, Default)]
pub struct LogThrottle {
    logged: Vec<Logged>,
    open: bool,
}

#[derive(Debug)]
struct Logged {
    cause: String,
    at: Instant,
    /// How often it was counted since then.
    unlogged: u64,
}

impl LogThrottle {
    /// Whether to log this cause now.
    pub fn is_due(&mut self, cause: &str) -> bool {
        let due = self.count(cause).is_some();
        // A caller without counts has no use for overdue ones.
        self.logged.iter_mut().filter(|logged| logged.cause == cause).for_each(|logged| logged.unlogged = 0);
        due
    }

    /// Counts a cause. When it is due: how often it came since it was last logged, this time included.
    pub fn count(&mut self, cause: &str) -> Option<u64> {
        self.logged.retain(|logged| logged.cause == cause || logged.at.elapsed() < AGAIN || logged.unlogged > 0);
        let full = self.logged.len() >= CAUSES;
        let count = if let Some(logged) = self.logged.iter_mut().find(|logged| logged.cause == cause) {
            logged.unlogged += 1;
            logged.count_if_due()?
        } else if full {
            return None;
        } else {
            self.logged.push(Logged { cause: cause.to_owned(), at: Instant::now(), unlogged: 0 });
            1
        };
        self.open = true;
        Some(count)
    }

    /// The causes that were counted and not logged yet, where their minute is over. They are due, even if they have ended.
    pub fn overdue(&mut self) -> Vec<(String, u64)> {
        let logged = self.logged.iter_mut().filter(|logged| logged.unlogged > 0);
        logged.filter_map(|logged| Some((logged.cause.clone(), logged.count_if_due()?))).collect()
    }

    /// Whether a cause was logged since the last call, so that its end should be logged too.
    pub fn is_over(&mut self) -> bool {
        std::mem::take(&mut self.open)
    }
}

impl Logged {
    fn count_if_due(&mut self) -> Option<u64> {
        let due = self.at.elapsed() >= AGAIN;
        due.then(|| {
            self.at = Instant::now();
            std::mem::take(&mut self.unlogged)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_cause_is_logged_once_a_minute() {
        let mut throttle = LogThrottle::default();
        assert!(!throttle.is_over());
        assert!(throttle.is_due("refused") && !throttle.is_due("refused") && throttle.is_due("wrong password"));
        assert!(throttle.is_over() && !throttle.is_over());
        tokio::time::advance(AGAIN).await;
        assert!(throttle.is_due("refused"));
        let distinct = (0..100).filter(|n| throttle.is_due(&n.to_string())).count();
        assert_eq!(distinct, CAUSES - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn b71_causes_that_were_not_logged_are_counted_and_logged_after_a_minute() {
        let mut throttle = LogThrottle::default();
        let counts: Vec<_> = (0..200).filter_map(|_| throttle.count("wrong key")).collect();
        assert_eq!((counts, throttle.overdue()), (vec![1], vec![]));
        tokio::time::advance(AGAIN).await;
        assert_eq!(throttle.overdue(), [("wrong key".to_owned(), 199)]);
        assert_eq!((throttle.overdue(), throttle.count("wrong key")), (vec![], None));
        tokio::time::advance(AGAIN).await;
        assert_eq!((throttle.count("wrong key"), throttle.overdue()), (Some(2), vec![]));
    }
}
