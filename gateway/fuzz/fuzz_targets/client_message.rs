//! What a browser says: a message that is understood says, to any other reader of JSON, what we have understood.
#![cfg_attr(fuzzing, no_main)]

use gateway::socket::protocol::{ClientMessage, JoinRequest};
use serde_json::{Value, json};

/// What JavaScript holds exactly.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

fn check(input: &[u8]) {
    // The frame reader lets nothing else through.
    let Ok(text) = std::str::from_utf8(input) else { return };
    match ClientMessage::parse(text) {
        Ok(ClientMessage::Join(join)) => check_join(text, &join),
        Ok(ClientMessage::Leave) => assert_event(text, "leave"),
        Ok(ClientMessage::Ping) => assert_event(text, "ping"),
        Err(bad) => gateway_fuzz::assert_presentable(&bad.to_string()),
    }
}

/// Another reader may find reasons of its own to refuse what we ignore: a number that is too large, half of a character.
fn assert_event(text: &str, event: &str) {
    if let Ok(message) = serde_json::from_str::<Value>(text) {
        assert_eq!(message["event"], event);
    }
}

fn check_join(text: &str, join: &JoinRequest) {
    assert_event(text, "join");
    if let Ok(message) = serde_json::from_str::<Value>(text) {
        let data = &message["data"];
        assert_eq!(data["tenantId"], *join.tenant);
        assert_eq!(data["token"].as_str(), join.token.as_deref());
        if let Some(resume) = &join.resume {
            assert_eq!((&data["lastSeq"], &data["epoch"]), (&json!(resume.seq), &json!(resume.epoch)));
        }
    }
    if let Some(resume) = &join.resume {
        assert!(resume.seq <= MAX_SAFE_INTEGER, "{}", resume.seq);
    }

    let mut data = json!({ "tenantId": join.tenant, "token": join.token });
    if let Some(resume) = &join.resume {
        data["lastSeq"] = resume.seq.into();
        data["epoch"] = resume.epoch.as_str().into();
        data["lastId"] = json!(resume.id.as_ref().map(|id| id.as_str()));
    }
    let written = json!({ "event": "join", "data": data }).to_string();
    let Ok(ClientMessage::Join(again)) = ClientMessage::parse(&written) else { panic!("not read again: {written}") };
    assert_eq!((&again.tenant, &again.token, &again.resume), (&join.tenant, &join.token, &join.resume));
}

gateway_fuzz::target!(check);
