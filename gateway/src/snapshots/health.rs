//! What the gateway knows of the database's health: after a failure, one query at a time finds out whether the trouble is over.

use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::part::{ByPart, Part};

/// Nothing is queried for this time after a failure of the connection.
const PAUSE: Duration = Duration::from_secs(1);
/// A part pauses for this time when its view is missing: the view has to be created first.
const MISSING_PAUSE: Duration = Duration::from_secs(30);

/// Whether the database can be reached, and which of the views are missing.
#[derive(Debug)]
pub(super) struct Health {
    connection: Mutex<Connection>,
    /// The views that do not exist, or that the gateway may not read, and when each is looked for again.
    missing: ByPart<Mutex<Option<Instant>>>,
    /// The longest time that a probe takes.
    probe_limit: Duration,
}

#[derive(Debug)]
enum Connection {
    Good,
    /// Nothing is queried until this moment.
    Pausing {
        until: Instant,
    },
    /// One query is under way to find out whether the database is back.
    Probing {
        since: Instant,
    },
}

impl Health {
    pub fn new(probe_limit: Duration) -> Self {
        Self { connection: Mutex::new(Connection::Good), missing: ByPart::default(), probe_limit }
    }

    /// Whether the last query reached the database.
    pub fn is_good(&self) -> bool {
        matches!(*self.connection(), Connection::Good)
    }

    /// Whether a query has a chance now.
    pub fn is_worth_a_query(&self) -> bool {
        self.connection().is_worth_a_query(self.probe_limit)
    }

    /// The same, for the caller that queries then: while the database is away, one caller at a time may.
    pub fn may_query(&self) -> bool {
        let mut connection = self.connection();
        let may = connection.is_worth_a_query(self.probe_limit);
        if may && !matches!(*connection, Connection::Good) {
            *connection = Connection::Probing { since: Instant::now() };
        }
        may
    }

    /// A query has reached the database.
    pub fn is_reachable(&self) {
        let mut connection = self.connection();
        if !matches!(*connection, Connection::Good) {
            info!("snapshots can be read");
            *connection = Connection::Good;
        }
    }

    /// A query has not reached the database.
    pub fn is_unreachable(&self, error: &dyn Display) {
        let mut connection = self.connection();
        if matches!(*connection, Connection::Good) {
            warn!(%error, "snapshots can't be read, dashboards start without");
        }
        *connection = Connection::Pausing { until: Instant::now() + PAUSE };
    }

    /// Whether the part's view was missing when it was last looked for.
    pub fn lacks_view(&self, part: Part) -> bool {
        self.missing(part).is_some()
    }

    /// Whether the part's view is missing, and it is too early to look for it again.
    pub fn pauses(&self, part: Part) -> bool {
        self.missing(part).is_some_and(|until| until > Instant::now())
    }

    /// Whether the caller may query the part's view. While the view is missing, one caller at a time looks for it.
    pub fn may_query_view(&self, part: Part) -> bool {
        let now = Instant::now();
        let mut missing = self.missing(part);
        let Some(until) = &mut *missing else { return true };
        let may = *until <= now;
        if may {
            *until = now + MISSING_PAUSE;
        }
        may
    }

    /// The part's view is missing.
    pub fn view_is_missing(&self, view: Part, error: &dyn Display) {
        if self.missing(view).replace(Instant::now() + MISSING_PAUSE).is_none() {
            warn!(%view, %error, "view is missing, this part of every snapshot is null");
        }
    }

    /// The part's view was read, or failed for one tenant.
    pub fn view_exists(&self, view: Part) {
        if self.missing(view).take().is_some() {
            info!(%view, "view is there again");
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn missing(&self, part: Part) -> MutexGuard<'_, Option<Instant>> {
        self.missing.of(part).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn is_worth_a_query(&self, probe_limit: Duration) -> bool {
        let now = Instant::now();
        match *self {
            Self::Good => true,
            Self::Pausing { until } => until <= now,
            // A probe may have been dropped before its end.
            Self::Probing { since } => since + probe_limit <= now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE_LIMIT: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_one_query_at_a_time_finds_out() {
        let health = Health::new(PROBE_LIMIT);
        assert!(health.is_good() && health.may_query() && health.may_query());
        health.is_unreachable(&"away");
        assert!(!health.is_good() && !health.is_worth_a_query());
        tokio::time::advance(PAUSE).await;
        assert!(health.is_worth_a_query() && health.may_query());
        assert!(!health.may_query(), "a probe is under way");
        tokio::time::advance(PROBE_LIMIT).await;
        assert!(health.may_query(), "the probe was dropped");
        health.is_reachable();
        assert!(health.is_good() && health.may_query() && health.may_query());
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_view_pauses_its_own_part() {
        let health = Health::new(PROBE_LIMIT);
        health.view_is_missing(Part::Metrics, &"no such view");
        assert!(health.pauses(Part::Metrics) && !health.may_query_view(Part::Metrics));
        assert!(!health.pauses(Part::Payments) && health.may_query_view(Part::Payments));
        tokio::time::advance(MISSING_PAUSE).await;
        assert!(!health.pauses(Part::Metrics) && health.lacks_view(Part::Metrics));
        assert!(health.may_query_view(Part::Metrics));
        assert!(!health.may_query_view(Part::Metrics), "one caller looks");
        health.view_exists(Part::Metrics);
        assert!(health.may_query_view(Part::Metrics) && !health.lacks_view(Part::Metrics));
    }
}
