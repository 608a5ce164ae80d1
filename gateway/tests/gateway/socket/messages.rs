//! B31–B37: messages that are no JSON, or not ours, or say impossible things.

use serde_json::{Value, json};

use crate::harness::{Dashboard, Setup, Token, hostile, payment, tenant};

/// Each text, on a socket without a token, is answered with this error and costs the socket nothing else.
async fn each_is_refused(code: &str, texts: &[String]) {
    let counted = format!("bad_messages {code}");
    hostile(Setup::new(), &[&counted], async |stack, _| {
        for text in texts {
            let mut dashboard = Dashboard::open(stack.addr()).await;
            dashboard.send_text(text).await;
            let shown = &text[..text.floor_char_boundary(80)];
            let error = dashboard.next_answer().await;
            assert_eq!(error.data["code"], code, "{shown:?}: {}", error.raw);
            let message = error.data["message"].as_str().expect("a message for people");
            assert!(message.chars().count() <= 256, "the error echoes too much: {message}");
            assert!(!message.chars().any(char::is_control), "the error echoes control characters: {message:?}");
            dashboard.ping().await;
            dashboard.close().await;
        }
        assert_eq!(stack.refused(&[&counted]).await[&counted], texts.len() as u64);
    })
    .await;
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn b31_not_a_json_object_is_bad_message() {
    let ping = r#"{"event":"ping"}"#;
    let mut bad = texts(&[
        "",
        " ",
        "[]",
        "null",
        "\"x\"",
        "42",
        "true",
        "{}",
        "{",
        "ping",
        r#"{"event":"ping"},"#,
        r#"{'event':'ping'}"#,
    ]);
    bad.extend([
        format!("{ping}x"),
        format!("\u{feff}{ping}"),
        format!("{ping}{ping}"),
        format!("{ping}\n{ping}"),
        r#"["ping"]"#.to_owned(),
    ]);
    each_is_refused("bad_message", &bad).await;
}

#[tokio::test]
async fn b31_fifth_bad_message_is_4400() {
    let counted = ["bad_messages bad_message", "bad_messages unknown_event", "disconnects bad_message"];
    hostile(Setup::new(), &counted, async |stack, bystanders| {
        let mut dashboard = stack.dashboard(&bystanders.victim).await;
        for text in ["null", r#"{"event":"dance"}"#, "[]", ""] {
            dashboard.send_text(text).await;
            dashboard.expect("error").await;
        }
        dashboard.ping().await;
        dashboard.send_text("again").await;
        dashboard.expect_error("bad_message").await;
        assert_eq!(dashboard.close_code().await, 4400);
    })
    .await;
}

#[tokio::test]
async fn b32_deep_nesting_overflows_no_stack() {
    each_is_refused("bad_message", &["[".repeat(16_000), r#"{"event":"#.repeat(1500), r#"{"event":["#.repeat(1400)])
        .await;
    hostile(Setup::new(), &[], async |stack, _| {
        let lists = format!(r#"{{"event":"ping","x":{}{}}}"#, "[".repeat(4000), "]".repeat(4000));
        let objects = format!(r#"{{"event":"ping","x":{}1{}}}"#, r#"{"a":"#.repeat(2000), "}".repeat(2000));
        for deep in [lists, objects] {
            let mut dashboard = Dashboard::open(stack.addr()).await;
            dashboard.send_text(&deep).await;
            // Valid JSON in a field that is ignored: refused for its depth, or ignored with it.
            let answer = dashboard.next_answer().await;
            assert!(matches!(&*answer.kind, "heartbeat" | "error"), "{}", answer.raw);
            dashboard.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn b33_duplicate_keys_are_bad_message() {
    let token = Token::of("t1").sign();
    let bad = [
        r#"{"event":"ping","event":"leave"}"#.to_owned(),
        r#"{"event":"ping","event":"ping"}"#.to_owned(),
        format!(r#"{{"event":"join","data":{{"tenantId":"t1","tenantId":"t2","token":"{token}"}}}}"#),
        format!(r#"{{"event":"join","data":{{"tenantId":"t1","token":"{token}"}},"data":{{"tenantId":"t2"}}}}"#),
        format!(
            r#"{{"event":"join","data":{{"tenantId":"t1","token":"{token}","lastSeq":1,"lastSeq":2,"epoch":"x"}}}}"#
        ),
    ];
    each_is_refused("bad_message", &bad).await;
}

#[tokio::test]
async fn b34_impossible_last_seq_is_an_error_or_not_recovered() {
    hostile(Setup::new(), &["bad_messages bad_message"], async |stack, _| {
        let room = tenant();
        stack.publish(&room, &payment()).await;
        let token = Token::of(room.as_str()).sign();
        let mut current = Dashboard::joined(stack.addr(), room.as_str(), &token).await;
        let epoch = current.cursor().epoch;
        let join = |last_seq: &str| {
            let position = format!(r#""lastSeq":{last_seq},"epoch":"{epoch}""#);
            format!(r#"{{"event":"join","data":{{"tenantId":"{room}","token":"{token}",{position}}}}}"#)
        };
        for wrong in ["-1", "1.5", "1e400", "\"41\"", "18446744073709551616", "true", "[1]", "{}"] {
            current.send_text(&join(wrong)).await;
            let error = current.expect_error("bad_message").await;
            assert!(error.data["message"].as_str().unwrap().contains("lastSeq"), "{wrong}: {}", error.raw);
            current.close().await;
            current = Dashboard::joined(stack.addr(), room.as_str(), &token).await;
        }
        current.close().await;
        // Numbers of another life of the counter: a fresh start, never a recovery. Beyond 2^53 it is no number of ours.
        let possible = ["2", "41", "9007199254740991"].map(|number| (number, false));
        let hardly = ["9007199254740993", "18446744073709551615", "null"].map(|number| (number, true));
        for (ahead, may_be_an_error) in possible.into_iter().chain(hardly) {
            let mut dashboard = Dashboard::open(stack.addr()).await;
            dashboard.send_text(&join(ahead)).await;
            let answer = dashboard.next_message().await;
            match answer.kind.as_str() {
                "error" if may_be_an_error => assert_eq!(answer.data["code"], "bad_message", "{ahead}: {}", answer.raw),
                _ => {
                    let position = (&answer.data["recovered"], &answer.data["seq"]);
                    assert_eq!(position, (&json!(false), &json!(1)), "{ahead}: {}", answer.raw);
                }
            }
            dashboard.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn b35_unknown_epochs_are_not_recovered() {
    hostile(Setup::new(), &["bad_messages bad_message"], async |stack, _| {
        let room = tenant();
        stack.publish(&room, &payment()).await;
        let token = Token::of(room.as_str()).sign();
        let base = json!({ "tenantId": room.as_str(), "token": token });
        let with = |fields: Value| {
            let mut data = base.clone();
            data.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            json!({ "event": "join", "data": data })
        };
        for (fields, may_join) in [
            (json!({ "lastSeq": 1, "epoch": "another" }), true),
            (json!({ "lastSeq": 1, "epoch": "" }), true),
            (json!({ "lastSeq": 0, "epoch": "e".repeat(10_000) }), true),
            (json!({ "lastSeq": 1, "epoch": "a b\r\nc" }), true),
            (json!({ "lastSeq": 1 }), true),
            (json!({ "epoch": "another" }), true),
            (json!({ "lastSeq": 1, "epoch": 7 }), false),
            (json!({ "lastSeq": 1, "epoch": ["x"] }), false),
        ] {
            let mut dashboard = Dashboard::open(stack.addr()).await;
            dashboard.send_json(with(fields.clone())).await;
            let answer = dashboard.next_message().await;
            match answer.kind.as_str() {
                "joined" if may_join => assert_eq!(answer.data["recovered"], false, "{fields}: {}", answer.raw),
                _ => assert_eq!(answer.data["code"], "bad_message", "{fields}: {}", answer.raw),
            }
            dashboard.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn b36_control_characters_never_reach_the_log() {
    let counted =
        ["bad_messages bad_message", "bad_messages unknown_event", "disconnects wrong_tenant", "joins wrong_tenant"];
    hostile(Setup::new(), &counted, async |stack, bystanders| {
        let token = bystanders.token();
        let join = |tenant: &str| format!(r#"{{"event":"join","data":{{"tenantId":"{tenant}","token":"{token}"}}}}"#);
        let hostile = [
            join(r"\u0000"),
            join(r"\ud800"),
            join(r"\u001b[31mred\u001b[0m"),
            join("raw\u{1}control"),
            join(r"line\nbreak"),
            r#"{"event":"\u001b]0;owned\u0007"}"#.to_owned(),
            r#"{"event":"\ud83d"}"#.to_owned(),
            "\u{0}".to_owned(),
        ];
        for text in hostile {
            let mut dashboard = Dashboard::open(stack.addr()).await;
            dashboard.send_text(&text).await;
            let error = dashboard.expect("error").await;
            assert!(!error.data["message"].as_str().unwrap().chars().any(char::is_control), "{text:?}: {}", error.raw);
            dashboard.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn b37_unknown_events_are_named_but_never_a_label() {
    let long = format!("dance{}", "x".repeat(2000));
    let unknown = [
        r#"{"event":"dance"}"#.to_owned(),
        r#"{"event":""}"#.to_owned(),
        r#"{"event":"JOIN"}"#.to_owned(),
        format!(r#"{{"event":"{long}"}}"#),
    ];
    each_is_refused("unknown_event", &unknown).await;
    each_is_refused(
        "bad_message",
        &texts(&[r#"{"event":1}"#, r#"{"event":null}"#, r#"{"event":["ping"]}"#, r#"{"data":{}}"#]),
    )
    .await;
    hostile(Setup::new(), &["bad_messages unknown_event"], async |stack, _| {
        let mut dashboard = Dashboard::open(stack.addr()).await;
        dashboard.send_text(r#"{"event":"pirouette"}"#).await;
        dashboard.expect_error("unknown_event").await;
        assert!(!stack.gateway().scrape().await.0.contains("pirouette"));
        // Fields we don't know are nobody's business.
        dashboard.send_text(r#"{"event":"ping","data":{"x":1},"version":7}"#).await;
        dashboard.until("heartbeat").await;
        dashboard.close().await;
    })
    .await;
}
