//! The load balancers of `deploy/`, as their real binaries, in front of real gateways.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite;

use crate::harness::balancer::{Behind, CHECKED_NEVER, CHECKED_OFTEN};
use crate::harness::follower::judge;
use crate::harness::ledger::Entry;
use crate::harness::wait::PATIENCE;
use crate::harness::{
    Balancer, Bring, Dashboard, Follower, Setup, Stack, Token, Traffic, eventually, http, payment, raw, tenant,
    tenants, within,
};

/// HAProxy, that never finds out by a check, and nginx, that has no checks.
async fn unchecked(stack: &Stack) -> [Balancer; 2] {
    let gateways = Behind::stack(stack).await;
    [Balancer::haproxy(&gateways, &[("CHECK_INTERVAL", CHECKED_NEVER)]).await, Balancer::nginx(&gateways).await]
}

/// A browser's handshake: its token, and the cookie it was given, which the next one brings.
async fn browser(
    balancer: &Balancer,
    tenant: &str,
    cookie: &mut Option<String>,
) -> Result<Dashboard, tungstenite::Error> {
    let authorization = format!("Bearer {}", Token::of(tenant).sign());
    let mut headers = vec![("authorization", authorization.as_str())];
    let brought = cookie.clone();
    headers.extend(brought.as_deref().map(|cookie| ("cookie", cookie)));
    let (mut dashboard, response) = Dashboard::connect(balancer.addr, &headers).await?;
    if let Some(set) = response.headers().get("set-cookie") {
        let set = set.to_str().unwrap();
        assert!(set.contains("HttpOnly") && set.contains("SameSite=Lax"), "{set}");
        *cookie = Some(set.split(';').next().unwrap().to_owned());
    }
    dashboard.expect_joined(tenant).await;
    Ok(dashboard)
}

async fn sockets(stack: &Stack) -> Vec<usize> {
    let counts = stack.gateways.iter().map(|gateway| gateway.metric("gateway_connections", &[]));
    futures::future::join_all(counts).await.into_iter().map(|count| count as usize).collect()
}

/// The only gateway that holds sockets, once it holds this many.
async fn only_holder(stack: &Stack, wanted: usize) -> usize {
    eventually(&format!("{wanted} sockets, all on one gateway"), PATIENCE, async || {
        let counts = sockets(stack).await;
        let holder = counts.iter().position(|&count| count == wanted)?;
        (counts.iter().sum::<usize>() == wanted).then_some(holder)
    })
    .await
}

#[tokio::test]
async fn a_browser_comes_back_to_its_gateway() {
    let stack = Setup::new().gateways(3).start().await;
    for balancer in unchecked(&stack).await {
        let (tenant, mut cookie, mut open) = (tenant(), None, Vec::new());
        for count in 1..=6 {
            open.push(browser(&balancer, tenant.as_str(), &mut cookie).await.unwrap());
            only_holder(&stack, count).await;
        }
        for dashboard in open {
            dashboard.close().await;
        }
        only_holder(&stack, 0).await;
    }
    stack.finish().await;
}

#[tokio::test]
async fn f40_browsers_of_a_killed_gateway_resume_on_another() {
    for index in 0..2 {
        let mut stack = Setup::new().gateways(3).start().await;
        let balancer = &unchecked(&stack).await[index];
        let (tenant, mut cookie) = (tenant(), None);
        let mut dashboard = browser(balancer, tenant.as_str(), &mut cookie).await.unwrap();
        stack.publish(&tenant, &payment()).await;
        dashboard.next_event().await;
        let cursor = dashboard.cursor();
        let victim = only_holder(&stack, 1).await;
        stack.gateways[victim].kill9();
        drop(dashboard);
        let missed = stack.publish(&tenant, &payment()).await;

        let headers = [("cookie", cookie.as_deref().unwrap())];
        let (mut again, _) = Dashboard::connect(balancer.addr, &headers).await.unwrap();
        let joined = again.resume(tenant.as_str(), &Token::of(tenant.as_str()).sign(), &cursor).await;
        assert_eq!(joined.data["recovered"], true, "{}", joined.raw);
        assert_eq!(again.next_event().await.seq, missed.seq);
        again.close().await;
    }
}

