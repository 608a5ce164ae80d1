//! What travels on a tenant's channel and lies in its log: a head line for the gateway, then JSON for the browser.

use std::{fmt, str::FromStr, sync::Arc};

use bytes::Bytes;

use crate::{
    event::{DashboardEvent, EventId},
    event_type::DashboardEventType,
};

/// One event on its way: `<epoch> <seq> <id> <previous-id> <type> <published-µs>\n<json>`.
///
/// A gateway reads the head line and forwards the JSON untouched, so that an event is serialised once in the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The life of the counter that `seq` is of.
    pub epoch: Epoch,
    /// The event's number within the epoch, from 1.
    pub seq: u64,
    /// The event's id.
    pub id: EventId,
    /// The id of the event numbered `seq - 1`, a link by which a rewound counter is noticed; `None` for the first of an epoch.
    pub previous: Option<EventId>,
    /// The event's kind, for metrics and for nothing else.
    pub event_type: MessageType,
    /// When it was published: microseconds since 1970 on Redis' clock.
    pub published_micros: u64,
    /// `{"seq":n,"id":…,"type":…,"timestamp":…,"data":{…}}`, valid UTF-8.
    pub json: Bytes,
}

/// The kind of an event as the head line names it. A later version may publish kinds that this one doesn't know, and browsers
/// get them all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageType {
    /// One of the kinds that this version knows.
    Known(DashboardEventType),
    /// Another: 1 to 64 of `[A-Za-z0-9_.:-]`.
    Other(Arc<str>),
}

/// The text is no kind of event, of whatever version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 64 of [A-Za-z0-9_.:-]")]
pub struct InvalidMessageType;

/// Names the life of a tenant's counter: 1 to 64 visible ASCII characters, otherwise opaque.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Epoch(Arc<str>);

/// The text is no epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 64 visible ASCII characters")]
pub struct InvalidEpoch;

/// What came from the channel or the log is no message of ours; the text names the part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct MalformedMessage(&'static str);

/// Longer than any head line can be: two ids, an epoch, a type, two numbers.
const MAX_HEAD_BYTES: usize = 320;

/// Stands in the head line for "no previous event"; no event can have this id.
const NO_PREVIOUS: &str = "-";

impl Message {
    /// Whether a `metrics_updated` has figures, which are null when events were condensed without them.
    pub fn has_figures(&self) -> bool {
        const NULL: &[u8] = b"\"totalOutstanding\":null";
        // A quotation mark in a text has a backslash before it: no text holds these bytes.
        !self.json.windows(NULL.len()).any(|bytes| bytes == NULL)
    }

    /// Completes an event with its place, as the publish script does; for the engine that has no Redis.
    pub fn new(
        event: &DashboardEvent,
        epoch: Epoch,
        seq: u64,
        previous: Option<EventId>,
        published_micros: u64,
    ) -> Self {
        let json = format!("{{\"seq\":{seq},{}}}", event.body()).into();
        Self {
            epoch,
            seq,
            id: event.id.clone(),
            previous,
            event_type: MessageType::Known(event.event_type()),
            published_micros,
            json,
        }
    }

    /// Reads a message. `json` shares the memory of `raw`.
    pub fn parse(raw: Bytes) -> Result<Self, MalformedMessage> {
        let head_bytes =
            raw.iter().take(MAX_HEAD_BYTES).position(|b| *b == b'\n').ok_or(MalformedMessage("no head line"))?;
        let text = std::str::from_utf8(&raw).map_err(|_| MalformedMessage("not UTF-8"))?;
        let (head, json) = (&text[..head_bytes], &text[head_bytes + 1..]);

        let mut parts = head.split(' ');
        let mut part = |name| parts.next().ok_or(MalformedMessage(name));
        let epoch = part("epoch")?.parse().map_err(|_| MalformedMessage("epoch"))?;
        let seq_text = part("seq")?;
        let seq = number(seq_text).filter(|seq| *seq > 0).ok_or(MalformedMessage("seq"))?;
        let id = part("id")?.parse().map_err(|_| MalformedMessage("id"))?;
        let previous = match part("previous id")? {
            NO_PREVIOUS => None,
            id => Some(id.parse().map_err(|_| MalformedMessage("previous id"))?),
        };
        let event_type = part("type")?.parse().map_err(|_| MalformedMessage("type"))?;
        let published_micros = number(part("published")?).ok_or(MalformedMessage("published"))?;
        if parts.next().is_some() {
            return Err(MalformedMessage("head line too long"));
        }
        // The browser must be told the number that the gateway counts by.
        let numbered = json.strip_prefix("{\"seq\":").and_then(|rest| rest.strip_prefix(seq_text));
        if !numbered.is_some_and(|rest| rest.starts_with(',') && rest.ends_with('}')) {
            return Err(MalformedMessage("json"));
        }
        let json = raw.slice(head_bytes + 1..);
        Ok(Self { epoch, seq, id, previous, event_type, published_micros, json })
    }

