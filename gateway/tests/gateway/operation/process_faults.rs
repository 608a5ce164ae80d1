//! Accidents of the process itself: a log that can't be written (F60), signals, keys that are away at the start (F66).

use std::fs::{File, OpenOptions};
use std::io::PipeReader;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use publisher::TenantId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::harness::balancer::Behind;
use crate::harness::ports::free_port;
use crate::harness::process::{Signal, scratch};
use crate::harness::wait::PATIENCE;
use crate::harness::{Balancer, Bring, Dashboard, Gateway, Setup, Stack, eventually, http, payment, tenant};
use crate::tokens::signatures::{Listener, key_set_and_token};

/// Both outputs of a gateway in one pipe.
fn pipe() -> (PipeReader, Stdio, Stdio) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader, writer.try_clone().unwrap().into(), writer.into())
}

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// A Redis, and a gateway that writes to these outputs.
async fn stack(setup: Setup, stdout: Stdio, stderr: Stdio) -> Stack {
    let mut stack = setup.gateways(0).start().await;
    stack.add_gateway_writing_to(stdout, stderr).await;
    eventually("the gateway is ready", PATIENCE, async || {
        (http::get(stack.gateway().internal, "/readyz").await.status == 200).then_some(())
    })
    .await;
    stack
}

/// Publishes through the gateway's own API until it works, and waits for the event.
async fn an_event_arrives(stack: &Stack, room: &TenantId, dashboard: &mut Dashboard) {
    let event = payment();
    let json = serde_json::to_string(&event).unwrap();
    eventually("the gateway publishes", Duration::from_secs(30), async || {
        let path = format!("/v1/tenants/{room}/events");
        (http::post(stack.gateway().internal, &path, &json).await.status == 202).then_some(())
    })
    .await;
    let id = event.id.to_string();
    let seen = async {
        while !dashboard.ledger().has(&id) {
            dashboard.next_unbounded().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), seen).await.expect("the event arrives");
}

/// Connections are lost, Redis restarts, the gateway ends: each writes to the log.
async fn assert_serves(mut stack: Stack) {
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    an_event_arrives(&stack, &room, &mut dashboard).await;
    stack.redis().kill_everyone().await;
    an_event_arrives(&stack, &room, &mut dashboard).await;
    stack.redis_mut().kill9();
    stack.redis_mut().restart().await;
    // Redis comes back empty. An event that is published before the gateway is back would be behind the resync's position.
    dashboard.until("resync").await;
    an_event_arrives(&stack, &room, &mut dashboard).await;
    assert_eq!(http::get(stack.gateway().internal, "/healthz").await.status, 200);
    stack.gateway().terminate();
    dashboard.until("error").await;
    assert_eq!(dashboard.close_code().await, 1012, "drained");
    let (status, took) = stack.gateways[0].exit(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(0), "{status} after {took:?}");
}

#[tokio::test]
async fn f60_a_log_whose_reader_is_gone_stops_nothing() {
    let (reader, stdout, stderr) = pipe();
    let stack = stack(Setup::new(), stdout, stderr).await;
    drop(reader);
    assert_serves(stack).await;
}

#[tokio::test]
async fn f60_a_log_on_a_full_disk_stops_nothing() {
    let stack = stack(Setup::new(), full().into(), full().into()).await;
    stack.gateway().metric_until("gateway_log_lines_dropped_total", &[], PATIENCE, "counts", |count| count > 0.0).await;
    assert_serves(stack).await;
}

#[tokio::test]
async fn f60_a_log_file_at_its_size_limit_stops_nothing() {
    let file = || File::create(scratch("logs").join(format!("{}.log", tenant()))).unwrap();
    let stack = stack(Setup::new(), file().into(), file().into()).await;
    stack.gateway().limit_file_size(0);
    assert_serves(stack).await;
}

#[tokio::test]
async fn f60_a_log_whose_reader_stalls_stops_nothing() {
    let (reader, stdout, stderr) = pipe();
    rustix::pipe::fcntl_setpipe_size(&reader, 4096).unwrap();
    let stack = stack(Setup::new().env("LOG", "debug"), stdout, stderr).await;
    eventually("lines are dropped", Duration::from_secs(60), async || {
        for _ in 0..200 {
            // Each is a line of the log.
            http::raw(stack.addr(), b"nonsense\r\n\r\n").await;
        }
        (stack.gateway().metric("gateway_log_lines_dropped_total", &[]).await > 0.0).then_some(())
    })
    .await;
    assert_serves(stack).await;
    drop(reader);
}