#[tokio::test]
async fn f40_a_full_gateway_is_passed_over_and_503_means_that_all_are_full() {
    let stack = Setup::new().gateways(3).env("MAX_CONNECTIONS", "2").start().await;
    let gateways = Behind::stack(&stack).await;
    for checks in [Some(CHECKED_NEVER), Some(CHECKED_OFTEN), None] {
        // Each only now: its checks must not have seen what was full for the one before.
        let balancer = match checks {
            Some(interval) => Balancer::haproxy(&gateways, &[("CHECK_INTERVAL", interval)]).await,
            None => Balancer::nginx(&gateways).await,
        };
        let (tenant, mut cookie, mut open) = (tenant(), None, Vec::new());
        for _ in 0..2 {
            open.push(browser(&balancer, tenant.as_str(), &mut cookie).await.unwrap());
        }
        only_holder(&stack, 2).await;
        for _ in 0..4 {
            // Each one still brings the cookie of the full gateway.
            open.push(browser(&balancer, tenant.as_str(), &mut cookie.clone()).await.unwrap());
        }
        assert_eq!(sockets(&stack).await, [2, 2, 2]);
        let head = raw::handshake(balancer.addr, "\r\n");
        let refused = http::raw(balancer.addr, head.as_bytes()).await.unwrap().expect(503);
        assert_eq!((refused.code().as_str(), refused.header("retry-after")), ("full", Some("1")));
        for dashboard in open {
            dashboard.close().await;
        }
        only_holder(&stack, 0).await;
    }
    stack.finish().await;
}

