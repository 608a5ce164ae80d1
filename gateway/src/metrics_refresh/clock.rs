//! When a tenant's metrics are due: a state machine. Its inputs have the time with them.
//!
//! Inputs: [`changed`](Clock::changed), [`refreshed`](Clock::refreshed), [`begin`](Clock::begin), [`tried`](Clock::tried). Outputs:
//! [`due`](Clock::due), [`urgency`](Clock::urgency).

use std::time::Duration;

use publisher::internals::script::Urgency;
use tokio::time::Instant;

use crate::engine::{FIGURES_PAUSE, Position};

/// Metrics are published at least this often.
const EVERY: Duration = Duration::from_secs(30);
/// The time between a change and the query of its metrics: changes that come together are read together.
const GATHER: Duration = Duration::from_millis(50);
/// The time between a failure and the next attempt.
const RETRY: Duration = Duration::from_secs(2);

/// Metrics that are older than this, and were refused [`REFUSALS`] times, take a token that they would otherwise leave for payments. A
/// tenant that is at its limit all the time pays one event in a hundred for metrics that are never much older than this.
const OVERDUE: Duration = Duration::from_secs(10);
const REFUSALS: u32 = 2;

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tried {
    /// The metrics are on their way to all dashboards.
    Published,
    /// The view doesn't know the tenant.
    Unknown,
    /// Another gateway has claimed them.
    Lost(Promise),
    /// The tenant has no token to spare for this time.
    Throttled(Duration),
    /// Redis or Postgres can't be reached.
    Failed,
}

/// What the metrics of the gateway that won the claim will show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// This gateway's last change, too.
    Covers,
    /// Perhaps only what was before it.
    Older,
}

/// One tenant's clock.
#[derive(Debug)]
pub(super) struct Clock {
    /// The last change that no metrics are known to show, and since when a change waits.
    changed: Option<Position>,
    since: Instant,
    /// When the first dashboard was opened, and when metrics last came.
    watched: Instant,
    refreshed: Option<Instant>,
    /// No attempt begins before this moment.
    earliest: Instant,
    trying: Option<Try>,
    /// How often the tenant had no token to spare since the last metrics.
    throttled: u32,
    /// Another gateway publishes metrics that show this change.
    promised: Option<Position>,
}

#[derive(Debug)]
struct Try {
    /// The last change when the attempt began.
    covers: Option<Position>,
}

impl Clock {
    pub fn new(now: Instant) -> Self {
        Self {
            changed: None,
            since: now,
            watched: now,
            refreshed: None,
            earliest: now,
            trying: None,
            throttled: 0,
            promised: None,
        }
    }

    /// When the next attempt is due; `None` during an attempt.
    pub fn due(&self) -> Option<Instant> {
        let wanted = match (&self.changed, self.refreshed) {
            (Some(_), None) => self.since + GATHER,
            (Some(_), Some(refreshed)) => (self.since + GATHER).max(refreshed + FIGURES_PAUSE),
            (None, refreshed) => refreshed.unwrap_or(self.watched) + EVERY,
        };
        self.trying.is_none().then_some(wanted.max(self.earliest))
    }

    /// Begins an attempt; returns the last change that its metrics will show.
    pub fn begin(&mut self) -> Option<Position> {
        self.trying = Some(Try { covers: self.changed.clone() });
        self.changed.clone()
    }

    /// Whether the metrics must leave tokens for payments.
    pub fn urgency(&self, now: Instant) -> Urgency {
        let age = now - self.refreshed.unwrap_or(self.watched);
        if self.throttled >= REFUSALS && age >= OVERDUE { Urgency::Overdue } else { Urgency::Usual }
    }

    pub fn changed(&mut self, at: Position, now: Instant) {
        if self.changed.replace(at).is_none() {
            self.since = now;
        }
    }

    /// Metrics have come.
    pub fn refreshed(&mut self, now: Instant) {
        self.refreshed = Some(now);
        self.throttled = 0;
        if self.promised.is_some() && self.promised.take() == self.changed {
            self.changed = None;
        }
    }