#[tokio::test]
async fn f60_a_command_whose_output_is_full_or_closed_fails_without_a_panic() {
    let setup = Setup::new();
    let good = setup.environment().to_vec();
    let bad = setup.env("MAX_CONNECTIONS", "many").environment().to_vec();
    let closed = || {
        let (reader, stdout, stderr) = pipe();
        drop((reader, stderr));
        stdout
    };
    let token: &[&str] = &["token", "--tenant", "t1"];
    for (arguments, environment, code) in [(token, &good, 1), (&["check"], &good, 1), (&["serve"], &bad, 2)] {
        let words = [1, 2].map(|n| scratch("words").join(format!("{}-{n}", arguments[0])));
        let [first, second] = words.each_ref().map(|path| Stdio::from(File::create(path).unwrap()));
        let outputs =
            [(full().into(), first), (closed(), second), (full().into(), full().into()), (closed(), closed())];
        for (stdout, stderr) in outputs {
            let status = Gateway::run_writing_to(arguments, environment, stdout, stderr).await;
            assert_eq!(status.code(), Some(code), "{arguments:?}");
        }
        for words in words {
            let words = std::fs::read_to_string(&words).unwrap();
            assert!(words.starts_with("gateway: ") && words.lines().count() == 1, "{arguments:?}: {words}");
        }
    }
}

