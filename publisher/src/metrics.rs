//! Every metric of a publisher. The handles are resolved once, so that a publish looks up no name and no label.

use std::time::Duration;

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};

use crate::{
    error::PublishError,
    outcome::{Outcome, Relayed},
};

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
    /// Resolves the handles. The recorder must have been installed before: handles of no recorder count nothing.
    pub(crate) fn register() -> Self {
        describe_counter!("publisher_events_total", "Events by outcome");
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