#[tokio::test]
async fn f40_a_draining_gateway_keeps_its_sockets_until_1012_and_gets_no_new_ones() {
    for checks in [CHECKED_NEVER, CHECKED_OFTEN] {
        let stack = Setup::new().gateways(3).env("DRAIN_SECONDS", "3").start().await;
        let balancer = Balancer::haproxy(&Behind::stack(&stack).await, &[("CHECK_INTERVAL", checks)]).await;
        let (tenant, mut cookie, mut old) = (tenant(), None, Vec::new());
        for _ in 0..6 {
            old.push(browser(&balancer, tenant.as_str(), &mut cookie).await.unwrap());
        }
        let draining = only_holder(&stack, 6).await;
        stack.gateways[draining].terminate();
        stack.gateways[draining].metric_becomes("gateway_draining", &[], 1.0).await;

        let new = browser(&balancer, tenant.as_str(), &mut cookie).await.unwrap();
        let counts = sockets(&stack).await;
        assert!(counts[draining] > 0, "none was left when the new one came: {counts:?}");
        assert_eq!(counts.iter().sum::<usize>() - counts[draining], 1, "{counts:?}");
        for mut dashboard in old {
            assert_eq!(dashboard.close_code().await, 1012);
        }
        new.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f40_a_reload_cuts_nobody() {
    let mut stack = Setup::new().gateways(3).start().await;
    let mut balancer = Balancer::haproxy(&Behind::stack(&stack).await, &[("CHECK_INTERVAL", CHECKED_OFTEN)]).await;
    let rooms = tenants(6);
    let before = Follower::start_all(&[balancer.addr], &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 8);
    let mut old = balancer.reload().await;
    let after = Follower::start_all(&[balancer.addr], &rooms).await;
    assert!(old.try_wait().is_none(), "it serves the sockets that it has");

    let ledgers = judge(before.into_iter().chain(after).collect(), traffic.stop().await).await;
    for ledger in ledgers {
        assert_eq!(ledger.count(|entry| matches!(entry, Entry::Dialled)), 1, "nobody had to come back: {ledger}");
    }
    let (status, _) = old.exit(PATIENCE).await;
    assert!(status.success(), "it ends with its last socket: {status}");
    stack.finish().await;
}

#[test]
fn f40_balancers_wait_for_longer_than_a_gateway_does() {
    // The gateway closes a socket that is silent for two of its intervals, and tells the page why.
    let two_heartbeats = 2 * 30;
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
    for (file, limits) in [
        ("haproxy/haproxy.cfg", &["timeout tunnel"][..]),
        ("nginx/nginx.conf", &["proxy_read_timeout", "proxy_send_timeout"]),
    ] {
        let configuration = std::fs::read_to_string(format!("{deploy}/{file}")).unwrap();
        for limit in limits {
            let line = configuration.lines().find_map(|line| line.trim().strip_prefix(limit)).unwrap();
            let minutes: u64 = line.trim().trim_end_matches(';').trim_end_matches('m').parse().unwrap();
            assert!(minutes * 60 > two_heartbeats, "{file}: {limit} {line}");
        }
    }
}

#[tokio::test]
async fn sockets_of_a_tenant_share_a_gateway_where_the_balancer_goes_by_tenant() {
    let stack = Setup::new().gateways(3).start().await;
    let variables = [("AFFINITY", "tenant"), ("CHECK_INTERVAL", CHECKED_OFTEN)];
    let balancer = Balancer::haproxy(&Behind::stack(&stack).await, &variables).await;
    let mut used = std::collections::HashSet::new();
    for tenant in tenants(12) {
        let token = Token::of(tenant.as_str()).sign();
        let mut open = Vec::new();
        for way in [Bring::Header, Bring::Subprotocol, Bring::Header, Bring::Subprotocol] {
            let mut dashboard = Dashboard::bring(balancer.addr, way, tenant.as_str(), &token).await;
            dashboard.expect_joined(tenant.as_str()).await;
            open.push(dashboard);
        }
        used.insert(only_holder(&stack, 4).await);
        for dashboard in open {
            dashboard.close().await;
        }
        only_holder(&stack, 0).await;
    }
    assert!(used.len() > 1, "twelve tenants, all on one gateway");
    stack.finish().await;
}

#[tokio::test]
async fn what_is_public_goes_through_and_nothing_else() {
    let stack = Setup::new().start().await;
    for balancer in unchecked(&stack).await {
        http::get(balancer.addr, "/asyncapi.json").await.expect(200);
        http::get(balancer.addr, "/dashboard/snapshot").await.expect(401);
        for internal in ["/metrics", "/healthz", "/readyz", "/v1/tenants", "/openapi.json"] {
            http::get(balancer.addr, internal).await.expect(404);
        }
        http::post(balancer.addr, "/v1/tenants/acorn/events", "{}").await.expect(404);
    }
    stack.finish().await;
}

#[tokio::test]
async fn the_longest_token_fits_through() {
    let stack = Setup::new().start().await;
    let tenant = tenant();
    let token = Token::of(tenant.as_str()).claim("roles", json!("x".repeat(12_000))).sign();
    assert!(token.len() > 16_000 && token.len() < 16_384, "{}", token.len());
    for balancer in unchecked(&stack).await {
        for way in Bring::ALL {
            let mut dashboard = Dashboard::bring(balancer.addr, way, tenant.as_str(), &token).await;
            dashboard.expect_joined(tenant.as_str()).await;
            dashboard.close().await;
        }
    }
    stack.finish().await;
}

#[tokio::test]
async fn the_forwarded_address_is_the_balancers_word() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    // Answers everything with what it was sent.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read_buf(&mut head).await, Ok(1..)) {}
                let length = head.len();
                let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all(&[answer.as_bytes(), &head].concat()).await
            });
        }
    });
    let echo = [Behind { public: addr, internal: addr }; 3];
    for balancer in [Balancer::haproxy(&echo, &[]).await, Balancer::nginx(&echo).await] {
        let lies = [("X-Forwarded-For", "6.6.6.6"), ("x-forwarded-for", "7.7.7.7"), ("X-Forwarded-Proto", "gopher")];
        let seen = http::get_with(balancer.addr, "/", &lies).await.body.to_lowercase();
        assert_eq!(seen.matches("x-forwarded-for").count(), 1, "{seen}");
        assert!(
            seen.contains("x-forwarded-for: 127.0.0.1\r\n") && seen.contains("x-forwarded-proto: http\r\n"),
            "{seen}"
        );
        assert!(!seen.contains("6.6.6.6") && !seen.contains("7.7.7.7") && !seen.contains("gopher"), "{seen}");
    }
}