#[tokio::test]
async fn f66_a_health_check_in_http_1_0_needs_no_host() {
    let stack = Setup::new().start().await;
    let gateway = stack.gateway();
    let [behind] = Behind::stack(&stack).await[..] else { panic!("one gateway") };
    for (status, addr, head) in [
        (200, gateway.internal, "GET /readyz HTTP/1.0\r\n\r\n"),
        (200, gateway.internal, "GET /readyz HTTP/1.0\r\nHost: a\r\n\r\n"),
        (200, gateway.public, "GET / HTTP/1.0\r\n\r\n"),
        (400, gateway.internal, "GET /readyz HTTP/1.1\r\n\r\n"),
        (400, gateway.internal, "GET /readyz HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"),
        (400, gateway.internal, "GET /readyz HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    ] {
        assert_eq!(http::raw(addr, head.as_bytes()).await.unwrap().status, status, "{head:?}");
    }
    let balancer = Balancer::haproxy_with_a_short_check(behind).await;
    for _ in 0..20 {
        // HAProxy asks ten times a second; one bad answer marks the gateway down.
        sleep(Duration::from_millis(100)).await;
        assert_eq!(http::get(balancer.addr, "/asyncapi.json").await.status, 200);
    }
    stack.finish().await;
}

/// Asks on a connection that stays open; whether it was answered.
async fn asks(stream: &mut TcpStream) -> bool {
    let request = b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n";
    if stream.write_all(request).await.is_err() {
        return false;
    }
    let mut answer = [0; 4096];
    let read = stream.read(&mut answer).await.unwrap_or(0);
    answer[..read].starts_with(b"HTTP/1.1 404")
}

#[tokio::test]
async fn f66_a_connection_that_had_an_answer_is_kept_for_75_s() {
    let stack = Setup::new().start().await;
    let idle = async |addr: SocketAddr| {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        assert!(asks(&mut stream).await);
        let begun = Instant::now();
        let closed = timeout(Duration::from_secs(120), stream.read(&mut [0])).await.expect("it is closed in the end");
        assert!(matches!(closed, Ok(0)), "{closed:?}");
        assert!(begun.elapsed() >= Duration::from_secs(74), "closed after {:?}", begun.elapsed());
    };
    let used = async |addr: SocketAddr| {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        assert!(asks(&mut stream).await);
        sleep(Duration::from_secs(65)).await;
        assert!(asks(&mut stream).await, "closed before a balancer would");
    };
    let (public, internal) = (stack.gateway().public, stack.gateway().internal);
    tokio::join!(idle(public), used(public), idle(internal), used(internal));
    // Neither is a request that was never made.
    assert_eq!(stack.gateway().metric("gateway_http_requests_total", &[r#"status="408""#]).await, 0.0);
    stack.finish().await;
}

#[tokio::test]
async fn f66_idle_connections_keep_nobody_out() {
    let stack = Setup::new().env("MAX_CONNECTIONS", "10").start().await;
    let mut idle = Vec::new();
    for _ in 0..256 {
        let mut stream = TcpStream::connect(stack.addr()).await.unwrap();
        assert!(asks(&mut stream).await);
        idle.push(stream);
    }
    let mut late = TcpStream::connect(stack.addr()).await.unwrap();
    let begun = Instant::now();
    assert!(timeout(Duration::from_secs(60), asks(&mut late)).await.expect("room was made"));
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    drop((idle, late));
    stack.finish().await;
}

#[tokio::test]
async fn f66_sighup_drains_and_quit_and_usr_are_ignored() {
    let mut stack = Setup::new().env("DRAIN_SECONDS", "3").start().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    let ignored = [(Signal::QUIT, "SIGQUIT"), (Signal::USR1, "SIGUSR1"), (Signal::USR2, "SIGUSR2")];
    for (signal, name) in ignored {
        stack.gateway().signal(signal);
        let lines = |stack: &Stack| {
            let lines = stack.gateway().log().lines().into_iter();
            lines.filter(|line| line.contains("signal ignored") && line.contains(name)).count()
        };
        eventually("it is logged", PATIENCE, async || (lines(&stack) == 1).then_some(())).await;
        dashboard.ping().await;
    }
    stack.gateway().signal(Signal::HUP);
    eventually("the gateway drains", PATIENCE, async || {
        let ready = http::get(stack.gateway().internal, "/readyz").await;
        (ready.status == 503 && ready.json()["reason"] == "draining").then_some(())
    })
    .await;
    // A closing terminal may send it twice.
    stack.gateway().signal(Signal::HUP);
    dashboard.until("error").await;
    assert_eq!(dashboard.close_code().await, 1012);
    let (status, took) = stack.gateways[0].exit(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(0), "after {took:?}");
}

#[tokio::test]
async fn f66_keys_that_are_away_at_the_start_are_waited_for() {
    let room = tenant();
    let (keys, token) = key_set_and_token(room.as_str());
    let issuer = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let setup = Setup::new().without("JWT_SECRET").env("JWT_JWKS", &format!("http://{issuer}/jwks.json"));
    let (status, log) = Gateway::run(&["check"], setup.environment()).await;
    assert_eq!(status.code(), Some(1), "{}", log.text());
    assert!(log.text().contains("keys: JWT_JWKS cannot be read"), "{}", log.text());

    let stack = setup.start().await;
    let ready = http::get(stack.gateway().internal, "/readyz").await;
    assert_eq!((ready.status, &ready.json()["reason"]), (503, &"keys".into()));
    for way in Bring::ALL {
        let mut dashboard = Dashboard::bring(stack.addr(), way, room.as_str(), &token).await;
        let error = dashboard.expect_refusal(1013).await;
        assert_eq!(error.data["code"], "keys", "{way:?}");
        assert!(error.data["retryInMs"].is_u64(), "{way:?}: {}", error.raw);
    }
    let authorization = format!("Bearer {token}");
    let snapshot = async || {
        http::get_with(stack.addr(), "/dashboard/snapshot", &[("Authorization", authorization.as_str())]).await
    };
    let refused = snapshot().await.expect(503);
    assert_eq!((refused.code().as_str(), refused.header("retry-after")), ("keys", Some("1")));
    // Nonsense is nonsense whatever the keys.
    http::get_with(stack.addr(), "/dashboard/snapshot", &[("Authorization", "Bearer x")]).await.expect(401);

    let back = Instant::now();
    let _issuer = Listener::start_at(issuer, keys).await;
    eventually("the gateway is ready", Duration::from_secs(60), async || {
        (http::get(stack.gateway().internal, "/readyz").await.status == 200).then_some(())
    })
    .await;
    eprintln!("ready {:?} after the keys were there", back.elapsed());
    snapshot().await.expect(200);
    Dashboard::joined(stack.addr(), room.as_str(), &token).await.close().await;
    stack.refused(&["disconnects keys", "http_requests 503", "http_requests 401", "joins keys"]).await;
    stack.finish().await;
}
