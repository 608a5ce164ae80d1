//! What became of an event that was published, by any caller or by a leader of the outbox' relay.

use std::{fmt, time::Duration};

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is in the tenant's log, and on its way to every gateway that has a dashboard of the tenant open.
    Published {
        /// Its number among the tenant's events.
        seq: u64,
        /// Gateways that Redis handed it to at once. Zero means that no dashboard of the tenant is open.
        receivers: u64,
    },
    /// The tenant's limit for this second is reached. Nothing was published.
    Throttled {
        /// After this time the same event can succeed.
        retry_after: Duration,
    },
    /// An event with this id was published before, by an earlier call, or by this call when its first reply was lost.
    Duplicate {
        /// Its number among the tenant's events.
        seq: u64,
    },
}

/// Counts the relay's leaders: each has a later term than all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Term(pub i64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What became of a leader's event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relayed {
    /// The outcome, as for any event.
    Outcome(Outcome),
    /// Refused: a later leader has published. This leader must stop.
    Superseded {
        /// The later leader's term.
        term: Term,
    },
}
