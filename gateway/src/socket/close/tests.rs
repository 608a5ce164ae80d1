//! The close codes: as they are published, and as they may be sent.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::socket::dialect::{Dialect, Outgoing};
use crate::socket::frame::tests::client_reads;

/// The codes that `code` can return for reasons of our own, by its source: a new reason needs no change here.
fn own_codes() -> BTreeSet<u64> {
    let source = include_str!("../close.rs");
    let body = source.split_once("fn code(").unwrap().1.split_once("fn label(").unwrap().0;
    let codes = body.split(|letter: char| !letter.is_ascii_digit()).filter_map(|number| number.parse().ok());
    codes.filter(|code| *code >= 1000 && *code != u64::from(CloseReason::Lost.code())).collect()
}

#[test]
fn the_published_close_codes_are_ours_exactly() {
    let asyncapi: Value = serde_json::from_str(include_str!("../../asyncapi.json")).unwrap();
    let channel = &asyncapi["channels"]["dashboard"];
    let published: BTreeSet<_> =
        channel["x-close-codes"].as_array().unwrap().iter().map(|entry| entry["code"].as_u64().unwrap()).collect();
    assert_eq!(published, own_codes());
    let table = channel["description"].as_str().unwrap();
    for code in published {
        assert!(table.contains(&format!("| {code} |")), "{code} is not in the table for people");
    }
}

#[test]
fn a_clients_code_is_echoed() {
    for code in [1000, 1001, 3000, 4999] {
        let messages = client_reads(&Dialect::Native.encode(&Outgoing::Farewell(&CloseReason::Client(code))));
        assert!(
            matches!(&messages[..], [Message::Close(Some(frame))] if u16::from(frame.code) == code),
            "{code} was answered with {messages:?}"
        );
    }
}

/// 1005 stands for "no code" and must never be on the wire (RFC 6455 §7.4.1): `new WebSocket(…).close()` sends none.
#[test]
fn a_close_without_a_code_is_not_answered_with_1005() {
    let frames = Dialect::Native.encode(&Outgoing::Farewell(&CloseReason::Client(1005)));
    assert_eq!(frames[0], 0x88, "a Close and nothing before it");
    let code = frames.get(2..4).map(|code| u16::from_be_bytes([code[0], code[1]]));
    assert!(matches!(code, None | Some(1000)), "{code:?} was sent");
}
