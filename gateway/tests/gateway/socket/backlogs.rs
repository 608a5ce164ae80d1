//! Seats and memory: what one socket, one user or a crowd of strangers can take from the others (B61, B62, B64).

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::dashboard::Bring;
use crate::harness::events::bulky;
use crate::harness::ledger::Cursor;
use crate::harness::stack::hostile;
use crate::harness::wait::PATIENCE;
use crate::harness::{Dashboard, Incoming, Setup, Stack, Token, eventually, http, payment, tenant};
use crate::socket::client_faults::joined_narrowly;

/// A handshake that offers these subprotocols beside ours.
async fn offering(addr: SocketAddr, offers: &[String]) -> Dashboard {
    let offer = format!("crechebooks.dashboard.v1, {}", offers.join(", "));
    let (dashboard, response) = Dashboard::connect(addr, &[("sec-websocket-protocol", &offer)]).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "crechebooks.dashboard.v1");
    dashboard
}

/// Publishes as many events to the room as the log holds; returns the position just before the first of them.
async fn fill_the_log(stack: &mut Stack, dashboard: &mut Dashboard, room: &publisher::TenantId) -> Cursor {
    const LOGGED: usize = 512;
    let mut config = stack.publisher_config();
    config.events_per_second = 1000;
    let publisher = publisher::Publisher::connect(config).await.unwrap();
    dashboard.ping().await;
    for _ in 0..=LOGGED {
        crate::harness::traffic::publish(&publisher, room, &bulky()).await;
        dashboard.next_event().await;
    }
    publisher.close().await;
    let head = dashboard.cursor();
    Cursor { seq: head.seq - LOGGED as u64 + 1, ..head }
}

/// The answer to one join may be as large as the whole log, and each of these clients asks for forty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b61_a_socket_that_does_not_read_piles_up_no_replays() {
    const SOCKETS: usize = 10;
    const REJOINS: usize = 40;
    let setup = Setup::new().env("EVENTS_PER_SECOND", "1000");
    hostile(setup, &["disconnects slow_consumer"], async |stack, _| {
        let room = tenant();
        let mut reader = stack.dashboard(&room).await;
        let first = fill_the_log(stack, &mut reader, &room).await;
        let before = stack.gateway().resident_kib();
        let leave = json!({"event": "leave"});
        let mut greedy = Vec::new();
        for _ in 0..SOCKETS {
            let mut socket = joined_narrowly(stack.addr(), &room).await;
            for _ in 0..REJOINS {
                socket.send_json(leave.clone()).await;
                socket.send_join(room.as_str(), None, Some(&first)).await;
            }
            greedy.push(socket);
        }
        // Who reads is not kept waiting meanwhile, and who comes isn't either.
        let receipt = stack.publish(&room, &payment()).await;
        assert_eq!(reader.next_event().await.id, Some(receipt.id));
        stack.dashboard(&tenant()).await.close().await;
        // An answer that was read only in part is owed: a client that asks again is closed.
        eventually("all are let go", PATIENCE * 3, async || {
            for socket in &mut greedy {
                socket.send_json(leave.clone()).await;
            }
            let slow = stack.gateway().metric("gateway_disconnects_total", &["reason=\"slow_consumer\""]).await;
            (slow == SOCKETS as f64).then_some(())
        })
        .await;
        let grown = stack.gateway().resident_kib().saturating_sub(before) / 1024;
        assert!(grown < 16 * SOCKETS as u64, "memory grew by {grown} MiB, an answer is one of 7");
        drop(greedy);
        reader.close().await;
    })
    .await;
}