    /// The inverse of [`parse`](Self::parse).
    pub fn encode(&self) -> Bytes {
        let previous = self.previous.as_ref().map_or(NO_PREVIOUS, EventId::as_str);
        let Self { epoch, seq, id, event_type, published_micros, .. } = self;
        let mut raw = format!("{epoch} {seq} {id} {previous} {event_type} {published_micros}\n").into_bytes();
        raw.extend_from_slice(&self.json);
        raw.into()
    }
}

/// Plain decimal digits, as the script writes them: no sign, no leading zero.
fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

impl MessageType {
    /// The name on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(known) => known.as_str(),
            Self::Other(name) => name,
        }
    }
}

impl FromStr for MessageType {
    type Err = InvalidMessageType;

    fn from_str(raw: &str) -> Result<Self, InvalidMessageType> {
        if let Ok(known) = raw.parse() {
            return Ok(Self::Known(known));
        }
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"_.:-".contains(&b);
        let valid = (1..=64).contains(&raw.len()) && raw.bytes().all(is_plain);
        valid.then(|| Self::Other(raw.into())).ok_or(InvalidMessageType)
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Epoch {
    /// The epoch as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Epoch {
    type Err = InvalidEpoch;

    fn from_str(raw: &str) -> Result<Self, InvalidEpoch> {
        let valid = (1..=64).contains(&raw.len()) && raw.bytes().all(|b| b.is_ascii_graphic());
        valid.then(|| Self(raw.into())).ok_or(InvalidEpoch)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "e-1 7 id7 id6 payment_received 1764000000000000\n{\"seq\":7,\"id\":\"id7\"}";

    #[test]
    fn a_message_is_read_without_copying_its_json() {
        let raw = Bytes::from_static(GOOD.as_bytes());
        let message = Message::parse(raw.clone()).expect("a good message");
        assert_eq!((message.epoch.as_str(), message.seq, message.id.as_str()), ("e-1", 7, "id7"));
        assert_eq!(message.previous.as_ref().map(EventId::as_str), Some("id6"));
        assert_eq!(message.json.as_ptr(), raw[raw.len() - message.json.len()..].as_ptr());
        assert_eq!(message.encode(), raw);
    }

    #[test]
    fn anything_else_is_malformed_and_says_where() {
        for (bad, part) in [
            ("", "no head line"),
            ("e 1 a - payment_received 1", "no head line"),
            (&format!("{} 1 a - payment_received 1\n{{\"seq\":1,}}", "e".repeat(65)), "epoch"),
            ("e 0 a - payment_received 1\n{\"seq\":0,}", "seq"),
            ("e 07 a - payment_received 1\n{\"seq\":07,}", "seq"),
            ("e +7 a - payment_received 1\n{\"seq\":+7,}", "seq"),
            ("e 1.7e+15 a - payment_received 1\n{\"seq\":1,}", "seq"),
            ("e 1 - - payment_received 1\n{\"seq\":1,}", "id"),
            ("e 1 a b:c payment_received 1\n{\"seq\":1,}", "previous id"),
            ("e 1 a - pay*ment 1\n{\"seq\":1,}", "type"),
            (&format!("e 1 a - {} 1\n{{\"seq\":1,}}", "p".repeat(65)), "type"),
            ("e 1 a - payment_received 1.7e+15\n{\"seq\":1,}", "published"),
            ("e 1 a - payment_received 1 x\n{\"seq\":1,}", "head line too long"),
            ("e  1 a - payment_received 1\n{\"seq\":1,}", "seq"),
            ("e 1 a - payment_received 1\n{\"seq\":12,}", "json"),
            ("e 1 a - payment_received 1\n", "json"),
        ] {
            assert_eq!(Message::parse(Bytes::copy_from_slice(bad.as_bytes())), Err(MalformedMessage(part)), "{bad:?}");
        }
        let not_utf8 = Bytes::from_static(b"e 1 a - payment_received 1\n{\"seq\":1,\"\xff\"}");
        assert_eq!(Message::parse(not_utf8), Err(MalformedMessage("not UTF-8")));
    }

    #[test]
    fn a_kind_of_a_later_version_is_read_and_written_as_it_is() {
        let raw = Bytes::from_static(b"e 1 a - refund_issued.v2 1\n{\"seq\":1,}");
        let message = Message::parse(raw.clone()).expect("a good head line");
        assert_eq!(message.event_type, MessageType::Other("refund_issued.v2".into()));
        assert_eq!(message.encode(), raw);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(raw: Vec<u8>) {
            let _ = Message::parse(raw.into());
        }

        #[test]
        fn a_damaged_message_never_panics(at in 0..GOOD.len(), byte: u8) {
            let mut raw = GOOD.as_bytes().to_vec();
            raw[at] = byte;
            let _ = Message::parse(raw.into());
        }
    }
}
