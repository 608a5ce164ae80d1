//! An event: its id, its payload, and how it is read and written.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    event_type::DashboardEventType,
    invalid_event::InvalidEvent,
    payload::{ArrearsAlert, EventsCondensed, InvoiceStatusChanged, MetricsUpdated, PaymentReceived},
    strict,
    tenant::is_plain_id,
    timestamp,
};

/// No event is larger than this, written as JSON. A WebSocket frame, a log entry and a publish stay small with it.
pub const MAX_EVENT_BYTES: usize = 16 * 1024;

/// Names an event for ever; an event is published once for each id. 1 to 64 of `[A-Za-z0-9_-]`, but not `-` alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct EventId(Arc<str>);

/// The text is no event id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 64 of [A-Za-z0-9_-] and not \"-\" alone")]
pub struct InvalidEventId;

impl EventId {
    /// A new id, a UUIDv7: ids sort by the time of their making.
    #[expect(clippy::new_without_default, reason = "a default that differs each time would surprise")]
    pub fn new() -> Self {
        let mut buffer = Uuid::encode_buffer();
        Self(Arc::from(&*Uuid::now_v7().hyphenated().encode_lower(&mut buffer)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EventId {
    type Err = InvalidEventId;

    fn from_str(raw: &str) -> Result<Self, InvalidEventId> {
        // "-" stands for "no previous event" in a message's head line.
        let valid = is_plain_id(raw) && raw != "-";
        valid.then(|| Self(raw.into())).ok_or(InvalidEventId)
    }
}

impl TryFrom<String> for EventId {
    type Error = InvalidEventId;

    fn try_from(raw: String) -> Result<Self, InvalidEventId> {
        raw.parse()
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An event's payload: one variant for each kind, and two for `metrics_updated`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum EventData {
    /// A parent paid.
    PaymentReceived(PaymentReceived),
    /// An invoice went from one status to another.
    InvoiceStatusChanged(InvoiceStatusChanged),
    /// A parent owes money that is overdue.
    ArrearsAlert(ArrearsAlert),
    /// The centre's figures, as a whole.
    MetricsUpdated(MetricsUpdated),
    /// A `metrics_updated` of a centre without figures.
    EventsCondensed(EventsCondensed),
}

impl EventData {
    /// The kind of this payload.
    pub fn event_type(&self) -> DashboardEventType {
        match self {
            Self::PaymentReceived(_) => DashboardEventType::PaymentReceived,
            Self::InvoiceStatusChanged(_) => DashboardEventType::InvoiceStatusChanged,
            Self::ArrearsAlert(_) => DashboardEventType::ArrearsAlert,
            Self::MetricsUpdated(_) | Self::EventsCondensed(_) => DashboardEventType::MetricsUpdated,
        }
    }

    /// Reads the payload of an event of this kind, strictly.
    ///
    /// # Errors
    /// [`InvalidEvent`] names the field and its rule.
    pub fn from_json(event_type: DashboardEventType, raw: &str) -> Result<Self, InvalidEvent> {
        Ok(match event_type {
            DashboardEventType::PaymentReceived => Self::PaymentReceived(strict::from_str("data", raw)?),
            DashboardEventType::InvoiceStatusChanged => Self::InvoiceStatusChanged(strict::from_str("data", raw)?),
            DashboardEventType::ArrearsAlert => Self::ArrearsAlert(strict::from_str("data", raw)?),
            // Figures that are partly null are refused by the rules of figures, which name the field.
            DashboardEventType::MetricsUpdated => match strict::from_str("data", raw) {
                Ok(figures) => Self::MetricsUpdated(figures),
                Err(refused) => Self::EventsCondensed(strict::from_str("data", raw).map_err(|_| refused)?),
            },
        })
    }

    /// Checks what the types alone do not promise: lengths and signs.
    ///
    /// # Errors
    /// [`InvalidEvent`] names the field and its rule.
    pub fn validate(&self) -> Result<(), InvalidEvent> {
        match self {
            Self::PaymentReceived(data) => data.validate(),
            Self::InvoiceStatusChanged(data) => data.validate(),
            Self::ArrearsAlert(data) => data.validate(),
            Self::MetricsUpdated(data) => data.validate(),
            Self::EventsCondensed(data) => data.validate(),
        }
    }
}

impl From<PaymentReceived> for EventData {
    fn from(data: PaymentReceived) -> Self {
        Self::PaymentReceived(data)
    }
}

impl From<InvoiceStatusChanged> for EventData {
    fn from(data: InvoiceStatusChanged) -> Self {
        Self::InvoiceStatusChanged(data)
    }
}

impl From<ArrearsAlert> for EventData {
    fn from(data: ArrearsAlert) -> Self {
        Self::ArrearsAlert(data)
    }
}

impl From<MetricsUpdated> for EventData {
    fn from(data: MetricsUpdated) -> Self {
        Self::MetricsUpdated(data)
    }
}

impl From<EventsCondensed> for EventData {
    fn from(data: EventsCondensed) -> Self {
        Self::EventsCondensed(data)
    }
}

/// An event at a centre, as its dashboards will show it.
///
/// Sending the same event (the same id) again never shows it twice. Send it again when the outcome of a publish is
/// unknown. As JSON it is `{"id","type","timestamp","data"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DashboardEvent {
    /// Names this event for ever.
    pub id: EventId,
    /// When it happened.
    pub timestamp: OffsetDateTime,
    /// What happened.
    pub data: EventData,
}

/// The JSON form for writing.
#[derive(Serialize)]
struct Written<'a> {
    id: &'a EventId,
    #[serde(rename = "type")]
    event_type: DashboardEventType,
    #[serde(with = "timestamp")]
    timestamp: &'a OffsetDateTime,
    data: &'a EventData,
}

/// The JSON form for reading: `data` stays raw until the type, which may come after it, is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read<'a> {
    #[serde(rename = "type")]
    event_type: DashboardEventType,
    #[serde(borrow)]
    data: &'a serde_json::value::RawValue,
    #[serde(default, deserialize_with = "timestamp::optional")]
    timestamp: Option<OffsetDateTime>,
    #[serde(default, deserialize_with = "strict::optional_parsed")]
    id: Option<EventId>,
}

impl DashboardEvent {
    /// An event that happens now, under a new id.
    pub fn new(data: impl Into<EventData>) -> Self {
        Self { id: EventId::new(), timestamp: OffsetDateTime::now_utc(), data: data.into() }
    }

    /// The kind of this event.
    pub fn event_type(&self) -> DashboardEventType {
        self.data.event_type()
    }

    /// Reads `{"type","data","timestamp"?,"id"?}`, strictly: a field that is missing, unknown, given twice, of the
    /// wrong type or against its rule is named in the error.
    ///
    /// # Errors
    /// [`InvalidEvent`] names the field and its rule.
    pub fn from_json(raw: &[u8]) -> Result<Self, InvalidEvent> {
        if raw.len() > MAX_EVENT_BYTES {
            return Err(too_large());
        }
        let raw = std::str::from_utf8(raw).map_err(|_| InvalidEvent::new("event", "must be UTF-8"))?;
        let read: Read<'_> = strict::from_str("", raw)?;
        let event = Self {
            id: read.id.unwrap_or_else(EventId::new),
            timestamp: read.timestamp.unwrap_or_else(OffsetDateTime::now_utc),
            data: EventData::from_json(read.event_type, read.data.get())?,
        };
        event.validate()?;
        Ok(event)
    }

    /// Checks what the types alone do not promise: lengths, signs, and the size of the whole.
    /// [`Publisher`](crate::Publisher) does so before it publishes, [`from_json`](Self::from_json) after it has read.
    ///
    /// # Errors
    /// [`InvalidEvent`] names the field and its rule.
    pub fn validate(&self) -> Result<(), InvalidEvent> {
        self.checked_body().map(drop)
    }

    /// The body of a valid event, so that what is published is serialised once.
    pub(crate) fn checked_body(&self) -> Result<String, InvalidEvent> {
        if !timestamp::is_writable(self.timestamp) {
            return Err(InvalidEvent::new("timestamp", timestamp::YEARS));
        }
        self.data.validate()?;
        let body = self.body();
        if body.len() + 2 > MAX_EVENT_BYTES { Err(too_large()) } else { Ok(body) }
    }

    /// The event as JSON without its braces: `"id":"…","type":"…","timestamp":"…","data":{…}`.
    /// Publishing puts `{"seq":n,` before it and `}` after it; nothing serialises it a second time.
    pub fn body(&self) -> String {
        let mut json = serde_json::to_string(self).expect("plain fields and string keys always serialise");
        json.truncate(json.len() - 1);
        json.remove(0);
        json
    }
}

impl Serialize for DashboardEvent {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { id, timestamp, data } = self;
        Written { id, event_type: self.event_type(), timestamp, data }.serialize(serializer)
    }
}

fn too_large() -> InvalidEvent {
    InvalidEvent::new("event", format!("must be at most {MAX_EVENT_BYTES} bytes of JSON"))
}