#[tokio::test]
async fn sockets_are_encrypted_and_plain_http_is_sent_there() {
    let stack = Setup::new().start().await;
    let gateways = Behind::stack(&stack).await;
    for balancer in [Balancer::haproxy_with_tls(&gateways).await, Balancer::nginx_with_tls(&gateways).await] {
        let redirect = http::get(balancer.addr, "/").await;
        assert_eq!(redirect.status, 308);
        assert!(redirect.header("location").unwrap().starts_with("https://"), "{redirect:?}");

        let (addr, certificate) = balancer.tls.clone().unwrap();
        let token = Token::of(tenant().as_str()).sign();
        let head = raw::handshake(addr, &format!("Authorization: Bearer {token}\r\n\r\n"));
        let talk = tokio::task::spawn_blocking(move || {
            let mut client = Command::new("openssl")
                .args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname", "localhost", "-CAfile"])
                .arg(certificate)
                .args(["-connect", &addr.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            client.stdin.as_mut().unwrap().write_all(head.as_bytes()).unwrap();
            let (mut seen, mut chunk) = (String::new(), [0; 4096]);
            while !seen.contains(r#""type":"joined""#) {
                let read = client.stdout.as_mut().unwrap().read(&mut chunk).unwrap();
                assert_ne!(read, 0, "the connection ended after {seen:?}");
                seen.push_str(&String::from_utf8_lossy(&chunk[..read]));
            }
            client.kill().unwrap();
            client.wait().unwrap();
            seen.to_lowercase()
        });
        let seen = within("joined, through TLS", Duration::from_secs(15), talk).await.unwrap();
        assert!(seen.starts_with("http/1.1 101 "), "{seen}");
        assert!(seen.contains("strict-transport-security: ") && seen.contains("; secure\r\n"), "{seen}");
    }
    stack.finish().await;
}

/// A connection from another of loopback's addresses; 127.0.0.1 itself is not counted.
async fn from_another_address(addr: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.2:0".parse().unwrap())?;
    socket.connect(addr).await
}

/// The status of a request on a connection that stays open; none when the connection is cut.
async fn ask(stream: &mut TcpStream, head: &str) -> Option<u16> {
    stream.write_all(format!("{head}\r\n").as_bytes()).await.ok()?;
    let mut answer = [0; 1024];
    let read = within("an answer or an end", PATIENCE, stream.read(&mut answer)).await.ok()?;
    String::from_utf8_lossy(&answer[..read]).split(' ').nth(1)?.parse().ok()
}

#[tokio::test]
async fn b62_one_address_takes_no_more_than_its_share_of_sockets() {
    let stack = Setup::new().start().await;
    let gateways = Behind::stack(&stack).await;
    for balancer in [Balancer::haproxy(&gateways, &[]).await, Balancer::nginx(&gateways).await] {
        let head = raw::handshake(balancer.addr, "");
        let (mut open, mut refused) = (Vec::new(), 0);
        for _ in 0..300 {
            // A connection that is one too many may be cut before it is seen to be there.
            let Ok(mut stream) = from_another_address(balancer.addr).await else {
                refused += 1;
                continue;
            };
            match ask(&mut stream, &head).await {
                Some(101) => open.push(stream),
                None | Some(429) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((open.len(), refused), (256, 44));
        // Its neighbours notice nothing.
        let neighbour = tenant();
        browser(&balancer, neighbour.as_str(), &mut None).await.unwrap().close().await;
        drop(open);
        eventually("the share is free again", PATIENCE, async || {
            let mut stream = from_another_address(balancer.addr).await.ok()?;
            (ask(&mut stream, &head).await == Some(101)).then_some(())
        })
        .await;
    }
    stack.finish().await;
}

#[tokio::test]
async fn b62_one_address_asks_no_more_than_its_share() {
    let stack = Setup::new().start().await;
    let gateways = Behind::stack(&stack).await;
    for balancer in [Balancer::haproxy(&gateways, &[]).await, Balancer::nginx(&gateways).await] {
        let mut stream = from_another_address(balancer.addr).await.unwrap();
        let mut answered = 0;
        // Two windows of ten seconds, should the machine be slow.
        let refusal = loop {
            assert!(answered < 3000, "every request is answered");
            match ask(&mut stream, "GET /nothing HTTP/1.1\r\nHost: a\r\n").await {
                Some(404) => answered += 1,
                None => stream = from_another_address(balancer.addr).await.unwrap(),
                other => break other,
            }
        };
        assert_eq!(refusal, Some(429));
        assert!(answered >= 600, "{answered}");
        http::get(balancer.addr, "/asyncapi.json").await.expect(200);
    }
    stack.finish().await;
}

#[tokio::test]
async fn b73_a_balancers_log_has_paths_and_no_tokens() {
    let stack = Setup::new().start().await;
    let token = Token::of(tenant().as_str()).sign();
    for balancer in unchecked(&stack).await {
        for path in [format!("/dashboard?token={token}"), format!("/dashboard/snapshot?x={token}")] {
            assert_eq!(http::get(balancer.addr, &path).await.status, 400);
        }
        http::get(balancer.addr, "/dashboard/snapshot?tenantId=acorn").await.expect(401);
        let log = eventually("the requests are logged", PATIENCE, async || {
            let log = balancer.log();
            (log.matches("GET /dashboard").count() == 3).then_some(log)
        })
        .await;
        assert!(!log.contains("eyJ") && !log.contains("token") && !log.contains("tenantId"), "{log}");
    }
    stack.finish().await;
}
