//! What browsers send, parsed once.

use std::borrow::Cow;

use publisher::EventId;
use publisher::internals::Epoch;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::engine::Position;

/// The largest whole number that JavaScript, and so a browser's JSON, holds exactly.
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// What a browser asks for.
#[derive(Debug)]
pub enum ClientMessage {
    /// Join a room, renew the token, or switch rooms.
    Join(JoinRequest),
    /// Leave the room.
    Leave,
    /// Answer with a heartbeat.
    Ping,
}

/// The content of a `join`.
#[derive(Debug)]
pub struct JoinRequest {
    /// As the browser wrote it; parsed when it is compared with the token.
    pub tenant: String,
    /// The token, when it isn't the one known already.
    pub token: Option<String>,
    /// The last event that the browser has seen, when it resumes.
    pub resume: Option<Position>,
}

/// A message that is refused; the socket stays open.
#[derive(Debug, thiserror::Error)]
pub enum BadMessage {
    /// Not one of the three events.
    #[error("event: must be one of join, leave, ping")]
    UnknownEvent,
    /// A field that breaks a rule. The text repeats nothing of the message.
    #[error("{field}: {rule}")]
    Malformed {
        /// The field's path.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

impl BadMessage {
    /// The `code` of the `error` message.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownEvent => "unknown_event",
            Self::Malformed { .. } => "bad_message",
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS), ts(optional_fields))]
pub(super) struct JoinData<'a> {
    #[serde(borrow)]
    tenant_id: Cow<'a, str>,
    #[serde(borrow, default)]
    token: Option<Cow<'a, str>>,
    // `null` is no number: a client that resumes from nothing must leave the field out.
    #[serde(default, deserialize_with = "not_null")]
    last_seq: Option<u64>,
    #[serde(default, deserialize_with = "not_null")]
    epoch: Option<String>,
    #[serde(default)]
    last_id: Option<String>,
}

fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl ClientMessage {
    /// Parses one text message.
    ///
    /// # Errors
    /// [`BadMessage`] names the field and the rule.
    pub fn parse(text: &str) -> Result<Self, BadMessage> {
        let envelope: Envelope = parse(text, "message", |field| match field {
            "event" => Some(("event", "must be a string, once")),
            "data" => Some(("data", "must be given at most once")),
            _ => None,
        })?;
        match &*envelope.event {
            "join" => {
                let data = envelope.data.map_or("null", RawValue::get);
                JoinRequest::parse(data).map(Self::Join)
            }
            "leave" => Ok(Self::Leave),
            "ping" => Ok(Self::Ping),
            _ => Err(BadMessage::UnknownEvent),
        }
    }
}

impl JoinRequest {
    fn parse(data: &str) -> Result<Self, BadMessage> {
        const LAST_SEQ: (&str, &str) = ("data.lastSeq", "must be a whole number from 0 to 2^53-1, once");
        const EPOCH: (&str, &str) = ("data.epoch", "must be a string of 1 to 64 printable characters, once");
        let data: JoinData = parse(data, "data", |field| match field {
            "tenantId" => Some(("data.tenantId", "must be a string, once")),
            "token" => Some(("data.token", "must be a string, at most once")),
            "lastSeq" => Some(LAST_SEQ),
            "epoch" => Some(EPOCH),
            "lastId" => Some(("data.lastId", "must be a string, at most once")),
            _ => None,
        })?;
        let malformed = |(field, rule)| BadMessage::Malformed { field, rule };
        if data.last_seq.is_some_and(|seq| seq > MAX_SAFE_INTEGER) {
            return Err(malformed(LAST_SEQ));
        }
        let epoch = data.epoch.map(|epoch| epoch.parse::<Epoch>().map_err(|_| malformed(EPOCH))).transpose()?;
        // An id that none of ours can be counts as no id: the number and the epoch decide.
        let id = data.last_id.and_then(|id| id.parse::<EventId>().ok());
        // A number without its epoch is a position in no stream.
        let resume = data.last_seq.zip(epoch).map(|(seq, epoch)| Position { epoch, seq, id });
        Ok(Self { tenant: data.tenant_id.into_owned(), token: data.token.map(Cow::into_owned), resume })
    }
}

/// Parses JSON and says which field is wrong, by the path at which serde stopped or the name it complains of.
fn parse<'a, T: Deserialize<'a>>(
    text: &'a str,
    whole: &'static str,
    rule_of: impl Fn(&str) -> Option<(&'static str, &'static str)>,
) -> Result<T, BadMessage> {
    let malformed = |(field, rule)| BadMessage::Malformed { field, rule };
    let not_an_object = (whole, "must be one JSON object with the documented fields");
    // serde would take the fields in order from an array as well.
    if !text.trim_start().starts_with('{') {
        return Err(malformed(not_an_object));
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = serde_path_to_error::deserialize(&mut deserializer);
    let parsed = parsed.and_then(|value| {
        deserializer
            .end()
            .map(|()| value)
            .map_err(|error| serde_path_to_error::Error::new(serde_path_to_error::Track::new().path(), error))
    });
    parsed.map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        // These two stop at the object, and name the field themselves. Other messages quote what was sent.
        let named = ["missing field `", "duplicate field `"].iter().find_map(|start| message.strip_prefix(start));
        let named = named.and_then(|rest| rest.split('`').next());
        malformed(rule_of(named.unwrap_or(&path)).unwrap_or(not_an_object))
    })
}
