//! Every metric of a publisher, resolved once: a publish looks no name and no label up.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::{error::PublishError, outbox::Relayed, publisher::Outcome};

pub(crate) struct PublisherMetrics {
    published: Counter,
    throttled: Counter,
    duplicate: Counter,
    superseded: Counter,
    unavailable: Counter,
    unknown: Counter,
    overloaded: Counter,
    refused: Counter,
    invalid: Counter,
    seconds: Histogram,
}

impl PublisherMetrics {
    /// The recorder must have been installed before: handles of an absent recorder stay mute.
    pub(crate) fn register() -> Self {
        describe_counter!("publisher_events_total", "Events by what became of them");
        describe_histogram!("publisher_publish_seconds", Unit::Seconds, "How long a publish took");
        let events = |outcome: &'static str| counter!("publisher_events_total", "outcome" => outcome);
        Self {
            published: events("published"),
            throttled: events("throttled"),
            duplicate: events("duplicate"),
            superseded: events("superseded"),
            unavailable: events("unavailable"),
            unknown: events("unknown"),
            overloaded: events("overloaded"),
            refused: events("refused"),
            invalid: events("invalid"),
            seconds: histogram!("publisher_publish_seconds"),
        }
    }

    pub(crate) fn publish_ended(&self, result: &Result<Relayed, PublishError>, took: Duration) {
        self.seconds.record(took);
        let counter = match result {
            Ok(Relayed::Outcome(Outcome::Published { .. })) => &self.published,
            Ok(Relayed::Outcome(Outcome::Throttled { .. })) => &self.throttled,
            Ok(Relayed::Outcome(Outcome::Duplicate { .. })) => &self.duplicate,
            Ok(Relayed::Superseded { .. }) => &self.superseded,
            Err(PublishError::Unavailable) => &self.unavailable,
            Err(PublishError::Unknown { .. }) => &self.unknown,
            Err(PublishError::Overloaded) => &self.overloaded,
            Err(PublishError::Refused(_)) => &self.refused,
            Err(PublishError::Invalid(_)) => &self.invalid,
        };
        counter.increment(1);
    }
}

/// What the relay shows; zero on an instance that doesn't lead.
pub(crate) struct RelayMetrics {
    leader: Gauge,
    pending: Gauge,
    lag: Gauge,
    published: Counter,
    condensed: Counter,
}

impl RelayMetrics {
    pub(crate) fn register() -> Self {
        describe_gauge!("relay_leader", "1 where the relay's leader runs");
        describe_gauge!("relay_pending", "Rows of the outbox that wait to be published");
        describe_gauge!("relay_lag_seconds", Unit::Seconds, "Age of the oldest row that waits");
        describe_counter!("relay_published_total", "Rows of the outbox that were published");
        describe_counter!("relay_condensed_total", "Rows of the outbox that were condensed into a metrics_updated");
        Self {
            leader: gauge!("relay_leader"),
            pending: gauge!("relay_pending"),
            lag: gauge!("relay_lag_seconds"),
            published: counter!("relay_published_total"),
            condensed: counter!("relay_condensed_total"),
        }
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(f64::from(u8::from(leads)));
        if !leads {
            self.waiting(0, 0.0);
        }
    }

    pub(crate) fn waiting(&self, rows: i64, lag_seconds: f64) {
        self.pending.set(rows as f64);
        self.lag.set(lag_seconds);
    }

    pub(crate) fn published(&self, rows: usize) {
        self.published.increment(rows as u64);
    }

    pub(crate) fn condensed(&self, rows: usize) {
        self.condensed.increment(rows as u64);
    }
}
