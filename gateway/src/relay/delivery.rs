//! The delivery of a tenant's rows to the engine, one after the other.

use std::sync::Arc;
use std::time::Duration;

use publisher::internals::{Relayed, Term};
use publisher::{Outcome, PublishError, TenantId};
use tokio::sync::Semaphore;
use tracing::error;

use super::rows::{Pending, RowStatus};
use super::turn::Done;
use crate::engine::Engine;

/// Why rows are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// They wait, and get their mark afterwards.
    Waiting,
    /// They were published before Redis moved, and have their mark.
    Again,
}

/// The end of a delivery.
#[derive(Debug)]
pub(super) struct Delivered {
    pub tenant: TenantId,
    pub reason: Reason,
    pub done: Vec<Done>,
    /// Rows that were not delivered.
    pub rest: Vec<Pending>,
    /// Rows that were published now, not before.
    pub published: usize,
    /// Whether Redis answered at least once.
    pub answered: bool,
    pub end: End,
}

/// How a delivery ended.
#[derive(Debug)]
pub(super) enum End {
    /// All rows were delivered.
    All,
    /// The tenant's limit is reached for this time.
    Throttled(Duration),
    /// A row could not be published.
    Failed(PublishError),
    /// A later leader has published.
    Superseded(Term),
}

impl Delivered {
    fn mark(&mut self, id: i64, status: RowStatus) {
        self.done.push(Done { tenant: self.tenant.clone(), id, status });
    }
}

/// Publishes a tenant's rows in their order, up to the first that has to wait. `in_flight` bounds the publishes of all tenants.
pub(super) async fn deliver(
    engine: Engine,
    in_flight: Arc<Semaphore>,
    term: Term,
    tenant: TenantId,
    rows: Vec<Pending>,
    reason: Reason,
) -> Delivered {
    let done = Vec::with_capacity(rows.len());
    let mut delivered =
        Delivered { tenant, reason, done, rest: Vec::new(), published: 0, answered: false, end: End::All };
    let mut rows = rows.into_iter();
    while let Some(Pending { id, event }) = rows.next() {
        let Some(event) = event else {
            delivered.mark(id, RowStatus::Refused);
            continue;
        };
        // Fails only when the semaphore is closed, which it never is.
        let _permit = in_flight.acquire().await;
        let relayed = engine.relay(&delivered.tenant, &event, term).await;
        delivered.answered |= relayed.as_ref().map_or_else(|error| !is_unreachable(error), |_| true);
        delivered.end = match relayed {
            Ok(Relayed::Outcome(outcome @ (Outcome::Published { .. } | Outcome::Duplicate { .. }))) => {
                delivered.mark(id, RowStatus::Published);
                delivered.published += usize::from(matches!(outcome, Outcome::Published { .. }));
                continue;
            }
            Ok(Relayed::Outcome(Outcome::Throttled { retry_after })) => End::Throttled(retry_after),
            Ok(Relayed::Outcome(outcome)) => End::Failed(PublishError::Refused(format!("unknown outcome {outcome:?}"))),
            Ok(Relayed::Superseded { term }) => End::Superseded(term),
            // The row was read with the same rules, so that only the rules of another version can refuse it.
            Err(PublishError::Invalid(error)) => {
                error!(row = id, %error, "outbox row refused: it breaks a rule");
                delivered.mark(id, RowStatus::Refused);
                continue;
            }
            Err(error) => End::Failed(error),
        };
        delivered.rest = std::iter::once(Pending { id, event: Some(event) }).chain(rows).collect();
        break;
    }
    delivered
}

/// Whether Redis gave no answer, or an answer that another gateway may not get.
pub(super) fn is_unreachable(error: &PublishError) -> bool {
    match error {
        PublishError::Unavailable | PublishError::Unknown { .. } | PublishError::Overloaded => true,
        PublishError::Refused(why) => why.starts_with("NOPERM"),
        _ => false,
    }
}
