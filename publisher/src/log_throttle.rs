//! The throttle of the log: what goes on being wrong is said again once a minute, not each time that it happens.

use std::time::Duration;

use tokio::time::Instant;

/// A cause that stays is logged this often.
const AGAIN: Duration = Duration::from_secs(60);
/// Causes that are told apart; more within a minute are somebody's changing text.
const CAUSES: usize = 32;

/// The causes that were said of late.
#[derive(Debug, Default)]
pub struct LogThrottle {
    said: Vec<Said>,
    open: bool,
}

#[derive(Debug)]
struct Said {
    cause: String,
    at: Instant,
    /// How often it was counted since.
    unsaid: u64,
}

impl LogThrottle {
    /// Whether to say this now.
    pub fn is_due(&mut self, cause: &str) -> bool {
        let due = self.count(cause).is_some();
        // Who doesn't ask for counts doesn't ask what is overdue either.
        self.said.iter_mut().filter(|said| said.cause == cause).for_each(|said| said.unsaid = 0);
        due
    }

    /// Counts a cause. When it is to be said now: how often it came since it was last said, this time included.
    pub fn count(&mut self, cause: &str) -> Option<u64> {
        self.said.retain(|said| said.cause == cause || said.at.elapsed() < AGAIN || said.unsaid > 0);
        let full = self.said.len() >= CAUSES;
        let count = if let Some(said) = self.said.iter_mut().find(|said| said.cause == cause) {
            said.unsaid += 1;
            said.count_if_due()?
        } else if full {
            return None;
        } else {
            self.said.push(Said { cause: cause.to_owned(), at: Instant::now(), unsaid: 0 });
            1
        };
        self.open = true;
        Some(count)
    }

    /// What was counted and not said yet, where its minute is over: it is to be said now, though it may have ended.
    pub fn overdue(&mut self) -> Vec<(String, u64)> {
        let said = self.said.iter_mut().filter(|said| said.unsaid > 0);
        said.filter_map(|said| Some((said.cause.clone(), said.count_if_due()?))).collect()
    }

    /// Whether something was said since it was last over, so that its end is worth saying too.
    pub fn is_over(&mut self) -> bool {
        std::mem::take(&mut self.open)
    }
}

impl Said {
    fn count_if_due(&mut self) -> Option<u64> {
        let due = self.at.elapsed() >= AGAIN;
        due.then(|| {
            self.at = Instant::now();
            std::mem::take(&mut self.unsaid)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_cause_is_said_once_a_minute() {
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
    async fn b71_what_was_not_said_is_counted_and_said_when_its_minute_is_over() {
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
