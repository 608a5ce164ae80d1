//! The messages of the wire protocol: what browsers send, parsed once, and what they are told (design §3).

use std::borrow::Cow;

use bytes::Bytes;
use publisher::internals::Epoch;
use publisher::{EventId, TenantId};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::close::CloseReason;
use super::frame;
use crate::engine::{Outage, Position};
use crate::socket::snapshot::Snapshot;

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
    /// What the browser has seen, when it resumes.
    pub resume: Option<Position>,
}

/// A message that is refused; the socket stays open.
#[derive(Debug, thiserror::Error)]
pub enum BadMessage {
    /// Not one of the three events.
    #[error("event: must be one of join, leave, ping")]
    UnknownEvent,
    /// Not what the protocol asks for: which field, and the rule. Nothing of the message is repeated.
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
struct JoinData<'a> {
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
        // An id that none of ours can be is as good as none: the number and the epoch decide.
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

#[derive(Serialize)]
struct ServerMessage<D> {
    r#type: &'static str,
    timestamp: String,
    data: D,
}

/// The payload of a message from the gateway itself, stamped with the time.
fn message<D: Serialize>(r#type: &'static str, data: D) -> Vec<u8> {
    let message = ServerMessage { r#type, timestamp: rfc3339(OffsetDateTime::now_utc()), data };
    serde_json::to_vec(&message).expect("plain structs with string keys serialise")
}

fn rfc3339(time: OffsetDateTime) -> String {
    // Milliseconds, as JavaScript has them.
    let time = time.replace_millisecond(time.millisecond()).unwrap_or(time);
    time.format(&Rfc3339).expect("years 0 to 9999 can be formatted")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
struct Joined<'a> {
    #[cfg_attr(test, ts(type = "string"))]
    tenant_id: &'a TenantId,
    #[cfg_attr(test, ts(type = "string"))]
    epoch: &'a Epoch,
    seq: u64,
    recovered: bool,
    heartbeat_seconds: u64,
    #[serde(flatten)]
    snapshot: SnapshotData<'a>,
}

/// What a dashboard starts from; null where there is none.
#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct SnapshotData<'a> {
    #[cfg_attr(test, ts(type = "MetricsUpdated | null"))]
    metrics: Option<&'a RawValue>,
    #[cfg_attr(test, ts(type = "RecentPayment[] | null"))]
    payments: Option<&'a RawValue>,
}

impl<'a> From<Option<&'a Snapshot>> for SnapshotData<'a> {
    fn from(snapshot: Option<&'a Snapshot>) -> Self {
        Self { metrics: snapshot.map(|it| &*it.metrics), payments: snapshot.map(|it| &*it.payments) }
    }
}

/// `joined`: the position from which the live stream goes on, and what the dashboard starts from.
pub fn joined(
    tenant: &TenantId,
    head: &Position,
    recovered: bool,
    snapshot: Option<&Snapshot>,
    heartbeat_seconds: u64,
) -> Bytes {
    let Position { epoch, seq, .. } = head;
    let snapshot = snapshot.into();
    let data = Joined { tenant_id: tenant, epoch, seq: *seq, recovered, heartbeat_seconds, snapshot };
    frame::text(&message("joined", data))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
struct Left<'a> {
    #[cfg_attr(test, ts(type = "string"))]
    tenant_id: &'a TenantId,
}

/// `left`: the socket is in no room.
pub fn left(tenant: &TenantId) -> Bytes {
    frame::text(&message("left", Left { tenant_id: tenant }))
}

#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
struct Resync<'a> {
    #[cfg_attr(test, ts(type = "string"))]
    epoch: &'a Epoch,
    seq: u64,
    #[serde(flatten)]
    snapshot: SnapshotData<'a>,
}

/// `resync`: events were missed beyond recovery; the dashboard starts anew.
pub fn resync(head: &Position, snapshot: Option<&Snapshot>) -> Bytes {
    frame::text(&message("resync", Resync { epoch: &head.epoch, seq: head.seq, snapshot: snapshot.into() }))
}

#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
struct Heartbeat<'a> {
    #[cfg_attr(test, ts(type = "string | null"))]
    epoch: Option<&'a Epoch>,
    seq: Option<u64>,
}

fn heartbeat_payload(head: Option<&Position>) -> Vec<u8> {
    message("heartbeat", Heartbeat { epoch: head.map(|head| &head.epoch), seq: head.map(|head| head.seq) })
}

/// `heartbeat`, the answer to a `ping`; without a position when the socket is in no room.
pub fn heartbeat(head: Option<&Position>) -> Bytes {
    frame::text(&heartbeat_payload(head))
}

/// The regular `heartbeat`, with the Ping that browsers answer by themselves.
pub fn heartbeat_and_ping(head: Option<&Position>) -> Bytes {
    frame::text_and_ping(&heartbeat_payload(head))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
struct TokenExpiring {
    expires_in_seconds: u64,
}

/// `token_expiring`: time to renew.
pub fn token_expiring(expires_in_seconds: u64) -> Bytes {
    frame::text(&message("token_expiring", TokenExpiring { expires_in_seconds }))
}

#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
struct Health {
    reason: &'static str,
    since: String,
}

/// `degraded`: live delivery can't be vouched for.
pub fn degraded(outage: &Outage) -> Bytes {
    frame::text(&message("degraded", Health { reason: outage.reason, since: rfc3339(outage.since) }))
}

/// `restored`: it can again; `since` is from when.
pub fn restored(outage: &Outage) -> Bytes {
    frame::text(&message("restored", Health { reason: outage.reason, since: rfc3339(OffsetDateTime::now_utc()) }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
struct Disabled {
    poll_seconds: u64,
}

/// `disabled`: ask again in so many seconds.
pub fn disabled() -> Bytes {
    frame::text(&message("disabled", Disabled { poll_seconds: 30 }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
struct ErrorData<'a> {
    code: &'a str,
    message: &'a str,
    #[cfg_attr(test, ts(optional))]
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_in_ms: Option<u64>,
    #[cfg_attr(test, ts(optional, type = "string[]"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    tenants: Option<&'a [TenantId]>,
}

/// `error` for a message that is refused.
pub fn refused(bad: &BadMessage) -> Bytes {
    error(ErrorData { code: bad.code(), message: &bad.to_string(), retry_in_ms: None, tenants: None })
}

/// `error` for a token that came with the handshake and is good for several tenants, of which none was chosen.
pub fn tenant_required(tenants: &[TenantId]) -> Bytes {
    let message = "the token is good for several tenants: join one of them";
    error(ErrorData { code: "tenant_required", message, retry_in_ms: None, tenants: Some(tenants) })
}

/// `error` before the socket closes, and the Close itself.
pub fn farewell(reason: &CloseReason) -> Bytes {
    let text = reason.to_string();
    let close = match reason {
        // 1005 says that there was no code, and must not be sent as one (RFC 6455 §7.4.1).
        CloseReason::Client(1005) => frame::empty_close(),
        _ => frame::close(reason.code(), &text),
    };
    if !reason.explains() {
        return close;
    }
    let explanation =
        ErrorData { code: reason.label(), message: &text, retry_in_ms: reason.retry_in_ms(), tenants: None };
    let mut frames = error(explanation).to_vec();
    frames.extend_from_slice(&close);
    frames.into()
}

fn error(data: ErrorData) -> Bytes {
    frame::text(&message("error", data))
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod typescript;
