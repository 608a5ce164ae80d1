//! Accidents of the process itself: a log that can't be written (F60), signals, keys that are away at the start (F66).

use std::fs::{File, OpenOptions};
use std::io::PipeReader;
use std::process::Stdio;
use std::time::Duration;

use publisher::TenantId;

use crate::harness::process::scratch;
use crate::harness::wait::PATIENCE;
use crate::harness::{Dashboard, Gateway, Setup, Stack, eventually, http, payment, tenant};

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
