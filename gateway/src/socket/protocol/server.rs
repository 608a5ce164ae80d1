//! What browsers are told by the gateway itself. Events are not among it: their JSON comes from the publisher and is passed on.

use publisher::TenantId;
use publisher::internals::Epoch;
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::client::BadMessage;
use crate::engine::{Outage, Position};
use crate::socket::close::CloseReason;
use crate::socket::snapshot::Snapshot;

/// A message of the gateway's own as JSON, the same in every dialect.
#[derive(Debug)]
pub(crate) struct ServerMessage {
    pub(crate) json: Vec<u8>,
}

#[derive(Serialize)]
struct Envelope<D> {
    r#type: &'static str,
    timestamp: String,
    data: D,
}

/// Stamped with the time.
fn message<D: Serialize>(r#type: &'static str, data: D) -> ServerMessage {
    let envelope = Envelope { r#type, timestamp: rfc3339(OffsetDateTime::now_utc()), data };
    ServerMessage { json: serde_json::to_vec(&envelope).expect("plain structs with string keys serialise") }
}

fn rfc3339(time: OffsetDateTime) -> String {
    // Milliseconds, as JavaScript has them.
    let time = time.replace_millisecond(time.millisecond()).unwrap_or(time);
    time.format(&Rfc3339).expect("years 0 to 9999 can be formatted")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(super) struct Joined<'a> {
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
pub(crate) struct SnapshotData<'a> {
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
pub(crate) fn joined(
    tenant: &TenantId,
    head: &Position,
    recovered: bool,
    snapshot: Option<&Snapshot>,
    heartbeat_seconds: u64,
) -> ServerMessage {
    let Position { epoch, seq, .. } = head;
    let snapshot = snapshot.into();
    let data = Joined { tenant_id: tenant, epoch, seq: *seq, recovered, heartbeat_seconds, snapshot };
    message("joined", data)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(super) struct Left<'a> {
    #[cfg_attr(test, ts(type = "string"))]
    tenant_id: &'a TenantId,
}

/// `left`: the socket is in no room.
pub(crate) fn left(tenant: &TenantId) -> ServerMessage {
    message("left", Left { tenant_id: tenant })
}

#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(super) struct Resync<'a> {
    #[cfg_attr(test, ts(type = "string"))]
    epoch: &'a Epoch,
    seq: u64,
    #[serde(flatten)]
    snapshot: SnapshotData<'a>,
}

/// `resync`: events were missed beyond recovery; the dashboard starts anew.
pub(crate) fn resync(head: &Position, snapshot: Option<&Snapshot>) -> ServerMessage {
    message("resync", Resync { epoch: &head.epoch, seq: head.seq, snapshot: snapshot.into() })
}

#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(super) struct Heartbeat<'a> {
    #[cfg_attr(test, ts(type = "string | null"))]
    epoch: Option<&'a Epoch>,
    seq: Option<u64>,
}

/// `heartbeat`: the position of the tenant's stream, as far as it was delivered; none when the socket is in no room.
pub(crate) fn heartbeat(head: Option<&Position>) -> ServerMessage {
    message("heartbeat", Heartbeat { epoch: head.map(|head| &head.epoch), seq: head.map(|head| head.seq) })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(super) struct TokenExpiring {
    expires_in_seconds: u64,
}

/// `token_expiring`: time to renew.
pub(crate) fn token_expiring(expires_in_seconds: u64) -> ServerMessage {
    message("token_expiring", TokenExpiring { expires_in_seconds })
}

#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(super) struct Health {
    reason: &'static str,
    since: String,
}

/// `degraded`: events may be missing from now on.
pub(crate) fn degraded(outage: &Outage) -> ServerMessage {
    message("degraded", Health { reason: outage.reason, since: rfc3339(outage.since) })
}

/// `restored`: from `since` on, events are complete again.
pub(crate) fn restored(outage: &Outage) -> ServerMessage {
    message("restored", Health { reason: outage.reason, since: rfc3339(OffsetDateTime::now_utc()) })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(super) struct Disabled {
    poll_seconds: u64,
}

/// `disabled`: ask again in so many seconds.
pub(crate) fn disabled() -> ServerMessage {
    message("disabled", Disabled { poll_seconds: 30 })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(super) struct ErrorData<'a> {
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
pub(crate) fn refused(bad: &BadMessage) -> ServerMessage {
    error(ErrorData { code: bad.code(), message: &bad.to_string(), retry_in_ms: None, tenants: None })
}

/// `error` for a handshake whose token is good for several tenants, without a choice among them.
pub(crate) fn tenant_required(tenants: &[TenantId]) -> ServerMessage {
    let message = "the token is good for several tenants: join one of them";
    error(ErrorData { code: "tenant_required", message, retry_in_ms: None, tenants: Some(tenants) })
}

/// `error` before the socket closes; `None` where the client needs or gets no explanation.
pub(crate) fn explanation(reason: &CloseReason) -> Option<ServerMessage> {
    let text = reason.to_string();
    let retry_in_ms = reason.retry_in_ms();
    reason.explains().then(|| error(ErrorData { code: reason.label(), message: &text, retry_in_ms, tenants: None }))
}

fn error(data: ErrorData) -> ServerMessage {
    message("error", data)
}
