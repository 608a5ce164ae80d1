//! Events that are refused before they reach Redis, and the errors that say why.

use publisher::{ConnectError, DashboardEvent, InvalidEvent, PublishError, Publisher, PublisherConfig};

use crate::harness::{RedisServer, log, payment, publisher, tenant};

const PAYMENT: &str = r#"{"type":"payment_received","data":{"paymentId":"p1","amount":1500.00,"parentName":"Thandi","childName":"Lwazi","invoiceNumber":"INV-1"}}"#;
const METRICS: &str = r#"{"type":"metrics_updated","data":{"totalOutstanding":-5,"totalArrears":0.50,"accountsInArrears":1,"paymentsToday":2,"amountReceivedToday":3.1,"invoicesByStatus":{"PENDING":1,"PAID":2},"asOf":"2026-11-23T10:00:00+02:00"}}"#;

fn refusal(json: &str) -> InvalidEvent {
    DashboardEvent::from_json(json.as_bytes()).expect_err(json)
}

/// `PAYMENT` with one piece replaced.
fn payment_with(old: &str, new: &str) -> String {
    assert!(PAYMENT.contains(old));
    PAYMENT.replacen(old, new, 1)
}

#[test]
fn a_good_event_is_read_and_written_to_the_cent() {
    let event = DashboardEvent::from_json(PAYMENT.as_bytes()).unwrap();
    assert!(event.body().contains(r#""amount":1500.00,"#), "{}", event.body());
    let event = DashboardEvent::from_json(METRICS.as_bytes()).unwrap();
    let data = r#""data":{"totalOutstanding":-5.00,"totalArrears":0.50,"accountsInArrears":1,"paymentsToday":2,"amountReceivedToday":3.10,"invoicesByStatus":{"PAID":2,"PENDING":1},"asOf":"2026-11-23T08:00:00.000000Z"}"#;
    assert!(event.body().ends_with(data), "{}", event.body());
}

#[test]
fn data_may_come_before_type_and_the_envelope_may_bring_id_and_timestamp() {
    let json = r#"{"data":{"parentId":"p","parentName":"T","totalArrears":1,"daysOverdue":3},"id":"mine","timestamp":"2026-01-01T02:00:00+02:00","type":"arrears_alert"}"#;
    let event = DashboardEvent::from_json(json.as_bytes()).unwrap();
    let body = r#""id":"mine","type":"arrears_alert","timestamp":"2026-01-01T00:00:00.000000Z","data":{"parentId":"p","parentName":"T","totalArrears":1.00,"daysOverdue":3}"#;
    assert_eq!(event.body(), body);
    assert_eq!(serde_json::to_string(&event).unwrap(), format!("{{{body}}}"));
}

#[test]
fn b54_every_bad_amount_names_data_amount() {
    for bad in [
        "\"1500.00\"",
        "-1",
        "0.001",
        "1e400",
        "1E2",
        "NaN",
        "Infinity",
        "12345678901234567.89",
        "10000000000.00",
        "-0",
        "null",
        "true",
        "[1]",
        "{}",
        "01",
        "1.",
        ".5",
        "+1",
    ] {
        let refusal = refusal(&payment_with("1500.00", bad));
        // Text that is no JSON has no field that could be named.
        assert!(refusal.field == "data.amount" || refusal.rule.contains("JSON"), "{bad}: {refusal}");
    }
    assert_eq!(refusal(&payment_with("1500.00", "-1")).to_string(), "data.amount: must not be negative");
    let not_plain = "data.amount: must be a plain number with at most two decimals, like 1500.00";
    for bad in ["\"1500.00\"", "0.001", "1e400", "-0"] {
        assert_eq!(refusal(&payment_with("1500.00", bad)).to_string(), not_plain);
    }
}

#[test]
fn b54_a_whole_amount_and_one_with_cents_are_the_same() {
    let body = |json: &str| DashboardEvent::from_json(json.as_bytes()).unwrap().data;
    assert_eq!(body(&payment_with("1500.00", "1500")), body(PAYMENT));
    assert_eq!(body(&payment_with("1500.00", "1500.0")), body(PAYMENT));
}

#[test]
fn b54_a_field_that_is_missing_unknown_doubled_or_mistyped_is_named() {
    for (old, new, expected) in [
        (r#""parentName":"Thandi","#, "", "data.parentName: is missing"),
        (r#""parentName""#, r#""parentname""#, "data.parentname: is not a field here"),
        (r#""paymentId":"p1""#, r#""paymentId":"p1","paymentId":"p2""#, "data.paymentId: is given twice"),
        (r#""paymentId":"p1""#, r#""paymentId":7"#, "data.paymentId: must be a string, not integer `7`"),
        (r#""type":"payment_received","#, "", "type: is missing"),
        (r#""type""#, r#""x":1,"type""#, "x: is not a field here"),
        (r#""type""#, r#""type":"arrears_alert","type""#, "type: is given twice"),
        (
            "payment_received",
            "refund",
            "type: must be one of payment_received, invoice_status_changed, arrears_alert, metrics_updated, not \"refund\"",
        ),
        (r#""type""#, r#""id":"a:b","type""#, "id: must be 1 to 64 of [A-Za-z0-9_-] and not \"-\" alone"),
        (r#""type""#, r#""id":"-","type""#, "id: must be 1 to 64 of [A-Za-z0-9_-] and not \"-\" alone"),
        (r#""type""#, r#""id":null,"type""#, "id: must be a string, not null"),
        (
            r#""type""#,
            r#""timestamp":"yesterday","type""#,
            "timestamp: must be an RFC 3339 timestamp, like 2026-11-23T08:15:00Z",
        ),
    ] {
        assert_eq!(refusal(&payment_with(old, new)).to_string(), expected);
    }
    for (old, new, field) in [
        (r#""accountsInArrears":1"#, r#""accountsInArrears":-1"#, "data.accountsInArrears"),
        (r#""accountsInArrears":1"#, r#""accountsInArrears":1.5"#, "data.accountsInArrears"),
        (r#""accountsInArrears":1"#, r#""accountsInArrears":9007199254740992"#, "data.accountsInArrears"),
        (r#""PAID":2"#, r#""PENDING":2"#, "data.invoicesByStatus"),
        (r#""PAID":2"#, r#""":2"#, "data.invoicesByStatus"),
        (r#""PAID":2"#, r#""PAID":"2""#, "data.invoicesByStatus.PAID"),
        (r#""asOf""#, r#""condensed":{"refund":1},"asOf""#, "data.condensed"),
        ("2026-11-23T10:00:00+02:00", "0000-01-01T00:00:00+02:00", "data.asOf"),
    ] {
        assert!(METRICS.contains(old));
        let refusal = refusal(&METRICS.replacen(old, new, 1));
        assert!(refusal.field.starts_with(field), "{new}: {refusal}");
    }
}

#[test]
fn b55_text_that_is_no_event_is_refused() {
    for bad in ["", "[]", "null", "{", "\"x\"", "{}{}", "\u{feff}{}"] {
        refusal(bad);
    }
    refusal(&"{".repeat(10_000));
    refusal(&"[".repeat(16_000));
    refusal(&format!("{PAYMENT} x"));
    assert!(DashboardEvent::from_json(b"{\"type\":\"\xff\"}").is_err());
    assert_eq!(refusal(&format!("{PAYMENT}{}", " ".repeat(16 * 1024))).field, "event");
}

#[test]
fn b55_an_event_that_is_too_large_only_when_written_is_refused_too() {
    // As sent, the event keeps the fields' rules and is smaller than 16 KiB. But a NUL takes six bytes when it is written.
    let mut event = DashboardEvent::from_json(METRICS.as_bytes()).unwrap();
    let publisher::EventData::MetricsUpdated(data) = &mut event.data else { unreachable!() };
    data.invoices_by_status = (0..60).map(|n| (format!("{}{n:02}", "\0".repeat(62)), 1)).collect();
    assert_eq!(event.validate().unwrap_err().to_string(), "event: must be at most 16384 bytes of JSON");
}

#[test]
fn b58_any_text_is_data_and_only_its_length_is_a_rule() {
    for text in ["\u{2028}", "</script>", "\u{202e}abc", "😀", "\u{0}", "' OR 1=1", "\u{7f}\u{1b}[31m"] {
        let json = payment_with("\"Thandi\"", &serde_json::to_string(text).unwrap());
        let event = DashboardEvent::from_json(json.as_bytes()).unwrap();
        let written: serde_json::Value = serde_json::from_str(&format!("{{{}}}", event.body())).unwrap();
        assert_eq!(written["data"]["parentName"], text);
    }
    for (length, good) in [(0, false), (1, true), (200, true), (201, false), (10_000, false)] {
        let json = payment_with("Thandi", &"é".repeat(length));
        match DashboardEvent::from_json(json.as_bytes()) {
            Ok(_) => assert!(good, "{length} characters were accepted"),
            Err(refusal) if length < 10_000 => {
                assert_eq!(refusal.to_string(), "data.parentName: must be 1 to 200 characters");
            }
            Err(refusal) => assert_eq!(refusal.field, "event"),
        }
    }
}

#[test]
fn an_error_repeats_little_of_the_text_and_no_control_character() {
    let evil = format!("\\u001b[31m{}", "x".repeat(5000));
    for json in [
        payment_with("\"type\"", &format!("\"{evil}\":1,\"type\"")),
        payment_with("payment_received", &evil),
        payment_with("1500.00", &format!("\"{evil}\"")),
        payment_with("\"p1\"", &format!("[\"{evil}\"]")),
        METRICS.replace("PENDING\":1", &format!("{evil}\":\"{evil}\"")),
        METRICS.replace("\"accountsInArrears\":1", &format!("\"accountsInArrears\":\"{evil}\"")),
        METRICS.replace("\"asOf\"", &format!("\"condensed\":{{\"{evil}\":1}},\"asOf\"")),
    ] {
        let text = refusal(&json).to_string();
        assert!(text.len() < 400 && !text.contains(char::is_control), "{text:?}");
        assert!(text.matches('x').count() < 150, "{text}");
    }
}

#[tokio::test]
async fn an_invalid_event_built_in_rust_never_reaches_redis() {
    let redis = RedisServer::start().await;
    let publisher = publisher(&redis).await;
    let mut event = payment();
    let publisher::EventData::PaymentReceived(data) = &mut event.data else { unreachable!() };
    data.parent_name = "x".repeat(201);
    let Err(PublishError::Invalid(refusal)) = publisher.broadcast_to_tenant(&tenant("acorn"), &event).await else {
        panic!("201 characters were published");
    };
    assert_eq!(refusal.field, "data.parentName");
    assert!(log(&redis, &tenant("acorn")).await.is_empty());
}

#[tokio::test]
async fn b60_a_bad_configuration_is_an_error_that_keeps_the_password() {
    for url in [
        "",
        "localhost",
        "http://:hunter2@x",
        "redis://:hunter2@",
        "redis://:hunter2@x:99999",
        "redis-cluster://:hunter2@",
        "redis-sentinel://:hunter2@x:1",
    ] {
        let Err(ConnectError::Url(text)) = Publisher::connect(PublisherConfig::new(url)).await else {
            panic!("{url:?} was accepted");
        };
        assert!(!text.contains("hunter2"), "{text}");
    }
    let mut config = PublisherConfig::new("redis://localhost");
    config.prefix = "{x}".into();
    assert!(matches!(Publisher::connect(config).await, Err(ConnectError::Prefix(_))));
}

#[test]
fn b54_fields_in_an_array_are_refused() {
    let data = r#"["p1",1500.00,"Thandi","Lwazi","INV-1"]"#;
    let event = format!(r#"{{"type":"payment_received","data":{data}}}"#);
    let error = DashboardEvent::from_json(event.as_bytes()).expect_err("an array").to_string();
    assert_eq!(error, "data: must be an object, not an array");
    let error = DashboardEvent::from_json(br#"["payment_received",{}]"#).expect_err("an array").to_string();
    assert_eq!(error, "event: must be an object, not an array");
}

#[test]
fn f63_null_figures_need_condensed_and_are_null_together() {
    const NONE: &str = r#"{"type":"metrics_updated","data":{"totalOutstanding":null,"totalArrears":null,"accountsInArrears":null,"paymentsToday":null,"amountReceivedToday":null,"invoicesByStatus":null,"asOf":"2026-11-23T08:15:00.000000Z","condensed":{"payment_received":12}}}"#;
    let event = DashboardEvent::from_json(NONE.as_bytes()).unwrap();
    let written: serde_json::Value = serde_json::from_str(&format!("{{{}}}", event.body())).unwrap();
    assert_eq!(written["data"], serde_json::from_str::<serde_json::Value>(NONE).unwrap()["data"]);
    for (json, field) in [
        (NONE.replace(r#","condensed":{"payment_received":12}"#, ""), "data.totalOutstanding"),
        (NONE.replace(r#""totalOutstanding":null"#, r#""totalOutstanding":1"#), "data.totalArrears"),
        (NONE.replace(r#""paymentsToday":null,"#, ""), "data.totalOutstanding"),
    ] {
        assert_eq!(refusal(&json).field, field, "{json}");
    }
}
