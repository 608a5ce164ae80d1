//! The leader's contact with Redis: whether the lead should be given up, since other gateways may reach Redis.

use std::collections::HashMap;
use std::time::Duration;

use publisher::TenantId;
use tokio::time::Instant;

use super::delivery::{Delivered, End, is_unreachable};

/// The lead is given up when Redis has answered nothing for this time, and rows wait.
const LOST_AFTER: Duration = Duration::from_secs(3);
/// The same when Redis answers for other tenants: one node of a Cluster can't be reached.
const LOST_IN_PART_AFTER: Duration = Duration::from_secs(15);

/// The leader's contact with Redis.
#[derive(Debug)]
pub(super) struct Contact {
    answers: bool,
    /// When Redis last answered.
    answered: Option<Instant>,
    /// Tenants for which Redis can't be reached, and since when.
    unreachable: HashMap<TenantId, Instant>,
}

/// What a delivery says of the contact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// The contact was lost for too long.
    GiveUp,
}

impl Contact {
    pub fn new() -> Self {
        Self { answers: true, answered: None, unreachable: HashMap::new() }
    }

    /// Whether the last delivery was answered.
    pub fn answers(&self) -> bool {
        self.answers
    }

    /// Takes note of how a delivery ended.
    pub fn heard(&mut self, delivered: &Delivered) -> Verdict {
        let now = Instant::now();
        self.answers = !matches!(&delivered.end, End::Failed(error) if is_unreachable(error));
        if delivered.answered {
            self.answered = Some(now);
            self.unreachable.remove(&delivered.tenant);
        }
        if self.answers {
            return Verdict::Keep;
        }
        let since = *self.unreachable.entry(delivered.tenant.clone()).or_insert(now);
        let answered_others = self.answered.is_some_and(|answered| answered > since);
        let limit = if answered_others { LOST_IN_PART_AFTER } else { LOST_AFTER };
        if now - since >= limit { Verdict::GiveUp } else { Verdict::Keep }
    }
}

#[cfg(test)]
mod tests {
    use publisher::PublishError;

    use super::super::delivery::Reason;
    use super::*;

    fn delivered(tenant: &str, end: End) -> Delivered {
        Delivered {
            tenant: tenant.parse().expect("a tenant"),
            reason: Reason::Waiting,
            done: Vec::new(),
            rest: Vec::new(),
            published: 0,
            answered: matches!(end, End::All),
            end,
        }
    }

    fn failed(tenant: &str) -> Delivered {
        delivered(tenant, End::Failed(PublishError::Unavailable))
    }

    #[tokio::test(start_paused = true)]
    async fn the_lead_is_given_up_three_seconds_after_the_last_answer() {
        let mut contact = Contact::new();
        assert_eq!(contact.heard(&failed("acorn")), Verdict::Keep);
        assert!(!contact.answers());
        tokio::time::advance(LOST_AFTER - Duration::from_millis(1)).await;
        assert_eq!(contact.heard(&failed("acorn")), Verdict::Keep);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(contact.heard(&failed("acorn")), Verdict::GiveUp);
        assert_eq!(contact.heard(&delivered("acorn", End::All)), Verdict::Keep);
        assert!(contact.answers());
        assert_eq!(contact.heard(&failed("acorn")), Verdict::Keep, "the time starts anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_of_a_cluster_has_more_time_while_others_answer() {
        let mut contact = Contact::new();
        assert_eq!(contact.heard(&failed("acorn")), Verdict::Keep);
        tokio::time::advance(LOST_AFTER).await;
        assert_eq!(contact.heard(&delivered("hazel", End::All)), Verdict::Keep);
        assert_eq!(contact.heard(&failed("acorn")), Verdict::Keep);
        tokio::time::advance(LOST_IN_PART_AFTER - LOST_AFTER).await;
        assert_eq!(contact.heard(&failed("acorn")), Verdict::GiveUp);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_every_gateway_would_get_is_an_answer() {
        let mut contact = Contact::new();
        for _ in 0..2 {
            let refused = End::Failed(PublishError::Refused("WRONGTYPE".into()));
            assert_eq!(contact.heard(&delivered("acorn", refused)), Verdict::Keep);
            assert!(contact.answers());
            tokio::time::advance(LOST_IN_PART_AFTER).await;
        }
    }
}
