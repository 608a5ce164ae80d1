//! Rules for every request, whatever its port and its path (B76).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::events::payment_json;
use crate::harness::{PUBLISH_API_KEY, Setup, hostile, http};

/// All that the gateway answers to these bytes; it must close the connection.
async fn answers(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(9), stream.read_to_end(&mut answers)).await;
    assert!(read.is_ok(), "the connection stays open after {request}");
    String::from_utf8_lossy(&answers).into_owned()
}

#[tokio::test]
async fn b76_the_strict_rules_hold_on_every_path_of_both_ports() {
    hostile(Setup::new(), &["http_requests 400"], async |stack, _| {
        let (public, internal) = (stack.gateway().public, stack.gateway().internal);
        for (addr, path) in [
            (public, "/nothing"),
            (public, "/"),
            (public, "/asyncapi.json"),
            (public, "/dashboard/snapshot"),
            (public, "/demo/token"),
            (internal, "/nothing"),
            (internal, "/metrics"),
            (internal, "/v1/tenants"),
        ] {
            for head in [
                format!("GET {path} HTTP/1.1\r\n"),
                format!("GET {path} HTTP/1.1\r\nHost: a\r\nHost: b\r\n"),
                format!("GET http://evil.example{path} HTTP/1.1\r\nHost: a\r\n"),
                format!("GET {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"),
                format!("GET {path}?token=abc HTTP/1.1\r\nHost: a\r\n"),
                format!("GET {path}?x=eyJhbGciOiJIUzI1NiJ9.e30.x HTTP/1.1\r\nHost: a\r\n"),
            ] {
                let answer = answers(addr, &format!("{head}\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")).await;
                assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("problem+json"), "{head}: {answer}");
                assert!(answer.to_lowercase().contains("x-content-type-options: nosniff"), "{head}: {answer}");
                assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head}: a second request was answered: {answer}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn b76_a_body_of_two_lengths_is_400_and_publishes_nothing() {
    hostile(Setup::new(), &["http_requests 400"], async |stack, bystanders| {
        let (path, body) = (format!("/v1/tenants/{}/events", bystanders.victim), payment_json());
        let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let lengths = ["Content-Length: 5", "Transfer-Encoding: chunked"];
        for (addr, lengths) in
            [stack.gateway().internal, stack.gateway().public].into_iter().flat_map(|addr| {
                let [length, encoding] = lengths;
                [[length, encoding], [encoding, length], [encoding, "content-LENGTH: 5"]].map(|both| (addr, both))
            })
        {
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {PUBLISH_API_KEY}\r\nContent-Type: application/json\r\n{}\r\n{}\r\n\r\n",
                lengths[0], lengths[1]
            );
            let answer = answers(addr, &format!("{head}{chunked}")).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{lengths:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{lengths:?}: {answer}");
        }
        // Each by itself is in order. (What is published here would be in the bystander's way: to another tenant.)
        let chunked_alone = format!(
            "POST /v1/tenants/elsewhere/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {PUBLISH_API_KEY}\r\n\
             Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunked}"
        );
        let answer = answers(stack.gateway().internal, &chunked_alone).await;
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn b76_what_is_not_there_is_not_sniffed() {
    hostile(Setup::new(), &["http_requests 404", "http_requests 405"], async |stack, _| {
        for addr in [stack.gateway().public, stack.gateway().internal] {
            let missing = http::get(addr, "/nothing").await.expect(404);
            assert_eq!(missing.header("x-content-type-options"), Some("nosniff"), "{missing:?}");
        }
        let refused = http::request(stack.addr(), "DELETE", "/asyncapi.json", &[], "").await.expect(405);
        assert_eq!(refused.header("x-content-type-options"), Some("nosniff"), "{refused:?}");
    })
    .await;
}

#[tokio::test]
async fn the_page_is_alone_in_its_window_and_needs_no_ability_of_the_browser() {
    let stack = Setup::new().memory().lease().await;
    let page = http::get(stack.addr(), "/asyncapi.json").await.expect(200);
    assert_eq!(page.header("cross-origin-opener-policy"), Some("same-origin"));
    assert_eq!(page.header("cross-origin-resource-policy"), Some("same-origin"));
    let abilities = page.header("permissions-policy").unwrap();
    assert!(abilities.contains("camera=()") && abilities.contains("geolocation=()"), "{abilities}");
    stack.finish().await;
}
