//! The errors at the publisher's two boundaries: connecting and publishing.

use crate::{event::EventId, invalid_event::InvalidEvent, names::InvalidPrefix};

/// The publisher cannot be built from this configuration. A Redis that is down is not among the errors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL's scheme or form is wrong. The text never contains the URL's password.
    #[error("the Redis URL is unusable: {0}")]
    Url(String),
    /// The prefix of the names in Redis breaks its rule.
    #[error(transparent)]
    Prefix(#[from] InvalidPrefix),
    /// A number is out of its range.
    #[error("{field} {rule}")]
    Limit {
        /// The field of `PublisherConfig`.
        field: &'static str,
        /// Its rule.
        rule: &'static str,
    },
}

/// Why an event was not published, or perhaps not. Billing goes on in every case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Redis can't be reached, or the tenant is moving from one server to another. The event was not published.
    #[error("Redis cannot be reached")]
    Unavailable,
    /// Time ran out before an answer came: the event may or may not have been published.
    /// Send the same event (the same id) again; it cannot be shown twice.
    #[error("no answer in time; send event {id} again")]
    Unknown {
        /// The id to send again.
        id: EventId,
    },
    /// `max_in_flight` publishes wait already. The event was not published.
    #[error("too many publishes in flight")]
    Overloaded,
    /// Redis answered with an error, such as `OOM` or `NOPERM`. The event was not published.
    #[error("Redis refused: {0}")]
    Refused(String),
    /// The event breaks a rule. Sending it again can't help.
    #[error("the event is invalid: {0}")]
    Invalid(#[from] InvalidEvent),
}
