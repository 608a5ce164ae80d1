//! The two parts of a snapshot, each of which is read from a view of its own.

use std::fmt::{self, Display};

/// A part of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Metrics,
    Payments,
}

impl Display for Part {
    /// The part's view.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Metrics => "dashboard.metrics",
            Self::Payments => "dashboard.recent_payments",
        })
    }
}

/// A value for each part.
#[derive(Debug, Default)]
pub(super) struct ByPart<T> {
    metrics: T,
    payments: T,
}

impl<T> ByPart<T> {
    pub fn of(&self, part: Part) -> &T {
        match part {
            Part::Metrics => &self.metrics,
            Part::Payments => &self.payments,
        }
    }
}
