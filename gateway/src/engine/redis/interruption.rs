//! A time in which events may be missing.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use crate::engine::Outage;

/// Interruptions shorter than this are not reported to clients.
const GRACE: Duration = Duration::from_secs(1);

/// From when delivery could not be vouched for until it can be again.
pub struct Interruption {
    /// When the rooms should know.
    due: Instant,
    since: OffsetDateTime,
    told: bool,
}

impl Interruption {
    /// From now on, after a last moment that was vouched for.
    pub fn begin(vouched: Option<Instant>) -> Self {
        let since = OffsetDateTime::now_utc() - vouched.map_or(Duration::ZERO, |at| at.elapsed());
        Self { due: Instant::now() + GRACE, since, told: false }
    }

    /// There was time enough for it to be nothing: the rooms should know at once.
    pub fn is_certain(&mut self) {
        self.due = Instant::now();
    }

    /// Whether it may still turn out to be nothing.
    pub fn is_fresh(&self) -> bool {
        Instant::now() < self.due
    }

    /// What to tell the rooms, once, when they should know.
    pub fn tell(&mut self) -> Option<Outage> {
        let due = !self.told && !self.is_fresh();
        self.told |= due;
        due.then(|| self.outage())
    }

    /// What the rooms were told.
    pub fn told(&self) -> Option<Outage> {
        self.told.then(|| self.outage())
    }

    fn outage(&self) -> Outage {
        Outage { reason: "redis", since: self.since }
    }
}
