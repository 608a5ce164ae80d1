//! What goes on being wrong is said again once a minute, not each time that it is tried.

use std::time::Duration;

use tokio::time::Instant;

/// A cause that stays is logged this often.
const AGAIN: Duration = Duration::from_secs(60);
/// Causes that are told apart; more within a minute are somebody's changing text.
const CAUSES: usize = 8;

/// The causes that were said of late.
#[derive(Debug, Default)]
pub struct Complaints {
    said: Vec<(String, Instant)>,
    open: bool,
}

impl Complaints {
    /// Whether to say this now.
    pub fn may_say(&mut self, cause: &str) -> bool {
        self.said.retain(|(_, at)| at.elapsed() < AGAIN);
        let new = self.said.len() < CAUSES && self.said.iter().all(|(said, _)| said != cause);
        if new {
            self.said.push((cause.to_owned(), Instant::now()));
            self.open = true;
        }
        new
    }

    /// Whether something was said since it was last over, so that its end is worth saying too.
    pub fn is_over(&mut self) -> bool {
        std::mem::take(&mut self.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_cause_is_said_once_a_minute() {
        let mut complaints = Complaints::default();
        assert!(!complaints.is_over());
        assert!(
            complaints.may_say("refused") && !complaints.may_say("refused") && complaints.may_say("wrong password")
        );
        assert!(complaints.is_over() && !complaints.is_over());
        tokio::time::advance(AGAIN).await;
        assert!(complaints.may_say("refused"));
        let distinct = (0..100).filter(|n| complaints.may_say(&n.to_string())).count();
        assert_eq!(distinct, CAUSES - 1);
    }
}
