//! Many who join at once: they wait for each other, and nobody who has joined waits for them.

use std::time::{Duration, Instant};

use publisher::{Publisher, TenantId};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

use crate::harness::ledger::Cursor;
use crate::harness::raw::{RawFrame, RawSocket};
use crate::harness::traffic::publish;
use crate::harness::{Bring, Calm, Dashboard, Setup, Stack, Token, payment, tenants, within};

const EVENTS: usize = 500;

/// Rooms with as much in their logs as a client may have missed, and where it was before.
async fn long_logs(stack: &Stack, rooms: &[TenantId]) -> Vec<Cursor> {
    let mut config = stack.publisher_config();
    config.events_per_second = 1000;
    let publisher = Publisher::connect(config).await.unwrap();
    let mut writing = JoinSet::new();
    let mut cursors = Vec::new();
    for room in rooms {
        let dashboard = stack.dashboard(room).await;
        cursors.push(dashboard.cursor());
        dashboard.close().await;
        let (publisher, room) = (publisher.clone(), room.clone());
        writing.spawn(async move {
            for _ in 0..EVENTS {
                publish(&publisher, &room, &payment()).await;
            }
        });
    }
    writing.join_all().await;
    publisher.close().await;
    cursors
}

/// Joins, and reads so many bytes as fast as they come; `None` when it was sent away, and told when to come again.
async fn catch_up(mut socket: RawSocket, join: String, bytes: usize) -> Option<RawSocket> {
    socket.send(RawFrame::text(&join)).await;
    let (mut read, mut buffer) = (0, vec![0; 64 * 1024]);
    while read < bytes {
        let more = socket.stream.read(&mut buffer).await.unwrap();
        if more == 0 {
            let said = String::from_utf8_lossy(&buffer);
            assert!(said.contains("too many dashboards join at once") && said.contains("retryInMs"), "{said}");
            return None;
        }
        read += more;
    }
    Some(socket)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_with_much_to_catch_up_do_not_delay_those_connected() {
    const CROWD: usize = 400;
    let stack = Setup::new().env("EVENTS_PER_SECOND", "1000").env("HEARTBEAT_SECONDS", "30").start().await;
    let rooms = tenants(10);
    let cursors = long_logs(&stack, &rooms).await;
    let calm = Calm::start(&stack, &tenants(10), 8).await;
    let mut waiting = Vec::new();
    for (room, cursor) in rooms.iter().zip(cursors).cycle().take(CROWD) {
        let data = json!({
            "tenantId": room.as_str(), "token": Token::of(room.as_str()).sign(),
            "epoch": cursor.epoch, "lastSeq": cursor.seq
        });
        let mut socket = RawSocket::connect(stack.addr()).await;
        socket.handshake(&crate::harness::raw::handshake(stack.addr(), "\r\n")).await;
        waiting.push((socket, json!({ "event": "join", "data": data }).to_string()));
    }
    let mut joining = JoinSet::new();
    let begun = Instant::now();
    for (socket, join) in waiting {
        // An event is no shorter than this.
        joining.spawn(catch_up(socket, join, EVENTS * 200));
    }
    let ended = within("every join has ended", Duration::from_secs(60), joining.join_all()).await;
    let storm = begun..Instant::now();
    let (_, latencies) = calm.stop().await;
    let latencies = latencies.during(storm.clone());
    let p99 = latencies[latencies.len() * 99 / 100];
    let joined: Vec<_> = ended.into_iter().flatten().collect();
    eprintln!(
        "{} of {CROWD} joins caught up with {EVENTS} events each in {:?}; the others: {} events, p99 {p99:?}, max {:?}",
        joined.len(),
        storm.end - storm.start,
        latencies.len(),
        latencies.last().unwrap()
    );
    assert!(joined.len() > CROWD / 4, "only {} of {CROWD} joined in time", joined.len());
    // In joins rather than seconds, as machines and builds differ: eight are under way. Without a queue 32 are read at once, and all
    // answers stand in front of an event.
    let each = (storm.end - storm.start) / joined.len() as u32;
    let bound = (each * 27).max(Duration::from_millis(100));
    assert!(p99 < bound, "those who had joined waited {p99:?}, for {each:?} a join");
    drop(joined);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_that_redis_refuses_hold_nobody_up() {
    const CROWD: usize = 150;
    let stack = Setup::new().env("HEARTBEAT_SECONDS", "30").start().await;
    let rooms = tenants(2);
    // Redis refuses every question about the first tenant.
    stack.redis().command(&["SET", &stack.state_key(&rooms[0]), "not a hash"]).await;
    let token = Token::of(rooms[0].as_str()).sign();
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let mut dashboard = Dashboard::bring(stack.addr(), Bring::Header, rooms[0].as_str(), &token).await;
        crowd.spawn(async move {
            // Nobody is sent away: each waits, and is told why.
            dashboard.expect("degraded").await;
            dashboard
        });
    }
    let begun = Instant::now();
    let other = stack.dashboard(&rooms[1]).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "another's join took {:?}", begun.elapsed());
    other.close().await;
    for dashboard in crowd.join_all().await {
        dashboard.close().await;
    }
    stack.finish().await;
}