#[tokio::test]
async fn b61_who_reads_may_join_and_leave_as_often_as_it_likes() {
    let mut stack = Setup::new().env("EVENTS_PER_SECOND", "1000").lease().await;
    let room = tenant();
    let mut reader = stack.dashboard(&room).await;
    let first = fill_the_log(&mut stack, &mut reader, &room).await;
    let token = Token::of(room.as_str()).sign();
    let mut restless = Dashboard::open(stack.addr()).await;
    for _ in 0..5 {
        assert_eq!(restless.resume(room.as_str(), &token, &first).await.data["recovered"], true);
        for _ in 1..512 {
            restless.next_event().await;
        }
        restless.leave().await;
    }
    restless.close().await;
    reader.close().await;
    stack.refused(&[]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b62_the_handshake_joins_and_resumes_at_once() {
    let mut stack = Setup::new().lease().await;
    let (room, other) = (tenant(), tenant());
    let bearer = format!("bearer.{}", Token::naming(json!([other, room])).sign());
    let choice = format!("tenant.{room}");
    let mut dashboard = offering(stack.addr(), &[bearer.clone(), choice.clone()]).await;
    assert_eq!(dashboard.expect_joined(room.as_str()).await.data["recovered"], false);
    let seen = stack.publish(&room, &payment()).await;
    assert_eq!(dashboard.next_event().await.id, Some(seen.id.clone()));
    let (cursor, ledger) = (dashboard.cursor(), dashboard.close().await);

    let missed = [stack.publish(&room, &payment()).await, stack.publish(&room, &payment()).await];
    for id in ["", ".", &format!(".{}", seen.id)] {
        let resume = format!("resume.{}.{}{id}", cursor.epoch, cursor.seq);
        let back = offering(stack.addr(), &[resume, choice.clone(), bearer.clone()]).await;
        let mut back = back.continuing(ledger.clone());
        assert_eq!(back.expect_joined(room.as_str()).await.data["recovered"], true, "{id}");
        for receipt in &missed {
            assert_eq!(back.next_event().await.id.as_ref(), Some(&receipt.id));
        }
        back.close().await;
    }
    // The position of another event under this number is no position of this stream.
    let resume = format!("resume.{}.{}.{}", cursor.epoch, cursor.seq, missed[0].id);
    let mut rewound = offering(stack.addr(), &[bearer, choice, resume]).await;
    assert_eq!(rewound.expect_joined(room.as_str()).await.data["recovered"], false);
    rewound.close().await;
    stack.refused(&[]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b62_a_choice_is_no_way_into_another_tenant() {
    hostile(Setup::new(), &["disconnects wrong_tenant", "joins wrong_tenant"], async |stack, bystanders| {
        let own = tenant();
        for claim in [json!(own), json!([own, tenant()])] {
            let bearer = format!("bearer.{}", Token::naming(claim).sign());
            let mut thief = offering(stack.addr(), &[bearer, format!("tenant.{}", bystanders.victim)]).await;
            thief.expect_refusal(4403).await;
        }
    })
    .await;
}

#[tokio::test]
async fn b62_without_a_choice_the_tenants_are_named() {
    let stack = Setup::new().lease().await;
    let rooms = [tenant(), tenant()];
    let token = Token::naming(json!(rooms)).sign();
    let snapshot = format!("Bearer {token}");
    let snapshot =
        http::get_with(stack.addr(), "/dashboard/snapshot", &[("Authorization", &snapshot)]).await.expect(400);
    let problem: Value = serde_json::from_str(&snapshot.body).unwrap();
    assert_eq!((&problem["code"], &problem["tenants"]), (&json!("tenant_required"), &json!(rooms)), "{problem}");
    let bearer = format!("bearer.{token}");
    for offers in [vec![], vec!["tenant.a.b".to_owned()], rooms.iter().map(|room| format!("tenant.{room}")).collect()] {
        let mut undecided = offering(stack.addr(), &[vec![bearer.clone()], offers].concat()).await;
        let error = undecided.expect_error("tenant_required").await;
        assert_eq!(error.data["tenants"], json!(rooms), "{}", error.raw);
        undecided.send_join(rooms[1].as_str(), None, None).await;
        undecided.expect_joined(rooms[1].as_str()).await;
        undecided.close().await;
    }
    // Offers that can't be read are nothing to a token that leaves no choice.
    let bearer = format!("bearer.{}", Token::of(rooms[0].as_str()).sign());
    for offer in ["resume.e", "resume.e.-1", "tenant.", "chat", "resume.nowhere.7"] {
        let mut dashboard = offering(stack.addr(), &[bearer.clone(), offer.to_owned()]).await;
        assert_eq!(dashboard.expect_joined(rooms[0].as_str()).await.data["recovered"], false, "{offer}");
        dashboard.close().await;
    }
    stack.refused(&["http_requests 400"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b62_a_stranger_makes_room_for_the_next() {
    const SEATS: usize = 5;
    let setup = Setup::new().env("MAX_CONNECTIONS", "5").env("JOIN_TIMEOUT_SECONDS", "600");
    hostile(setup, &["disconnects full"], async |stack, bystanders| {
        let mut strangers = Vec::new();
        for _ in 0..SEATS {
            strangers.push(Dashboard::open(stack.addr()).await);
            stack.gateway().metric_becomes("gateway_unauthenticated", &[], strangers.len() as f64).await;
        }
        let mut kept = Vec::new();
        for mut oldest in strangers {
            let mut next = Dashboard::open(stack.addr()).await;
            assert!(oldest.expect_refusal(1013).await.data["retryInMs"].is_u64());
            next.join(bystanders.victim.as_str(), &bystanders.token()).await;
            next.close().await;
            // Another takes the place that is free again, so that the pool stays full.
            kept.push(Dashboard::open(stack.addr()).await);
            stack.gateway().metric_becomes("gateway_unauthenticated", &[], SEATS as f64).await;
        }
    })
    .await;
}

/// Brings a token in this way; returns the error that refuses it.
async fn refused_as_full(stack: &Stack, way: Bring, room: &str, token: &str) -> Value {
    let mut refused = Dashboard::bring(stack.addr(), way, room, token).await;
    refused.expect_refusal(1013).await.data
}

#[tokio::test]
async fn b64_one_user_takes_a_few_seats_only() {
    let setup = Setup::new().env("MAX_CONNECTIONS", "10").env("MAX_CONNECTIONS_PER_USER", "3");
    hostile(setup, &["disconnects full", "joins full"], async |stack, bystanders| {
        let rooms = [tenant(), tenant()];
        let of = |room: usize, user: &str| Token::of(rooms[room].as_str()).claim("sub", json!(user)).sign();
        let mut held = Vec::new();
        for (way, room) in Bring::ALL.into_iter().zip([0, 1, 0]) {
            let mut dashboard = Dashboard::bring(stack.addr(), way, rooms[room].as_str(), &of(room, "greedy")).await;
            dashboard.expect_joined(rooms[room].as_str()).await;
            held.push(dashboard);
        }
        // In whatever room, and however the token comes.
        for way in Bring::ALL {
            let error = refused_as_full(stack, way, rooms[1].as_str(), &of(1, "greedy")).await;
            assert!(error["retryInMs"].is_u64() && error["message"].as_str().unwrap().contains("user"), "{error}");
        }
        let mut modest = Dashboard::open(stack.addr()).await;
        modest.join(rooms[0].as_str(), &of(0, "modest")).await;
        // A renewal is no further seat.
        held[0].send_join(rooms[0].as_str(), Some(&of(0, "greedy")), None).await;
        held[0].expect_joined(rooms[0].as_str()).await;
        held.pop().unwrap().close().await;
        stack.gateway().metric_becomes("gateway_connections", &[], 5.0).await;
        let mut again = Dashboard::open(stack.addr()).await;
        again.join(rooms[0].as_str(), &of(0, "greedy")).await;

        // A token that names nobody is counted by itself.
        let nobody = |seconds| Token::of(bystanders.victim.as_str()).without_claim("sub").expiring_in(seconds).sign();
        let mut anonymous = Vec::new();
        for _ in 0..3 {
            let mut dashboard = Dashboard::open(stack.addr()).await;
            dashboard.join(bystanders.victim.as_str(), &nobody(3000)).await;
            anonymous.push(dashboard);
        }
        refused_as_full(stack, Bring::Join, bystanders.victim.as_str(), &nobody(3000)).await;
        let mut other = Dashboard::open(stack.addr()).await;
        other.join(bystanders.victim.as_str(), &nobody(3001)).await;
        for dashboard in held.into_iter().chain([modest, again, other]).chain(anonymous) {
            dashboard.close().await;
        }
    })
    .await;
}

/// A centre that opens its dashboards on every device leaves most of the seats to the others by default.
#[tokio::test]
async fn b64_one_tenant_takes_a_quarter_by_default() {
    let stack = Setup::new().env("MAX_CONNECTIONS", "404").lease().await;
    let room = tenant();
    let mut held = Vec::new();
    for _ in 0..101 {
        held.push(stack.dashboard(&room).await);
    }
    let mut refused = Dashboard::open(stack.addr()).await;
    refused.send_join(room.as_str(), Some(&Token::of(room.as_str()).sign()), None).await;
    let error = loop {
        match refused.next().await {
            Incoming::Message(message) => assert_eq!(message.kind, "error", "{}", message.raw),
            Incoming::Closed(code) => break code,
        }
    };
    assert_eq!(error, Some(1013));
    stack.dashboard(&tenant()).await.close().await;
    for dashboard in held {
        dashboard.close().await;
    }
    stack.refused(&["disconnects full", "joins tenant_full"]).await;
    stack.finish().await;
}