    pub fn tried(&mut self, tried: Tried, now: Instant) {
        let Some(Try { covers }) = self.trying.take() else { return };
        match tried {
            Tried::Published | Tried::Unknown => {
                if covers == self.changed {
                    self.changed = None;
                }
                self.refreshed = Some(now);
                self.throttled = 0;
            }
            Tried::Lost(promise) => {
                self.promised = covers.filter(|_| promise == Promise::Covers);
                self.earliest = now + FIGURES_PAUSE;
            }
            Tried::Throttled(wait) => {
                self.earliest = now + wait;
                self.throttled += 1;
            }
            Tried::Failed => self.earliest = now + RETRY,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn at(seq: u64) -> Position {
        Position { epoch: "e".parse().unwrap(), seq, id: None }
    }

    #[tokio::test]
    async fn a_change_is_due_at_once_and_the_next_a_second_later() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        assert_eq!(clock.due(), Some(start + EVERY));
        clock.changed(at(1), start);
        clock.changed(at(2), start + 40 * MILLI);
        assert_eq!(clock.due(), Some(start + GATHER), "another change does not delay it");
        assert_eq!(clock.begin(), Some(at(2)));
        assert_eq!(clock.due(), None, "one try at a time");
        clock.changed(at(3), start + 55 * MILLI);
        clock.tried(Tried::Published, start + 60 * MILLI);
        assert_eq!(clock.due(), Some(start + 60 * MILLI + FIGURES_PAUSE), "the change in between is not shown yet");
        clock.begin();
        clock.tried(Tried::Published, start + 1100 * MILLI);
        assert_eq!(clock.due(), Some(start + 1100 * MILLI + EVERY), "nothing is left to show");
    }

    #[tokio::test]
    async fn a_gateway_that_loses_the_claim_waits_for_the_promised_metrics_for_a_second_at_most() {
        let start = Instant::now();
        let mut kept = Clock::new(start);
        kept.changed(at(1), start);
        kept.begin();
        kept.tried(Tried::Lost(Promise::Covers), start);
        assert_eq!(kept.due(), Some(start + FIGURES_PAUSE), "a promise can be broken");
        kept.refreshed(start + 5 * MILLI);
        assert_eq!(kept.due(), Some(start + 5 * MILLI + EVERY));

        let mut newer = Clock::new(start);
        newer.changed(at(2), start);
        newer.begin();
        newer.tried(Tried::Lost(Promise::Older), start);
        newer.refreshed(start + 5 * MILLI);
        assert_eq!(newer.due(), Some(start + 5 * MILLI + FIGURES_PAUSE), "those metrics may be older than the change");
    }

    #[tokio::test]
    async fn a_change_after_the_promise_is_not_covered_by_it() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.changed(at(1), start);
        clock.begin();
        clock.tried(Tried::Lost(Promise::Covers), start);
        clock.changed(at(2), start + MILLI);
        clock.refreshed(start + 2 * MILLI);
        assert_eq!(clock.due(), Some(start + 2 * MILLI + FIGURES_PAUSE));
    }

    #[tokio::test]
    async fn metrics_wait_for_a_token_and_survive_failures() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.changed(at(1), start);
        clock.begin();
        clock.tried(Tried::Throttled(300 * MILLI), start);
        assert_eq!(clock.due(), Some(start + 300 * MILLI));
        clock.begin();
        clock.tried(Tried::Failed, start + 300 * MILLI);
        assert_eq!(clock.due(), Some(start + 300 * MILLI + RETRY));
    }

    #[tokio::test]
    async fn f71_metrics_that_are_overdue_yield_twice_and_then_no_more() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        let mut refuse = |at: Instant| {
            clock.changed(self::at(1), at);
            clock.begin();
            let urgency = clock.urgency(at);
            clock.tried(Tried::Throttled(MILLI), at);
            urgency
        };
        for early in 0..5 {
            assert_eq!(refuse(start + early * MILLI), Urgency::Usual);
        }
        assert_eq!(refuse(start + OVERDUE), Urgency::Overdue);
        clock.begin();
        clock.tried(Tried::Published, start + OVERDUE);
        assert_eq!(clock.urgency(start + OVERDUE * 3), Urgency::Usual, "the first attempt after metrics yields");
    }
}
