//! B19–B30: handshakes that are wrong, foreign, slow or one too many.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::http::{self, Response};
use crate::harness::raw::{RawSocket, handshake};
use crate::harness::{Bring, Bystanders, Dashboard, Setup, Token, eventually, hostile, tenant};

/// The answer to a handshake head that lacks only its last empty line; the socket is closed afterwards.
async fn answer(addr: SocketAddr, head: &str) -> Response {
    http::raw(addr, format!("{head}\r\n").as_bytes()).await.unwrap_or_else(|| panic!("no answer to {head}"))
}

/// A right handshake, with one line changed.
fn changed(addr: SocketAddr, line: &str, to: &str) -> String {
    let right = handshake(addr, "");
    let line = right.split_inclusive("\r\n").find(|candidate| candidate.starts_with(line)).unwrap().to_owned();
    right.replace(&line, to)
}

#[tokio::test]
async fn b19_other_websocket_versions_are_told_13() {
    hostile(Setup::new(), &["handshakes refused", "http_requests 426"], async |stack, _| {
        let versions =
            ["8", "0", "256", "", "13, 8", "abc"].map(|version| format!("Sec-WebSocket-Version: {version}\r\n"));
        let missing_and_twice =
            ["".to_owned(), "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n".to_owned()];
        for lines in versions.iter().chain(&missing_and_twice) {
            let response = answer(stack.addr(), &changed(stack.addr(), "Sec-WebSocket-Version", lines)).await;
            assert!(matches!(response.status, 400 | 426), "{lines:?}: {response:?}");
            assert_eq!(response.header("sec-websocket-version"), Some("13"), "{lines:?}: {response:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn b20_bad_websocket_keys_are_400() {
    hostile(Setup::new(), &["handshakes refused", "http_requests 400"], async |stack, _| {
        let twice = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let bad = [
            "",
            "Sec-WebSocket-Key: \r\n",
            "Sec-WebSocket-Key: ****\r\n",
            "Sec-WebSocket-Key: dG9vIHNob3J0\r\n",
            twice,
        ];
        for lines in bad {
            answer(stack.addr(), &changed(stack.addr(), "Sec-WebSocket-Key", lines)).await.expect(400);
        }
    })
    .await;
}

#[tokio::test]
async fn b21_requests_that_do_not_upgrade_are_told_so() {
    hostile(Setup::new(), &["handshakes refused", "http_requests 405", "http_requests 426"], async |stack, _| {
        let plain = http::get(stack.addr(), "/dashboard").await;
        assert!(matches!(plain.status, 400 | 426), "{plain:?}");
        for (line, to) in
            [("Connection", "Connection: keep-alive\r\n"), ("Upgrade", ""), ("Upgrade", "Upgrade: h2c\r\n")]
        {
            let response = answer(stack.addr(), &changed(stack.addr(), line, to)).await;
            assert!(matches!(response.status, 400 | 426), "{line} {to:?}: {response:?}");
        }
        for method in ["POST", "PUT", "DELETE", "HEAD", "PATCH"] {
            let head = handshake(stack.addr(), "Content-Length: 0\r\n").replacen("GET", method, 1);
            let response = answer(stack.addr(), &head).await;
            assert_eq!(response.status, 405, "{method}: {response:?}");
            assert!(response.header("allow").is_some_and(|allowed| allowed.contains("GET")), "{method}: {response:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn b22_other_http_versions_are_refused_cleanly() {
    hostile(Setup::new(), &["handshakes refused", "http_requests 400", "http_requests 426"], async |stack, _| {
        let old = handshake(stack.addr(), "").replace("HTTP/1.1", "HTTP/1.0");
        let response = answer(stack.addr(), &old).await;
        assert!((400..=505).contains(&response.status), "{response:?}");

        let prior_knowledge =
            http::raw(stack.addr(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await;
        assert!(prior_knowledge.as_ref().is_none_or(|response| response.status >= 400), "{prior_knowledge:?}");

        let connect = format!("CONNECT /dashboard HTTP/1.1\r\nHost: {}\r\n:protocol: websocket\r\n\r\n", stack.addr());
        let extended = http::raw(stack.addr(), connect.as_bytes()).await;
        assert!(extended.as_ref().is_none_or(|response| response.status >= 400), "{extended:?}");
    })
    .await;
}

#[tokio::test]
async fn b23_requests_a_proxy_could_read_otherwise_are_400_and_closed() {
    hostile(Setup::new(), &["http_requests 400"], async |stack, _| {
        let addr = stack.addr();
        let twice = format!("Host: {addr}\r\nHost: evil.example\r\n");
        let absolute = handshake(addr, "").replacen("/dashboard", "http://evil.example/dashboard", 1);
        let both_lengths = handshake(addr, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n");
        let attacks = [
            ("no Host", changed(addr, "Host", "")),
            ("two Hosts", changed(addr, "Host", &twice)),
            ("absolute form", absolute),
            ("both lengths", both_lengths),
            ("a body", handshake(addr, "Content-Length: 5\r\n")),
            ("a chunked body", handshake(addr, "Transfer-Encoding: chunked\r\n")),
        ];
        for (name, head) in attacks {
            // What follows the head would be a second request to anyone who saw no body.
            let mut socket = TcpStream::connect(addr).await.unwrap();
            socket
                .write_all(format!("{head}\r\n0\r\n\r\nGET /asyncapi.json HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let mut answer = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "{name}: the connection stays open");
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with("HTTP/1.1 400"), "{name}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: a second request was answered: {answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn b24_oversized_heads_are_refused_cheaply() {
    hostile(Setup::new(), &["http_requests 431"], async |stack, _| {
        let addr = stack.addr();
        let many: String = (0..2000).map(|n| format!("X-{n}: y\r\n")).collect();
        let heads = [
            ("a header of 200 KB", handshake(addr, &format!("X-Big: {}\r\n", "x".repeat(200_000)))),
            ("2000 headers", handshake(addr, &many)),
            (
                "a URL of 1 MB",
                handshake(addr, "").replacen("/dashboard", &format!("/dashboard?{}", "x".repeat(1_000_000)), 1),
            ),
        ];
        for (name, head) in heads {
            let before = stack.gateway().cpu_time();
            // A reset while we still send may eat the answer.
            if let Some(response) = http::raw(addr, format!("{head}\r\n").as_bytes()).await {
                assert!(matches!(response.status, 400 | 414 | 431), "{name}: {response:?}");
            }
            let used = stack.gateway().cpu_time() - before;
            assert!(used <= Duration::from_millis(100), "{name} cost {used:?} of processor time");
        }
    })
    .await;
}

#[tokio::test]
async fn b25_slow_loris_is_cut_after_10_s_and_holds_no_slot() {
    // Long enough that the bystanders, who don't read meanwhile, are not taken for dead.
    hostile(Setup::new().env("HEARTBEAT_SECONDS", "30"), &["http_requests 408"], async |stack, _| {
        let addr = stack.addr();
        let head = handshake(addr, "");
        let mut lorises = JoinSet::new();
        for index in 0..60 {
            let head = head.clone();
            lorises.spawn(async move {
                let mut socket = TcpStream::connect(addr).await.unwrap();
                match index % 3 {
                    0 => {}
                    1 => socket.write_all(&head.as_bytes()[..head.len() / 2]).await.unwrap(),
                    _ => socket.write_all(&head.as_bytes()[..10]).await.unwrap(),
                }
                let mut rest = head.bytes().skip(10);
                let mut chunk = [0; 1024];
                loop {
                    let drip = tokio::time::timeout(Duration::from_millis(900), socket.read(&mut chunk)).await;
                    match drip {
                        Ok(Ok(0) | Err(_)) => return,
                        Ok(Ok(_)) => {}
                        Err(_) if index % 3 == 2 => {
                            let _ = socket.write_all(&[rest.next().unwrap()]).await;
                        }
                        Err(_) => {}
                    }
                }
            });
        }
        let begun = Instant::now();
        // Meanwhile everybody else is served at once.
        let room = tenant();
        stack.dashboard(&room).await.close().await;
        assert!(begun.elapsed() < Duration::from_secs(1));
        stack.gateway().metric_becomes("gateway_connections", &[], 2.0).await;
        assert_eq!(stack.gateway().metric("gateway_unauthenticated", &[]).await, 0.0);
        let all = async { while lorises.join_next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("all are cut");
        assert!((9.5..15.0).contains(&begun.elapsed().as_secs_f64()), "cut after {:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test]
async fn b25_socket_that_never_joins_is_4408() {
    let stack = Setup::new().env("JOIN_TIMEOUT_SECONDS", "1").lease().await;
    let begun = Instant::now();
    let mut silent = Dashboard::open(stack.addr()).await;
    stack.gateway().metric_becomes("gateway_unauthenticated", &[], 1.0).await;
    assert_eq!(stack.gateway().metric("gateway_connections", &[]).await, 0.0);
    silent.expect_refusal(4408).await;
    assert!((0.9..2.5).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
    // Talking is not joining.
    let mut talker = Dashboard::open(stack.addr()).await;
    talker.ping().await;
    talker.expect_refusal(4408).await;
    // A token that names several tenants joins none of them by itself.
    let accountant = Token::naming(serde_json::json!(["t1", "t2"])).sign();
    let mut undecided = Dashboard::bring(stack.addr(), Bring::Header, "", &accountant).await;
    undecided.expect_error("tenant_required").await;
    undecided.expect_refusal(4408).await;
    stack.refused(&["disconnects join_timeout"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b25_strangers_cannot_eat_the_slots() {
    let stack = Setup::new().env("MAX_CONNECTIONS", "5").lease().await;
    let mut strangers = Vec::new();
    for _ in 0..5 {
        strangers.push(RawSocket::connect(stack.addr()).await);
        let response = strangers.last_mut().unwrap().handshake(&handshake(stack.addr(), "\r\n")).await;
        assert_eq!(response.status, 101);
    }
    stack.gateway().metric_becomes("gateway_unauthenticated", &[], 5.0).await;
    let room = tenant();
    let token = Token::of(room.as_str()).sign();
    let mut honest = Dashboard::bring(stack.addr(), Bring::Header, room.as_str(), &token).await;
    honest.expect_joined(room.as_str()).await;
    assert_eq!(stack.gateway().metric("gateway_connections", &[]).await, 1.0);
    honest.close().await;
    drop(strangers);
    stack.refused(&[]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b26_foreign_origins_are_403() {
    let setup = Setup::new().env("ALLOWED_ORIGINS", "https://app.example.com,http://localhost:3000");
    hostile(setup, &["handshakes forbidden", "http_requests 403"], async |stack, bystanders| {
        let addr = stack.addr();
        let ask = async |lines: &str| {
            let head = handshake(addr, &format!("Authorization: Bearer {}\r\n{lines}", bystanders.token()));
            answer(addr, &head).await
        };
        let foreign = [
            "https://evil.example",
            "https://app.example.com.evil.example",
            "https://evilapp.example.com",
            "https://app.example.co",
            "https://xapp.example.com",
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.",
            "https://app.example.com/path",
            "https://app.example.com@evil.example",
            "http://localhost",
            "http://localhost:30000",
            "null",
            "",
            "file://",
            "app.example.com",
        ];
        for origin in foreign {
            assert_eq!(ask(&format!("Origin: {origin}\r\n")).await.status, 403, "{origin:?}");
        }
        let twice = ask("Origin: https://app.example.com\r\nOrigin: https://evil.example\r\n").await;
        assert!(matches!(twice.status, 400 | 403), "{twice:?}");
        for origin in [
            "https://app.example.com",
            "https://app.example.com:443",
            "http://localhost:3000",
            "https://APP.example.com",
        ] {
            assert_eq!(ask(&format!("Origin: {origin}\r\n")).await.status, 101, "{origin:?}");
        }
        assert_eq!(ask("").await.status, 101, "no browser, no Origin");
    })
    .await;
}

#[tokio::test]
async fn b26_cookies_grant_nothing() {
    let counted = ["disconnects unauthorized", "http_requests 401", "joins unauthorized"];
    hostile(Setup::new(), &counted, async |stack, bystanders| {
        let token = bystanders.token();
        let cookies = format!("token={token}; access_token={token}; jwt={token}; Authorization=Bearer {token}");
        let (mut dashboard, _) = Dashboard::connect(stack.addr(), &[("cookie", &cookies)]).await.unwrap();
        dashboard.send_join(bystanders.victim.as_str(), None, None).await;
        dashboard.expect_refusal(4401).await;
        http::get_with(stack.addr(), "/dashboard/snapshot", &[("Cookie", &cookies)]).await.expect(401);
    })
    .await;
}

#[tokio::test]
async fn b27_bad_subprotocol_offers_are_refused() {
    let counted = ["handshakes refused", "http_requests 400", "http_requests 401"];
    hostile(Setup::new(), &counted, async |stack, bystanders| {
        let (addr, token) = (stack.addr(), bystanders.token());
        let offers = [
            ("an empty bearer", "crechebooks.dashboard.v1, bearer.".to_owned()),
            ("two bearers", format!("crechebooks.dashboard.v1, bearer.{token}, bearer.{token}")),
            ("a bearer without the protocol", format!("bearer.{token}")),
        ];
        for (name, offer) in offers {
            let response = answer(addr, &handshake(addr, &format!("Sec-WebSocket-Protocol: {offer}\r\n"))).await;
            assert!(matches!(response.status, 400 | 401), "{name}: {response:?}");
            assert!(!format!("{response:?}").contains(&token), "{name}: the answer echoes the bearer");
            assert_eq!(response.header("sec-websocket-protocol"), None, "{name}");
        }
        let spaces =
            format!("Sec-WebSocket-Protocol: crechebooks.dashboard.v1,{}bearer.{token}\r\n", " ".repeat(32_000));
        let padded = answer(addr, &handshake(addr, &spaces)).await;
        assert!(matches!(padded.status, 101 | 400 | 401 | 431), "{padded:?}");
        // A list without our protocol selects none of it; only the browser can end such a socket.
        let unknown = answer(addr, &handshake(addr, "Sec-WebSocket-Protocol: graphql-ws, chat\r\n")).await;
        assert!(matches!(unknown.status, 101 | 400), "{unknown:?}");
        assert_eq!(unknown.header("sec-websocket-protocol"), None);
    })
    .await;
}

#[tokio::test]
async fn b27_only_our_protocol_is_selected() {
    hostile(Setup::new(), &[], async |stack, bystanders| {
        let (addr, token) = (stack.addr(), bystanders.token());
        let offers = [
            format!("Sec-WebSocket-Protocol: crechebooks.dashboard.v1, bearer.{token}\r\n"),
            format!("Sec-WebSocket-Protocol: chat, bearer.{token}, crechebooks.dashboard.v1\r\n"),
            format!("Sec-WebSocket-Protocol: crechebooks.dashboard.v1\r\nSec-WebSocket-Protocol: bearer.{token}\r\n"),
            "Sec-WebSocket-Protocol: crechebooks.dashboard.v1\r\n".to_owned(),
        ];
        for offer in offers {
            let response = answer(addr, &handshake(addr, &offer)).await;
            assert_eq!(response.status, 101, "{response:?}");
            assert_eq!(response.header("sec-websocket-protocol"), Some("crechebooks.dashboard.v1"));
        }
        assert_eq!(answer(addr, &handshake(addr, "")).await.header("sec-websocket-protocol"), None);
    })
    .await;
}

#[tokio::test]
async fn b28_token_in_the_url_is_400_and_written_nowhere() {
    hostile(Setup::new(), &["http_requests 400"], async |stack, bystanders| {
        let (addr, token) = (stack.addr(), bystanders.token());
        for path in ["/dashboard", "/dashboard/snapshot"] {
            for name in ["token", "access_token", "jwt", "%74oken", "TOKEN", "a=b&token", "bearer", "authorization"] {
                let head = handshake(addr, "").replacen("/dashboard", &format!("{path}?{name}={token}"), 1);
                let response = answer(addr, &head).await;
                assert_eq!(response.status, 400, "{path}?{name}=: {response:?}");
                assert!(!format!("{response:?}").contains("eyJ"), "{path}?{name}=: the answer echoes the token");
            }
        }
        assert!(!stack.gateway().scrape().await.0.contains("eyJ"));
    })
    .await;
}

#[tokio::test]
async fn b29_ambiguous_authorization_is_refused_before_the_upgrade() {
    let counted = ["handshakes refused", "http_requests 400", "http_requests 401"];
    hostile(Setup::new(), &counted, async |stack, bystanders| {
        let (addr, token) = (stack.addr(), bystanders.token());
        let other = Token::of(tenant().as_str()).sign();
        let ask = async |lines: String| answer(addr, &handshake(addr, &lines)).await.status;
        let bearer = format!("Authorization: Bearer {token}\r\n");

        assert!(matches!(ask(format!("{bearer}{bearer}")).await, 400 | 401), "twice");
        assert_eq!(ask("Authorization: Basic YTpi\r\n".to_owned()).await, 401, "Basic");
        assert_eq!(ask(format!("Authorization: {token}\r\n")).await, 401, "no scheme");
        assert!(matches!(ask("Authorization: Bearer \r\n".to_owned()).await, 400 | 401), "empty");
        assert!(matches!(ask("Authorization: \r\n".to_owned()).await, 400 | 401), "nothing");
        assert_eq!(
            ask(format!("{bearer}Sec-WebSocket-Protocol: crechebooks.dashboard.v1, bearer.{other}\r\n")).await,
            400,
            "two tokens"
        );

        assert_eq!(ask(format!("Authorization: bearer {token}\r\n")).await, 101, "lower case");
        assert_eq!(ask(format!("authorization: BEARER {token}\r\n")).await, 101, "upper case");
    })
    .await;
}

#[tokio::test]
async fn b30_one_too_many_is_503_until_a_socket_leaves() {
    let stack = Setup::new().env("MAX_CONNECTIONS", "3").lease().await;
    let room = tenant();
    let token = Token::of(room.as_str()).sign();
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let mut late = Dashboard::open(stack.addr()).await;
    let mut members = Vec::new();
    for _ in 0..3 {
        let mut dashboard = Dashboard::bring(stack.addr(), Bring::Header, room.as_str(), &token).await;
        dashboard.expect_joined(room.as_str()).await;
        members.push(dashboard);
    }
    assert_eq!(stack.gateway().metric("gateway_connections", &[]).await, 3.0);
    assert_eq!(stack.gateway().metric("gateway_connections_max", &[]).await, 3.0);

    let full = answer(stack.addr(), &handshake(stack.addr(), &bearer)).await.expect(503);
    assert_eq!(full.header("retry-after"), Some("1"));
    assert_eq!(full.code(), "full");
    let ready = http::get(stack.gateway().internal, "/readyz").await;
    assert_eq!((ready.status, ready.json()["reason"].as_str()), (503, Some("full")), "{ready:?}");

    // A socket that came while there was room and shows its token late is told when to come back.
    late.send_join(room.as_str(), Some(&token), None).await;
    let error = late.expect_refusal(1013).await;
    assert_eq!(error.data["code"], "full");
    assert!(error.data["retryInMs"].is_u64(), "{}", error.raw);

    members.pop().unwrap().close().await;
    eventually("the slot is free again", Duration::from_secs(2), async || {
        let response = answer(stack.addr(), &handshake(stack.addr(), &bearer)).await;
        (response.status == 101).then_some(())
    })
    .await;
    for member in members {
        member.close().await;
    }
    stack.refused(&["disconnects full", "handshakes full", "http_requests 503", "joins full"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b30_failed_upgrades_free_their_slots() {
    let mut stack = Setup::new().env("MAX_CONNECTIONS", "3").lease().await;
    let token = Token::of(tenant().as_str()).sign();
    for _ in 0..30 {
        let mut socket = RawSocket::connect(stack.addr()).await;
        socket.send_bytes(handshake(stack.addr(), &format!("Authorization: Bearer {token}\r\n\r\n")).as_bytes()).await;
        socket.reset();
    }
    stack.gateway().metric_becomes("gateway_connections", &[], 0.0).await;
    let mut bystanders = Bystanders::join(&stack).await;
    bystanders.unharmed(&mut stack).await;
    bystanders.leave().await;
    stack.finish().await;
}
