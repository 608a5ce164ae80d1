//! Pages of other origins and the snapshot (B77): CORS for the allowed origins, on every answer.

use std::net::SocketAddr;

use crate::harness::http::{self, Response};
use crate::harness::ports::free_port;
use crate::harness::{Setup, Token, tenant};
use crate::tokens::signatures::key_set_and_token;

const PAGE: &str = "https://app.example.com";
const FOREIGN: &str = "https://evil.example";
const ALLOWED: &str = "https://app.example.com,http://localhost:3000";

async fn preflight(addr: SocketAddr, origin: &str) -> Response {
    let asked = [
        ("Origin", origin),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization"),
    ];
    http::request(addr, "OPTIONS", "/dashboard/snapshot", &asked, "").await
}

/// The page's question, with and without a token.
async fn ask(addr: SocketAddr, path: &str, origin: &str, token: Option<&str>) -> Response {
    let authorization = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![("Origin", origin)];
    headers.extend(authorization.as_deref().map(|value| ("Authorization", value)));
    http::get_with(addr, path, &headers).await
}

fn lists(response: &Response, header: &str, name: &str) -> bool {
    response.header(header).is_some_and(|list| list.split(',').any(|one| one.trim().eq_ignore_ascii_case(name)))
}

fn readable_by(response: &Response) -> Option<&str> {
    assert_eq!(response.header("access-control-allow-credentials"), None, "{response:?}");
    response.header("access-control-allow-origin")
}

#[tokio::test]
async fn b77_a_page_of_an_allowed_origin_reads_the_snapshot_and_why_there_is_none() {
    for flag in ["true", "false"] {
        let stack = Setup::new().env("ALLOWED_ORIGINS", ALLOWED).env("REALTIME_DASHBOARD", flag).memory().lease().await;
        let (addr, room) = (stack.addr(), tenant());
        let token = Token::of(room.as_str()).sign();
        for origin in ALLOWED.split(',') {
            let allowed = preflight(addr, origin).await;
            assert!(matches!(allowed.status, 200 | 204), "{allowed:?}");
            assert_eq!(readable_by(&allowed), Some(origin));
            assert!(lists(&allowed, "access-control-allow-methods", "GET"), "{allowed:?}");
            assert!(lists(&allowed, "access-control-allow-headers", "authorization"), "{allowed:?}");
            assert!(lists(&allowed, "vary", "origin"), "{allowed:?}");

            let path = "/dashboard/snapshot";
            let elsewhere = "/dashboard/snapshot?tenantId=another";
            for (status, answer) in [
                (200, ask(addr, path, origin, Some(&token)).await),
                (401, ask(addr, path, origin, None).await),
                (401, ask(addr, path, origin, Some("x")).await),
                (403, ask(addr, elsewhere, origin, Some(&token)).await),
                (400, ask(addr, "/dashboard/snapshot?tenantId=a&tenantId=b", origin, Some(&token)).await),
                (405, http::request(addr, "POST", path, &[("Origin", origin)], "").await),
            ] {
                let answer = answer.expect(status);
                assert_eq!(readable_by(&answer), Some(origin), "{answer:?}");
                assert!(lists(&answer, "vary", "origin"), "{answer:?}");
            }
        }
        stack.finish().await;
    }
}

#[tokio::test]
async fn b77_a_refusal_that_says_when_to_come_back_can_be_read() {
    // The keys are away.
    let (_, token) = key_set_and_token(tenant().as_str());
    let issuer = format!("http://127.0.0.1:{}/jwks.json", free_port());
    let setup = Setup::new().memory().env("ALLOWED_ORIGINS", ALLOWED).without("JWT_SECRET").env("JWT_JWKS", &issuer);
    let stack = setup.start().await;
    let refused = ask(stack.addr(), "/dashboard/snapshot", PAGE, Some(&token)).await.expect(503);
    assert_eq!(readable_by(&refused), Some(PAGE));
    assert!(lists(&refused, "access-control-expose-headers", "retry-after"), "{refused:?}");
    stack.finish().await;
}

#[tokio::test]
async fn b77_pages_of_other_origins_read_nothing() {
    let stack = Setup::new().env("ALLOWED_ORIGINS", ALLOWED).memory().lease().await;
    let token = Token::of(tenant().as_str()).sign();
    for origin in [FOREIGN, "null", "https://app.example.com.evil.example", "http://app.example.com"] {
        assert_eq!(readable_by(&preflight(stack.addr(), origin).await), None, "{origin}");
        let answer = ask(stack.addr(), "/dashboard/snapshot", origin, Some(&token)).await;
        assert_eq!(readable_by(&answer), None, "{origin}");
        // Caches must not give one page's answer to another.
        assert!(lists(&answer, "vary", "origin"), "{answer:?}");
    }
    // A page's own gateway sends no Origin.
    let own = ask(stack.addr(), "/dashboard/snapshot", PAGE, Some(&token)).await.expect(200);
    assert_eq!(readable_by(&own), Some(PAGE));
    stack.finish().await;
}

#[tokio::test]
async fn b77_where_every_origin_may_connect_every_origin_may_read() {
    let stack = Setup::new().memory().lease().await;
    let token = Token::of(tenant().as_str()).sign();
    let allowed = preflight(stack.addr(), FOREIGN).await;
    assert!(matches!(readable_by(&allowed), Some("*" | FOREIGN)), "{allowed:?}");
    // The star never stands for Authorization (Fetch standard, CORS protocol).
    assert!(lists(&allowed, "access-control-allow-headers", "authorization"), "{allowed:?}");
    let answer = ask(stack.addr(), "/dashboard/snapshot", FOREIGN, Some(&token)).await.expect(200);
    assert!(matches!(readable_by(&answer), Some("*" | FOREIGN)), "{answer:?}");
    stack.finish().await;
}
