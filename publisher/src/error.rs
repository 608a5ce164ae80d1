//! What can go wrong, one enum for each boundary at which somebody must act on it.

use crate::event::EventId;

/// At most 64 characters of somebody else's text, none of which can start a new line or move a cursor in a log.
pub fn sanitised(text: &str) -> String {
    let harmless = |c: char| if c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c) { '?' } else { c };
    let mut shown: String = text.chars().take(64).map(harmless).collect();
    if text.chars().nth(64).is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

/// A field of an event breaks its rule. Reads `data.amount: must not be negative`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct InvalidEvent {
    /// The path of the field, `data.amount`; `event` when it is the whole.
    pub field: String,
    /// What the field must be, or what is wrong with it.
    pub rule: String,
}

impl InvalidEvent {
    /// This field breaks this rule.
    pub fn new(field: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { field: field.into(), rule: rule.into() }
    }
}

/// The publisher cannot be built from this configuration. Redis being down is no such error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The URL's scheme or form; the text never contains the URL's password.
    #[error("the Redis URL is unusable: {0}")]
    Url(String),
    /// The prefix of the names in Redis.
    #[error(transparent)]
    Prefix(#[from] crate::names::InvalidPrefix),
    /// A number out of its range.
    #[error("{field} {rule}")]
    Limit {
        /// The field of `PublisherConfig`.
        field: &'static str,
        /// Its rule.
        rule: &'static str,
    },
}

/// Why an event was not, or not surely, published. Billing goes on in every case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Redis cannot be reached, or the tenant is on its way from one server to another. The event was not published.
    #[error("Redis cannot be reached")]
    Unavailable,
    /// Time ran out before an answer came: the event may or may not have been published.
    /// Send the same event (the same id) again; it cannot be shown twice.
    #[error("no answer in time; send event {id} again")]
    Unknown {
        /// The id to send again.
        id: EventId,
    },
    /// `max_in_flight` publishes are waiting already. The event was not published.
    #[error("too many publishes in flight")]
    Overloaded,
    /// Redis said no (`OOM`, `NOPERM` …). The event was not published.
    #[error("Redis refused: {0}")]
    Refused(String),
    /// The event breaks a rule of its own; sending it again cannot help.
    #[error("the event is invalid: {0}")]
    Invalid(#[from] InvalidEvent),
}
