//! B54–B58: the publish API's callers, mistaken or malicious; and what the good ones get.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::events::{metrics_json, payment_json, payment_json_with_id};
use crate::harness::{Bystanders, PUBLISH_API_KEY, Setup, Stack, hostile, http, tenant};

async fn publish(stack: &Stack, body: &str) -> http::Response {
    http::post(stack.gateway().internal, &format!("/v1/tenants/{}/events", tenant()), body).await
}

/// Each body is refused with 422 and a text that names the field.
async fn each_is_422_naming(stack: &Stack, rows: &[(&str, String)]) {
    for (field, body) in rows {
        let response = publish(stack, body).await;
        assert_eq!(response.status, 422, "{field} in {body}: {response:?}");
        let detail = response.expect(422).json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(field), "{field} is not named in {detail:?}");
        assert!(detail.len() < 400 && !detail.chars().any(char::is_control), "{detail:?}");
    }
}

/// The sample payment with one value of `data` replaced, as JSON text.
fn payment_with(field: &str, json: &str) -> String {
    let sample: serde_json::Value = serde_json::from_str(&payment_json()).unwrap();
    let fields = sample["data"].as_object().unwrap().keys();
    let fields = fields.map(|name| {
        if name == field { format!("\"{name}\":{json}") } else { format!("\"{name}\":{}", sample["data"][name]) }
    });
    format!(r#"{{"type":"payment_received","data":{{{}}}}}"#, fields.collect::<Vec<_>>().join(","))
}

#[tokio::test]
async fn b54_impossible_amounts_are_422() {
    hostile(Setup::new(), &["http_requests 422"], async |stack, _| {
        let amounts = [
            "\"1500.00\"",
            "-1",
            "-0.01",
            "0.001",
            "1500.005",
            "1e400",
            "1e2",
            "1E2",
            "NaN",
            "Infinity",
            "null",
            "true",
            "[]",
            "{}",
            "12345678901234567.89",
            "99999999999",
            "-0",
            "\"\"",
        ];
        let rows: Vec<_> = amounts.iter().map(|amount| ("data.amount", payment_with("amount", amount))).collect();
        for (field, body) in rows {
            let response = publish(stack, &body).await;
            // What is no JSON at all has no field to name.
            let not_json = serde_json::from_str::<serde_json::Value>(&body).is_err() && !body.contains("1e400");
            assert!(response.status == 422 || (not_json && response.status == 400), "{body}: {response:?}");
            assert!(not_json || response.json()["detail"].as_str().unwrap().contains(field), "{body}: {response:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn b54_money_comes_out_as_it_went_in() {
    let stack = Setup::new().lease().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    let path = format!("/v1/tenants/{room}/events");
    for (sent, shown) in [
        ("1500", "1500.00"),
        ("1500.0", "1500.00"),
        ("1500.00", "1500.00"),
        ("0", "0.00"),
        ("0.1", "0.10"),
        ("0.07", "0.07"),
        ("9999999999.99", "9999999999.99"),
        ("1234567.89", "1234567.89"),
    ] {
        http::post(stack.gateway().internal, &path, &payment_with("amount", sent)).await.expect(202);
        let event = dashboard.next_event().await;
        assert!(
            event.raw.contains(&format!(r#""amount":{shown},"#))
                || event.raw.contains(&format!(r#""amount":{shown}}}"#)),
            "{sent} came as {}",
            event.raw
        );
    }
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn b54_wrong_shapes_are_422_naming_the_field() {
    hostile(Setup::new(), &["http_requests 422"], async |stack, _| {
        let sample: serde_json::Value = serde_json::from_str(&payment_json()).unwrap();
        let without = |field: &str| {
            let mut event = sample.clone();
            event["data"].as_object_mut().unwrap().remove(field);
            event.to_string()
        };
        let changed = |pointer: &str, value: serde_json::Value| {
            let mut event = sample.clone();
            match pointer.split_once('.') {
                Some((outer, inner)) => event[outer][inner] = value,
                None => event[pointer] = value,
            }
            event.to_string()
        };
        let mut rows: Vec<_> = ["paymentId", "amount", "parentName", "childName", "invoiceNumber"]
            .map(|field| (field, without(field)))
            .into();
        rows.extend([
            ("type", changed("type", json!("payment_recieved"))),
            ("type", changed("type", json!(1))),
            ("type", r#"{"data":{}}"#.to_owned()),
            ("data", r#"{"type":"payment_received"}"#.to_owned()),
            ("data", changed("data", json!([]))),
            ("tip", changed("data.tip", json!(5))),
            ("seq", changed("seq", json!(1))),
            ("data.parentName", changed("data.parentName", json!(7))),
            ("data.parentName", changed("data.parentName", json!(""))),
            ("data.paymentId", changed("data.paymentId", json!("p".repeat(129)))),
            ("timestamp", changed("timestamp", json!("yesterday"))),
            ("timestamp", changed("timestamp", json!(0))),
            ("id", changed("id", json!(""))),
            ("id", changed("id", json!("a b"))),
            ("id", changed("id", json!("i".repeat(65)))),
            ("id", changed("id", json!("a\r\nFLUSHALL"))),
            ("amount", payment_json().replace(r#""amount":1500.00"#, r#""amount":1,"amount":2"#)),
        ]);
        each_is_422_naming(stack, &rows).await;
    })
    .await;
}

#[tokio::test]
async fn b55_bodies_beyond_reason_are_refused() {
    hostile(Setup::new(), &["http_requests 413", "http_requests 422"], async |stack, _| {
        for (name, body, allowed) in [
            ("17 KB", payment_with("parentName", &format!("\"{}\"", "x".repeat(17_000))), &[413, 422][..]),
            ("1 MB", payment_with("parentName", &format!("\"{}\"", "x".repeat(1_000_000))), &[413]),
            ("100,000 braces", "{".repeat(100_000), &[400, 413, 422]),
            ("deep", format!("{}{}", "[".repeat(5000), "]".repeat(5000)), &[400, 422]),
            (
                "deep in a field",
                payment_with("parentName", &format!("{}{}", "[".repeat(5000), "]".repeat(5000))),
                &[400, 422],
            ),
            ("nothing", String::new(), &[400, 422]),
            ("no JSON", "amount=1500".to_owned(), &[400, 422]),
            ("two documents", format!("{}{}", payment_json(), payment_json()), &[400, 422]),
        ] {
            let response = publish(stack, &body).await;
            assert!(allowed.contains(&response.status), "{name}: {response:?}");
            assert_eq!(response.header("content-type"), Some("application/problem+json"), "{name}: {response:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn b55_other_content_types_are_415() {
    hostile(Setup::new(), &["http_requests 415"], async |stack, _| {
        let path = format!("/v1/tenants/{}/events", tenant());
        let authorization = format!("Bearer {PUBLISH_API_KEY}");
        for content_type in
            [Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/xml"), None]
        {
            let mut headers = vec![("Authorization", authorization.as_str())];
            headers.extend(content_type.map(|value| ("Content-Type", value)));
            http::request(stack.gateway().internal, "POST", &path, &headers, &payment_json()).await.expect(415);
        }
        let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json; charset=utf-8")];
        http::request(stack.gateway().internal, "POST", &path, &headers, &payment_json()).await.expect(202);
    })
    .await;
}

#[tokio::test]
async fn b55_body_that_never_ends_is_cut() {
    // Long enough that the bystanders, who don't read meanwhile, are not taken for dead.
    hostile(Setup::new().env("HEARTBEAT_SECONDS", "30"), &["http_requests 408"], async |stack, _| {
        let mut socket = TcpStream::connect(stack.gateway().internal).await.unwrap();
        let head = format!(
            "POST /v1/tenants/t1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {PUBLISH_API_KEY}\r\n\
             Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(31), socket.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "still open after 31 s");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn b56_bad_tenants_in_the_path_are_refused() {
    hostile(Setup::new(), &["http_requests 400"], async |stack, _| {
        let mut monitor = stack.redis().client().await;
        monitor.command(&["MONITOR"]).await;
        let long = "t".repeat(65);
        for name in [
            "a%2Fb",
            "*",
            "%2A",
            "%7Bt1%7D",
            "t1%7D:events",
            "a%20b",
            "t1%0D%0AFLUSHALL",
            "t1%00",
            "..",
            "%2E%2E",
            "",
            "t%C3%A9",
            "%FF",
            &long,
        ] {
            for what in ["events", "disconnect"] {
                let path = format!("/v1/tenants/{name}/{what}");
                let response = http::post(stack.gateway().internal, &path, &payment_json()).await;
                assert!(matches!(response.status, 400 | 404 | 422), "{path}: {response:?}");
            }
        }
        let seen = monitor.drain(Duration::from_millis(100)).await;
        assert!(!seen.iter().any(|line| line.text().contains("FLUSHALL") || line.text().contains('*')), "{seen:?}");
    })
    .await;
}

#[tokio::test]
async fn b57_wrong_keys_are_401() {
    hostile(Setup::new(), &["http_requests 401"], async |stack, _| {
        let internal = stack.gateway().internal;
        let bearer = |key: &str| {
            vec![("Content-Type", "application/json"), ("Authorization", key)]
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect::<Vec<_>>()
        };
        let key = PUBLISH_API_KEY;
        let wrong = [
            vec![("Content-Type".to_owned(), "application/json".to_owned())],
            bearer("Bearer wrong"),
            bearer("Bearer "),
            bearer(&format!("Bearer {}", &key[..key.len() - 1])),
            bearer(&format!("Bearer {key}x")),
            bearer(&format!("Basic {key}")),
            bearer(key),
        ];
        for (method, path, body) in [
            ("POST", "/v1/tenants/t1/events", payment_json()),
            ("POST", "/v1/tenants/t1/disconnect", String::new()),
            ("POST", "/v1/users/u1/disconnect", String::new()),
            ("GET", "/v1/tenants", String::new()),
        ] {
            for headers in &wrong {
                let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                http::request(internal, method, path, &headers, &body).await.expect(401);
            }
            let in_url = format!("{path}?key={}", key);
            let response =
                http::request(internal, method, &in_url, &[("Content-Type", "application/json")], &body).await;
            assert!(matches!(response.status, 400 | 401), "{response:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn b57_without_a_configured_key_everything_that_needs_one_is_403() {
    let stack = Setup::new().without("PUBLISH_API_KEY").lease().await;
    let internal = stack.gateway().internal;
    for path in ["/v1/tenants/t1/events", "/v1/tenants/t1/disconnect", "/v1/users/u1/disconnect"] {
        let refused = http::post(internal, path, &payment_json()).await.expect(403);
        assert!(refused.body.contains("PUBLISH_API_KEY"), "it says what is missing: {refused:?}");
    }
    http::get(internal, "/v1/tenants").await.expect(403);
    http::get(internal, "/healthz").await.expect(200);
    stack.refused(&["http_requests 403"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b58_text_is_data_and_arrives_unchanged() {
    let stack = Setup::new().lease().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    let path = format!("/v1/tenants/{room}/events");
    let names = [
        "line\u{2028}separator",
        "</script><script>alert(1)</script>",
        "\u{202e}right to left",
        "'; drop table payments; --",
        "tab\tnew\nline\u{0}",
        "{{t1}}",
        "👩‍👧 Zoë Müller-Ødegård",
        "\\\" quoted \\",
    ];
    for name in names {
        let body = payment_with("parentName", &json!(name).to_string());
        http::post(stack.gateway().internal, &path, &body).await.expect(202);
        assert_eq!(dashboard.next_event().await.data["parentName"], name);
    }
    dashboard.close().await;
    stack.refused(&[]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b58_names_of_10_000_characters_are_422() {
    hostile(Setup::new(), &["http_requests 422"], async |stack, _| {
        let long = json!("é".repeat(5_000)).to_string();
        each_is_422_naming(
            stack,
            &[
                ("data.parentName", payment_with("parentName", &long)),
                ("data.childName", payment_with("childName", &long)),
            ],
        )
        .await;
        let longest = payment_with("parentName", &json!("é".repeat(200)).to_string());
        publish(stack, &longest).await.expect(202);
        each_is_422_naming(
            stack,
            &[("data.parentName", payment_with("parentName", &json!("é".repeat(201)).to_string()))],
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_published_event_is_202_with_its_seq_and_id() {
    let stack = Setup::new().lease().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    let path = format!("/v1/tenants/{room}/events");
    let first = http::post(stack.gateway().internal, &path, &payment_json()).await.expect(202).json();
    assert_eq!(first["seq"], 1);
    let event = dashboard.next_event().await;
    assert_eq!(event.id.as_deref(), first["id"].as_str());

    // A caller's own id, sent twice: shown once, and both calls learn the same.
    let body = payment_json_with_id("invoice-7_paid");
    for _ in 0..2 {
        let answer = http::post(stack.gateway().internal, &path, &body).await.expect(202).json();
        assert_eq!((&answer["seq"], &answer["id"]), (&json!(2), &json!("invoice-7_paid")));
    }
    assert_eq!(dashboard.next_event().await.id.as_deref(), Some("invoice-7_paid"));
    http::post(stack.gateway().internal, &path, &metrics_json()).await.expect(202);
    assert_eq!(dashboard.next_event().await.kind, "metrics_updated");
    // The timestamp is the caller's where there is one, in UTC.
    let dated = payment_json().replacen('{', r#"{"timestamp":"2026-11-23T12:00:00+02:00","#, 1);
    http::post(stack.gateway().internal, &path, &dated).await.expect(202);
    assert!(dashboard.next_event().await.timestamp.starts_with("2026-11-23T10:00:00"));
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn publishing_without_redis_is_503_at_once() {
    let mut stack = Setup::new().start().await;
    let mut bystanders = Bystanders::join(&stack).await;
    bystanders.receive(&mut stack).await;
    stack.redis_mut().kill9();
    let begun = std::time::Instant::now();
    for _ in 0..3 {
        publish(&stack, &payment_json()).await.expect(503);
    }
    assert!(begun.elapsed() < Duration::from_millis(1500), "three refusals took {:?}", begun.elapsed());
}
