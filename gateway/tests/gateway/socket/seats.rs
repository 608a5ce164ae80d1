//! Connections that are no WebSockets (B63): idle ones, and ones that never end, keep nobody out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::harness::raw::handshake;
use crate::harness::{Setup, Stack, eventually, hostile, http, tenant};

/// Seats of a port whose MAX_CONNECTIONS is small, and of the internal port.
const SEATS: usize = 256;
/// Old code kept a join waiting for ten seconds; nothing but a busy machine does so for this long.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Opens a connection with these first bytes, and another whenever that is closed, for ever.
async fn occupy(addr: SocketAddr, first: String) {
    loop {
        let Ok(mut stream) = TcpStream::connect(addr).await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.write_all(first.as_bytes()).await;
        while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
        // Four hundred of them, a quarter of a processor: an attacker's, not the gateway's limit.
        sleep(Duration::from_millis(50)).await;
    }
}

const REQUEST: &str = "GET /asyncapi.json HTTP/1.1\r\nHost: a\r\n\r\n";

/// A connection that has asked, with little room for what is answered.
async fn asking(addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    let mut stream = socket.connect(addr).await.unwrap();
    stream.write_all(REQUEST.as_bytes()).await.unwrap();
    stream
}

/// Pipelines requests and reads a byte now and then, until the gateway closes the connection.
async fn trickle(mut stream: TcpStream) {
    let (mut reader, mut writer) = stream.split();
    let read = async {
        while let Ok(1..) = reader.read(&mut [0; 1]).await {
            sleep(Duration::from_millis(500)).await;
        }
    };
    // The rest of the requests finds no room until the end.
    let write = async {
        let _ = writer.write_all(REQUEST.repeat(400).as_bytes()).await;
        std::future::pending().await
    };
    tokio::select! { () = read => {}, () = write => {} }
}

async fn joins_at_once(stack: &Stack, times: usize) {
    for _ in 0..times {
        let begun = Instant::now();
        stack.dashboard(&tenant()).await.close().await;
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        let ready = http::get(stack.gateway().internal, "/readyz").await;
        assert_eq!(ready.status, 200, "{ready:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b63_idle_connections_that_are_reopened_delay_no_join() {
    let setup = Setup::new().env("MAX_CONNECTIONS", "10").env("HEARTBEAT_SECONDS", "30");
    hostile(setup, &["http_requests 404", "http_requests 408"], async |stack, _| {
        let addr = stack.addr();
        let half = handshake(addr, "");
        let mut strangers = JoinSet::new();
        for index in 0..400 {
            let first = match index % 3 {
                0 => String::new(),
                1 => half[..half.len() / 2].to_owned(),
                _ => "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            };
            strangers.spawn(occupy(addr, first));
        }
        let line = "HTTP connections are short, the longest idle are closed";
        eventually("the seats are short", Duration::from_secs(20), async || {
            stack.gateway().log().text().contains(line).then_some(())
        })
        .await;
        joins_at_once(stack, 20).await;
        let lines = stack.gateway().log().lines().into_iter().filter(|logged| logged.contains(line)).count();
        assert!(lines <= 2, "one line a minute, not {lines}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b63_readers_that_trickle_hold_no_seat() {
    let setup = Setup::new().env("MAX_CONNECTIONS", "10").env("HEARTBEAT_SECONDS", "30");
    hostile(setup, &[], async |stack, _| {
        let (addr, begun, before) = (stack.addr(), Instant::now(), stack.gateway().file_descriptors());
        let mut readers = JoinSet::new();
        for _ in 0..SEATS {
            // Each has asked before the next comes: short of seats, a head has two seconds, which a busy test may need.
            readers.spawn(trickle(asking(addr).await));
        }
        let held = || stack.gateway().file_descriptors().saturating_sub(before);
        eventually("they hold the port", AT_ONCE, async || (held() >= SEATS - 10).then_some(())).await;
        joins_at_once(stack, 5).await;
        // An answer has 30 s, however many more were asked for. The readers learn of it only when they have read what was sent.
        eventually("none is held any more", Duration::from_secs(60), async || (held() < 10).then_some(())).await;
        eprintln!("all were cut after {:?}", begun.elapsed());
        readers.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b63_strangers_on_the_internal_port_keep_no_check_out() {
    hostile(Setup::new().env("HEARTBEAT_SECONDS", "30"), &["http_requests 408"], async |stack, _| {
        let internal = stack.gateway().internal;
        let is_ready = async || (http::get(internal, "/readyz").await.status == 200).then_some(());
        eventually("delivery is proved", AT_ONCE, is_ready).await;
        let before = stack.gateway().file_descriptors();
        let mut strangers = JoinSet::new();
        for _ in 0..SEATS + 50 {
            strangers.spawn(occupy(internal, String::new()));
        }
        let held = || stack.gateway().file_descriptors().saturating_sub(before);
        eventually("they hold the port", AT_ONCE, async || (held() >= SEATS - 10).then_some(())).await;
        joins_at_once(stack, 20).await;
    })
    .await;
}

#[tokio::test]
async fn b63_a_connection_has_a_thousand_requests() {
    let stack = Setup::new().memory().lease().await;
    let mut stream = TcpStream::connect(stack.addr()).await.unwrap();
    let requests = "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1100);
    let (mut reader, mut writer) = stream.split();
    let mut answers = Vec::new();
    let (_, read) = tokio::join!(
        writer.write_all(requests.as_bytes()),
        timeout(Duration::from_secs(20), reader.read_to_end(&mut answers))
    );
    // A reset, since we sent more than was read, is an end too.
    assert!(read.is_ok(), "the connection stays open");
    let text = String::from_utf8_lossy(&answers).to_lowercase();
    assert_eq!(text.matches("http/1.1 404").count(), 1000);
    assert_eq!(text.matches("connection: close").count(), 1);
    stack.refused(&["http_requests 404"]).await;
    stack.finish().await;
}
