//! What browsers may send, what they are told, and that the published description says the same.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use publisher::TenantId;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::*;
use crate::engine::{Outage, Position};
use crate::metrics::BAD_MESSAGE_CODES;
use crate::socket::close::{CloseReason, FullReason};
use crate::socket::dialect::{Dialect, Outgoing};
use crate::socket::frame::tests::client_reads;

/// Every metric of a refused message has been there since the start.
#[test]
fn every_code_of_a_bad_message_has_its_metric() {
    let malformed = BadMessage::Malformed { field: "event", rule: "must be a string, once" };
    assert_eq!([BadMessage::UnknownEvent, malformed].map(|bad| bad.code()), BAD_MESSAGE_CODES);
}

fn refusal(text: &str) -> BadMessage {
    ClientMessage::parse(text).expect_err(text)
}

fn join(data: &Value) -> JoinRequest {
    match ClientMessage::parse(&json!({"event": "join", "data": data}).to_string()).unwrap() {
        ClientMessage::Join(request) => request,
        other => panic!("not a join: {other:?}"),
    }
}

#[test]
fn b31_b32_b33_b37_refusals_name_the_field_and_repeat_nothing() {
    let deep = format!(r#"{{"event":{}1{}}}"#, "[".repeat(4000), "]".repeat(4000));
    let rows = [
        ("", "message"),
        ("[]", "message"),
        ("null", "message"),
        (r#""x""#, "message"),
        (r#"["ping"]"#, "message"),
        ("\u{feff}{\"event\":\"ping\"}", "message"),
        (r#"{"event":"ping"} {"event":"ping"}"#, "message"),
        (r#"{"event":"ping"}x"#, "message"),
        (deep.as_str(), "event"),
        ("{}", "event"),
        (r#"{"event":1}"#, "event"),
        (r#"{"event":"ping","event":"leave"}"#, "event"),
        (r#"{"event":"join"}"#, "data"),
        (r#"{"event":"join","data":["t1"]}"#, "data"),
        (r#"{"event":"join","data":{}}"#, "data.tenantId"),
        (r#"{"event":"join","data":{"tenantId":7}}"#, "data.tenantId"),
        (r#"{"event":"join","data":{"tenantId":"t1","tenantId":"t2"}}"#, "data.tenantId"),
        (r#"{"event":"join","data":{"tenantId":"t1","token":5}}"#, "data.token"),
    ];
    for (text, field) in rows {
        let refused = refusal(text);
        assert_eq!(refused.code(), "bad_message", "{text}");
        assert!(refused.to_string().starts_with(&format!("{field}: ")), "{text}: {refused}");
    }
    let unknown = refusal(r#"{"event":"<script>"}"#);
    assert_eq!((unknown.code(), unknown.to_string().contains("script")), ("unknown_event", false));
}

#[test]
fn b34_b35_a_position_is_a_number_and_its_epoch_or_none() {
    for bad in ["-1", "1.5", "1e400", "9007199254740993", "18446744073709551616", r#""41""#, "null"] {
        let text = format!(r#"{{"event":"join","data":{{"tenantId":"t1","epoch":"e","lastSeq":{bad}}}}}"#);
        assert!(refusal(&text).to_string().starts_with("data.lastSeq: "), "{bad}");
    }
    // What was sent can't choose what is complained of.
    let text = r#"{"event":"join","data":{"tenantId":"t1","epoch":"e","lastSeq":"a field `token` x"}}"#;
    assert!(refusal(text).to_string().starts_with("data.lastSeq: "));
    let long = "e".repeat(10_000);
    for bad in [json!(""), json!(long), json!(7), json!(null), json!("two words")] {
        let text = json!({"event": "join", "data": {"tenantId": "t1", "lastSeq": 1, "epoch": bad}}).to_string();
        assert!(refusal(&text).to_string().starts_with("data.epoch: "), "{bad}");
    }
    assert_eq!(join(&json!({"tenantId": "t1", "lastSeq": 41})).resume, None, "a number of no epoch");
    let resume = join(&json!({"tenantId": "t1", "lastSeq": 41, "epoch": "e1", "lastId": "id-41", "new": true})).resume;
    let id = Some("id-41".parse().unwrap());
    assert_eq!(resume, Some(Position { epoch: "e1".parse().unwrap(), seq: 41, id }));
    let resume = join(&json!({"tenantId": "t1", "lastSeq": 41, "epoch": "e1", "lastId": "no id of ours"})).resume;
    assert_eq!(resume.unwrap().id, None);
}

/// What the gateway's own client reads.
fn native(outgoing: &Outgoing<'_>) -> Bytes {
    Dialect::Native.encode(outgoing)
}

/// The one JSON message of some frames, without its timestamp, which must be RFC 3339 in UTC.
fn told(frames: &[u8]) -> Value {
    let text = client_reads(frames).remove(0).into_text().unwrap();
    let mut message: Value = serde_json::from_str(&text).unwrap();
    let timestamp = message.as_object_mut().unwrap().remove("timestamp").unwrap();
    let timestamp = OffsetDateTime::parse(timestamp.as_str().unwrap(), &Rfc3339).unwrap();
    assert!(timestamp.offset().is_utc());
    message
}

#[test]
fn messages_are_what_the_protocol_says() {
    let acorn: TenantId = "acorn".parse().unwrap();
    let head = Position { epoch: "e1".parse().unwrap(), seq: 7, id: None };
    let outage = Outage { reason: "redis", since: time::macros::datetime!(2026-11-24 12:04:05 UTC) };
    let rows = [
        (
            joined(&acorn, &head, true, None, 30),
            json!({"type": "joined", "data": {"tenantId": "acorn", "epoch": "e1", "seq": 7, "recovered": true,
                   "heartbeatSeconds": 30, "metrics": null, "payments": null}}),
        ),
        (left(&acorn), json!({"type": "left", "data": {"tenantId": "acorn"}})),
        (
            resync(&head, None),
            json!({"type": "resync", "data": {"epoch": "e1", "seq": 7, "metrics": null, "payments": null}}),
        ),
        (heartbeat(Some(&head)), json!({"type": "heartbeat", "data": {"epoch": "e1", "seq": 7}})),
        (heartbeat(None), json!({"type": "heartbeat", "data": {"epoch": null, "seq": null}})),
        (token_expiring(60), json!({"type": "token_expiring", "data": {"expiresInSeconds": 60}})),
        (degraded(&outage), json!({"type": "degraded", "data": {"reason": "redis", "since": "2026-11-24T12:04:05Z"}})),
        (disabled(), json!({"type": "disabled", "data": {"pollSeconds": 30}})),
        (
            refused(&BadMessage::UnknownEvent),
            json!({"type": "error", "data": {"code": "unknown_event", "message": "event: must be one of join, leave, ping"}}),
        ),
    ];
    for (message, expected) in rows {
        assert_eq!(told(&native(&Outgoing::Message(&message))), expected);
    }
    let regular = native(&Outgoing::Heartbeat(&heartbeat(Some(&head))));
    assert_eq!(told(&regular), json!({"type": "heartbeat", "data": {"epoch": "e1", "seq": 7}}));
    assert!(matches!(client_reads(&regular)[..], [_, tokio_tungstenite::tungstenite::Message::Ping(_)]));
    let restored = told(&native(&Outgoing::Message(&restored(&outage))));
    assert_eq!((&restored["type"], &restored["data"]["reason"]), (&json!("restored"), &json!("redis")));
}

/// One of each.
fn reasons() -> Vec<CloseReason> {
    vec![
        CloseReason::GoingAway,
        CloseReason::Framing("x"),
        CloseReason::Binary,
        CloseReason::NotUtf8,
        CloseReason::TooBig(1),
        CloseReason::Restart { retry_in_ms: 5 },
        CloseReason::Full(FullReason::Gateway),
        CloseReason::BadMessages,
        CloseReason::Unauthorized("x"),
        CloseReason::TokenExpired,
        CloseReason::Kicked,
        CloseReason::UnusableClaim,
        CloseReason::WrongTenant,
        CloseReason::JoinTimeout(10),
        CloseReason::HeartbeatMissed,
        CloseReason::SlowConsumer,
        CloseReason::TooManyMessages,
        CloseReason::Disabled,
    ]
}

#[test]
fn a_farewell_ends_with_the_close_and_paces_the_return_where_it_must() {
    for reason in reasons() {
        let messages = client_reads(&native(&Outgoing::Farewell(&reason)));
        let close = messages.last().unwrap();
        assert!(
            matches!(close, tokio_tungstenite::tungstenite::Message::Close(Some(frame)) if u16::from(frame.code) == reason.code())
        );
        if reason.explains() {
            let error = told(&native(&Outgoing::Farewell(&reason)));
            assert_eq!(error["data"]["code"], reason.label());
            let paced = matches!(reason.code(), 1012 | 1013);
            assert_eq!(error["data"]["retryInMs"].is_u64(), paced, "{reason}");
        }
    }
}

#[test]
fn the_published_description_has_every_message_and_every_close_code() {
    let asyncapi = include_str!("../../asyncapi.json");
    let description: Value = serde_json::from_str(asyncapi).unwrap();
    let messages = description["components"]["messages"].as_object().unwrap();
    let ours = ["joined", "left", "resync", "heartbeat", "token_expiring", "degraded", "restored", "disabled", "error"];
    let events = publisher::DashboardEventType::ALL.map(|kind| kind.as_str());
    for name in ours.iter().chain(&events).chain(&["join", "leave", "ping"]) {
        assert!(messages.contains_key(*name), "{name} is not in asyncapi.json");
    }
    for reason in reasons() {
        assert!(asyncapi.contains(&reason.code().to_string()), "{} is not in asyncapi.json", reason.code());
    }
}
