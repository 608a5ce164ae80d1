//! When a tenant's figures are due. A state machine without a clock of its own.

use std::time::Duration;

use publisher::internals::script::Urgency;
use tokio::time::Instant;

use crate::engine::{FIGURES_PAUSE, Position};

/// MetricsRefresh come at least so often.
const EVERY: Duration = Duration::from_secs(30);
/// Between a change and its figures: what is written together is read together.
const GATHER: Duration = Duration::from_millis(50);
/// After a failure.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// MetricsRefresh that are older than this, and were refused twice, take a token that they would otherwise leave for payments. A tenant that
/// is at its limit all the time pays one event in a hundred for figures that are never much older than this.
const OVERDUE: Duration = Duration::from_secs(10);
const PATIENCE: u32 = 2;

/// What came of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tried {
    /// They are on their way to everybody.
    Published,
    /// The tenant has none.
    Unknown,
    /// Another gateway is at it, as of the same event or of an earlier one.
    Lost { covers: bool },
    /// The tenant has no token to spare before then.
    Throttled(Duration),
    /// Redis or Postgres is away.
    Failed,
}

/// One tenant's clock.
#[derive(Debug)]
pub(super) struct Clock {
    /// The last change that no figures are known to show, and since when one waits.
    changed: Option<Position>,
    since: Instant,
    /// When the first dashboard came, and the last figures.
    watched: Instant,
    refreshed: Option<Instant>,
    /// Not before then.
    earliest: Instant,
    trying: Option<Try>,
    /// How often the tenant had no token to spare since the last figures.
    throttled: u32,
    /// Another gateway has promised figures that show this.
    promised: Option<Position>,
}

#[derive(Debug)]
struct Try {
    /// The last change when it began.
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

    /// When to try; not while a try is under way.
    pub fn due(&self) -> Option<Instant> {
        let wanted = match (&self.changed, self.refreshed) {
            (Some(_), None) => self.since + GATHER,
            (Some(_), Some(refreshed)) => (self.since + GATHER).max(refreshed + FIGURES_PAUSE),
            (None, refreshed) => refreshed.unwrap_or(self.watched) + EVERY,
        };
        self.trying.is_none().then_some(wanted.max(self.earliest))
    }

    /// Begins a try; returns what its figures will show at least.
    pub fn begin(&mut self) -> Option<Position> {
        self.trying = Some(Try { covers: self.changed.clone() });
        self.changed.clone()
    }

    /// Whether the figures of a try must leave tokens for payments.
    pub fn urgency(&self, now: Instant) -> Urgency {
        let age = now - self.refreshed.unwrap_or(self.watched);
        if self.throttled >= PATIENCE && age >= OVERDUE { Urgency::Overdue } else { Urgency::Usual }
    }

    pub fn changed(&mut self, at: Position, now: Instant) {
        if self.changed.replace(at).is_none() {
            self.since = now;
        }
    }

    /// MetricsRefresh have come.
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
            Tried::Lost { covers: theirs } => {
                self.promised = covers.filter(|_| theirs);
                self.earliest = now + FIGURES_PAUSE;
            }
            Tried::Throttled(wait) => {
                self.earliest = now + wait;
                self.throttled += 1;
            }
            Tried::Failed => self.earliest = now + TRY_AGAIN,
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
        assert_eq!(clock.due(), Some(start + GATHER), "another change does not put it off");
        assert_eq!(clock.begin(), Some(at(2)));
        assert_eq!(clock.due(), None, "one try at a time");
        clock.changed(at(3), start + 55 * MILLI);
        clock.tried(Tried::Published, start + 60 * MILLI);
        assert_eq!(clock.due(), Some(start + 60 * MILLI + FIGURES_PAUSE), "what came meanwhile is not shown yet");
        clock.begin();
        clock.tried(Tried::Published, start + 1100 * MILLI);
        assert_eq!(clock.due(), Some(start + 1100 * MILLI + EVERY), "nothing is left to show");
    }

    #[tokio::test]
    async fn who_loses_the_claim_waits_for_what_was_promised_and_no_longer_than_a_second() {
        let start = Instant::now();
        let mut kept = Clock::new(start);
        kept.changed(at(1), start);
        kept.begin();
        kept.tried(Tried::Lost { covers: true }, start);
        assert_eq!(kept.due(), Some(start + FIGURES_PAUSE), "a promise can be broken");
        kept.refreshed(start + 5 * MILLI);
        assert_eq!(kept.due(), Some(start + 5 * MILLI + EVERY));

        let mut newer = Clock::new(start);
        newer.changed(at(2), start);
        newer.begin();
        newer.tried(Tried::Lost { covers: false }, start);
        newer.refreshed(start + 5 * MILLI);
        assert_eq!(newer.due(), Some(start + 5 * MILLI + FIGURES_PAUSE), "those figures may be older than the change");
    }

    #[tokio::test]
    async fn a_change_after_the_promise_is_not_covered_by_it() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.changed(at(1), start);
        clock.begin();
        clock.tried(Tried::Lost { covers: true }, start);
        clock.changed(at(2), start + MILLI);
        clock.refreshed(start + 2 * MILLI);
        assert_eq!(clock.due(), Some(start + 2 * MILLI + FIGURES_PAUSE));
    }

    #[tokio::test]
    async fn figures_yield_and_survive_failures() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.changed(at(1), start);
        clock.begin();
        clock.tried(Tried::Throttled(300 * MILLI), start);
        assert_eq!(clock.due(), Some(start + 300 * MILLI));
        clock.begin();
        clock.tried(Tried::Failed, start + 300 * MILLI);
        assert_eq!(clock.due(), Some(start + 300 * MILLI + TRY_AGAIN));
    }

    #[tokio::test]
    async fn f71_figures_that_are_overdue_yield_twice_and_then_no_more() {
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
        assert_eq!(clock.urgency(start + OVERDUE * 3), Urgency::Usual, "the first attempt after figures yields");
    }
}
