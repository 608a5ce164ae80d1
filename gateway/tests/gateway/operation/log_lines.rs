//! What strangers can make the gateway log (B71, B72): little, and nothing of their making.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::harness::http;
use crate::harness::raw::handshake;
use crate::harness::{Setup, Stack, eventually, hostile};

/// The log's lines with this message, once there is one.
async fn lines(stack: &Stack, message: &str) -> Vec<Value> {
    eventually(message, Duration::from_secs(10), async || stack.gateway().log().find(message)).await;
    let lines = stack.gateway().log().lines().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

async fn ask(addr: SocketAddr, lines: &str) -> u16 {
    http::raw(addr, format!("{}\r\n", handshake(addr, lines)).as_bytes()).await.unwrap().status
}

#[tokio::test]
async fn b71_refused_origins_are_one_line_with_the_clients_address() {
    let setup =
        Setup::new().env("ALLOWED_ORIGINS", "https://app.example.com").env("TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8");
    hostile(setup, &["handshakes forbidden", "http_requests 403"], async |stack, _| {
        // The balancer's word; what comes before it in the list is the client's own.
        let origin = "Origin: https://evil.example\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.0.0.8\r\n";
        for _ in 0..50 {
            assert_eq!(ask(stack.addr(), origin).await, 403);
        }
        let lines = lines(stack, "origin refused").await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(
            (&lines[0]["origin"], &lines[0]["address"]),
            (&"https://evil.example".into(), &"203.0.113.9".into())
        );
        assert_eq!(lines[0]["count"], 1, "{lines:?}");
    })
    .await;
}

#[tokio::test]
async fn b71_a_strangers_forwarded_address_is_not_believed() {
    let setup = Setup::new().env("ALLOWED_ORIGINS", "https://app.example.com");
    hostile(setup, &["handshakes forbidden", "http_requests 403"], async |stack, _| {
        let long = "x".repeat(20_000);
        let origin =
            format!("Origin: https://evil.example/{long}\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n");
        assert_eq!(ask(stack.addr(), &origin).await, 403);
        let lines = lines(stack, "origin refused").await;
        assert_eq!(lines[0]["address"], "127.0.0.1", "{lines:?}");
        assert!(lines[0].to_string().len() < 1000, "{lines:?}");
    })
    .await;
}

#[tokio::test]
async fn b72_nonsense_on_our_channels_is_a_line_a_minute_and_writes_none_of_its_own() {
    hostile(Setup::new(), &[], async |stack, bystanders| {
        let mut client = stack.redis().client().await;
        let control = format!("{}:control", stack.prefix);
        const NONSENSE: &str = "x\n2026-01-01T00:00:00Z ERROR gateway: \u{1b}[2Jowned";
        for number in 0..200 {
            let kick = format!(r#"{{"{NONSENSE}{number}":"t"}}"#);
            for (channel, text) in [(&stack.channel(&bystanders.victim), NONSENSE), (&control, &kick)] {
                client.command(&["PUBLISH", channel, text]).await;
            }
        }
        let lines = lines(stack, "malformed message on a tenant's channel").await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        let text = stack.gateway().log().text();
        assert!(!text.contains("owned") && text.lines().all(|line| line.starts_with('{')), "{text}");
    })
    .await;
}
