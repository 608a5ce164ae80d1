//! B52–B53 and the life of a session: join, leave, switch, renew, expire, be kicked.

use std::time::{Duration, Instant};

use publisher::TenantId;
use serde_json::{Value, json};

use crate::harness::ledger::Entry;
use crate::harness::raw::{RawFrame, RawSocket};
use crate::harness::token::now;
use crate::harness::wait::eventually;
use crate::harness::{Bring, Dashboard, Incoming, Oracle, Setup, Token, Traffic, hostile, http, payment, tenant};

#[tokio::test]
async fn joined_and_events_have_the_documented_shape() {
    let mut stack = Setup::new().lease().await;
    let room = tenant();
    let mut dashboard = Dashboard::open(stack.addr()).await;
    let joined = dashboard.join(room.as_str(), &Token::of(room.as_str()).sign()).await;
    assert_eq!(joined.data["tenantId"], room.as_str());
    assert_eq!(joined.data["seq"], 0);
    assert_eq!(joined.data["recovered"], false);
    assert_eq!(joined.data["heartbeatSeconds"], 5);
    assert_eq!((&joined.data["metrics"], &joined.data["payments"]), (&Value::Null, &Value::Null));
    assert!(joined.data["epoch"].as_str().is_some_and(|epoch| !epoch.is_empty()));

    let event = payment();
    let receipt = stack.publish(&room, &event).await;
    let seen = dashboard.next_event().await;
    assert_eq!((seen.seq, seen.id.as_deref()), (Some(1), Some(receipt.id.as_str())));
    assert_eq!(seen.kind, "payment_received");
    assert!(seen.timestamp.ends_with('Z'), "RFC 3339 in UTC, not {}", seen.timestamp);
    let published = serde_json::to_value(&event).unwrap();
    assert_eq!(seen.data, published["data"]);
    let cents = seen.raw.split(r#""amount":"#).nth(1).unwrap().split(['.', ',']).nth(1).unwrap();
    assert_eq!(cents.len(), 2, "two decimals: {}", seen.raw);

    let heartbeat = dashboard.ping().await;
    assert_eq!((&heartbeat.data["seq"], &heartbeat.data["epoch"]), (&json!(1), &joined.data["epoch"]));
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn a_token_can_come_in_three_ways() {
    let mut stack = Setup::new().lease().await;
    let room = tenant();
    let token = Token::of(room.as_str()).sign();
    for way in Bring::ALL {
        let mut dashboard = Dashboard::bring(stack.addr(), way, room.as_str(), &token).await;
        dashboard.expect_joined(room.as_str()).await;
        let receipt = stack.publish(&room, &payment()).await;
        assert_eq!(dashboard.next_event().await.id, Some(receipt.id), "{way:?}");
        dashboard.close().await;
    }
    stack.finish().await;
}

#[tokio::test]
async fn an_accountant_joins_any_of_the_named_centres_with_one_token() {
    let stack = Setup::new().lease().await;
    let rooms = [tenant(), tenant(), tenant()];
    let token = Token::naming(json!(rooms.each_ref().map(|room| room.as_str()))).sign();
    let mut dashboard = Dashboard::bring(stack.addr(), Bring::Subprotocol, "", &token).await;
    for room in &rooms {
        dashboard.send_join(room.as_str(), None, None).await;
        assert_eq!(dashboard.until("joined").await.data["tenantId"], room.as_str());
        stack.subscriptions_become(&[room]).await;
    }
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn leave_ends_events_and_the_socket_may_join_again() {
    let mut stack = Setup::new().lease().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    stack.publish(&room, &payment()).await;
    assert_eq!(dashboard.next_event().await.seq, Some(1));
    dashboard.leave().await;
    stack.subscriptions_become(&[]).await;
    stack.gateway().metric_becomes("gateway_tenants", &[], 0.0).await;
    stack.publish(&room, &payment()).await;
    // Nothing of it may come between `left` and the next `joined`.
    dashboard.send_join(room.as_str(), None, None).await;
    let joined = dashboard.expect_joined(room.as_str()).await;
    assert_eq!(joined.data["seq"], 2);
    stack.publish(&room, &payment()).await;
    assert_eq!(dashboard.next_event().await.seq, Some(3));
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn a_socket_that_left_must_join_within_the_join_timeout() {
    let stack = Setup::new().env("JOIN_TIMEOUT_SECONDS", "1").lease().await;
    let mut dashboard = stack.dashboard(&tenant()).await;
    dashboard.leave().await;
    dashboard.expect_refusal(4408).await;
    stack.finish().await;
}

#[tokio::test]
async fn b52_switching_centres_mixes_nothing() {
    let mut stack = Setup::new().lease().await;
    let rooms = [tenant(), tenant()];
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 10);
    let token = Token::naming(json!(rooms.each_ref().map(|room| room.as_str()))).sign();
    let mut dashboard = Dashboard::open(stack.addr()).await;
    for turn in 0..20 {
        let room = &rooms[turn % 2];
        dashboard.send_join(room.as_str(), Some(&token), None).await;
        while dashboard.until("joined").await.data["tenantId"] != room.as_str() {}
        if turn % 3 == 0 {
            dashboard.next_event().await;
        }
    }
    let receipts = traffic.stop().await;
    let ledger = dashboard.close().await;
    // O5: after `joined` B no event of A; O2 within each stay.
    Oracle::new(receipts).judge("the one that switches", &ledger);
    stack.refused(&[]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b52_renewal_keeps_the_position() {
    let mut stack = Setup::new().lease().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    let mut receipts = vec![stack.publish(&room, &payment()).await];
    for ttl in [600, 700, 800] {
        dashboard.send_join(room.as_str(), Some(&Token::of(room.as_str()).expiring_in(ttl).sign()), None).await;
        receipts.push(stack.publish(&room, &payment()).await);
    }
    let last = receipts.last().unwrap().id.clone();
    while !dashboard.ledger().has(&last) {
        dashboard.next().await;
    }
    assert_eq!(dashboard.ledger().ids().count(), 4, "each event once: {}", dashboard.ledger());
    assert_eq!(stack.gateway().metric("gateway_connections", &[]).await, 1.0);
    Oracle::new(receipts).judge_to_the_end("the one that renews", &dashboard.close().await);
    stack.refused(&[]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b52_bad_renewals_are_4401() {
    let counted = [
        "disconnects token_expired",
        "disconnects unauthorized",
        "disconnects wrong_tenant",
        "joins token_expired",
        "joins unauthorized",
        "joins wrong_tenant",
    ];
    hostile(Setup::new(), &counted, async |stack, _| {
        let room = tenant();
        let good = || Token::of(room.as_str());
        let bad = [
            ("expired", good().expiring_in(-60).sign()),
            ("of another user", good().claim("sub", json!("another user")).sign()),
            ("with a broken signature", format!("{}x", good().unsigned())),
        ];
        for (name, token) in bad {
            let mut dashboard = stack.dashboard(&room).await;
            dashboard.send_join(room.as_str(), Some(&token), None).await;
            dashboard.until("error").await;
            assert_eq!(dashboard.close_code().await, 4401, "{name}");
        }
        // Renewed by a token that no longer names the room.
        let mut dashboard = stack.dashboard(&room).await;
        dashboard.send_join(room.as_str(), Some(&Token::of(tenant().as_str()).sign()), None).await;
        dashboard.until("error").await;
        assert_eq!(dashboard.close_code().await, 4403);
    })
    .await;
}

#[tokio::test]
async fn b52_pipelined_joins_end_in_one_room() {
    hostile(Setup::new(), &[], async |stack, _| {
        let rooms = [tenant(), tenant(), tenant()];
        let token = Token::naming(json!(rooms.each_ref().map(|room| room.as_str()))).sign();
        let mut dashboard = Dashboard::open(stack.addr()).await;
        for turn in 0..100 {
            dashboard.send_join(rooms[turn % 3].as_str(), Some(&token), None).await;
        }
        // A join that is overtaken by the next may go unanswered; the last one may not.
        while !dashboard.is_silent_for(Duration::from_millis(500)).await {}
        let last_joined = dashboard.ledger().entries.iter().rev().find_map(|(_, entry)| match entry {
            Entry::Joined { tenant, .. } => Some(tenant.clone()),
            _ => None,
        });
        assert_eq!(last_joined.as_deref(), Some(rooms[0].as_str()), "the hundredth join's room");
        for room in &rooms {
            stack.publish(room, &payment()).await;
        }
        assert_eq!(dashboard.next_event().await.seq, Some(1));
        dashboard.ping().await;
        let ledger = dashboard.close().await;
        assert_eq!(ledger.ids().count(), 1, "only the event of the room it is in");
        Oracle::new([]).judge("the hasty one", &ledger);
    })
    .await;
}

#[tokio::test]
async fn b52_leave_without_join_and_leave_with_join_in_one_packet() {
    hostile(Setup::new(), &[], async |stack, _| {
        let room = tenant();
        let token = Token::of(room.as_str()).sign();
        let mut dashboard = Dashboard::open(stack.addr()).await;
        dashboard.send_json(json!({ "event": "leave" })).await;
        dashboard.ping().await;
        dashboard.join(room.as_str(), &token).await;
        dashboard.close().await;

        let mut raw = RawSocket::joined(stack.addr(), &token).await;
        let join = json!({ "event": "join", "data": { "tenantId": room.as_str() } }).to_string();
        let packet: Vec<u8> =
            [r#"{"event":"leave"}"#, &join].iter().flat_map(|text| RawFrame::text(text).encode()).collect();
        raw.send_bytes(&packet).await;
        raw.expect_message("left").await;
        raw.expect_message("joined").await;
        let receipt = stack.publish(&room, &payment()).await;
        assert!(raw.expect_message("payment_received").await.contains(&receipt.id));
    })
    .await;
}

#[tokio::test]
async fn b53_socket_closes_when_its_token_expires() {
    hostile(Setup::new(), &["disconnects token_expired"], async |stack, _| {
        let room = tenant();
        let expires = now() + 2;
        let token = Token::of(room.as_str()).claim("exp", json!(expires)).sign();
        let mut dashboard = Dashboard::joined(stack.addr(), room.as_str(), &token).await;
        let error = dashboard.until("error").await;
        assert_eq!(dashboard.close_code().await, 4401, "{}", error.raw);
        // Not before it expires, and at most the leeway and a second later.
        assert!((expires..=expires + 6).contains(&now()), "closed {} s off", now() as i64 - expires as i64);
    })
    .await;
}

#[tokio::test]
async fn b53_expiry_waits_for_no_slow_reader() {
    let mut stack = Setup::new().lease().await;
    let room = tenant();
    let token = Token::of(room.as_str()).expiring_in(1).sign();
    // Joined, and never read again: the slot must be free nevertheless.
    let dashboard = Dashboard::joined(stack.addr(), room.as_str(), &token).await;
    stack.publish(&room, &payment()).await;
    stack.gateway().metric_becomes("gateway_connections", &[], 0.0).await;
    drop(dashboard);
    stack.refused(&["disconnects token_expired"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b53_renewal_outlives_the_first_token() {
    let mut stack = Setup::new().lease().await;
    let room = tenant();
    let first = Token::of(room.as_str()).expiring_in(2).sign();
    let mut dashboard = Dashboard::joined(stack.addr(), room.as_str(), &first).await;
    let renewed = Instant::now();
    dashboard.send_join(room.as_str(), Some(&Token::of(room.as_str()).expiring_in(3600).sign()), None).await;
    // Past the first token's end, its leeway, and a second.
    while renewed.elapsed() < Duration::from_millis(8200) {
        match tokio::time::timeout(Duration::from_millis(500), dashboard.next_unbounded()).await {
            Ok(Incoming::Closed(code)) => panic!("closed with {code:?} after {:?}", renewed.elapsed()),
            Ok(Incoming::Message(_)) | Err(_) => {}
        }
    }
    let receipt = stack.publish(&room, &payment()).await;
    while !dashboard.ledger().has(&receipt.id) {
        dashboard.next().await;
    }
    dashboard.close().await;
    stack.refused(&[]).await;
    stack.finish().await;
}

#[tokio::test]
async fn token_expiring_is_announced_60_s_before() {
    let stack = Setup::new().lease().await;
    let room = tenant();
    // A short token at half of its time.
    for (ttl, announced) in [(62, 58..=60), (20, 8..=10)] {
        let token = Token::of(room.as_str()).expiring_in(ttl).sign();
        let mut dashboard = Dashboard::bring(stack.addr(), Bring::Join, room.as_str(), &token).await;
        let expiring = dashboard.until("token_expiring").await;
        let left = expiring.data["expiresInSeconds"].as_u64().unwrap_or_else(|| panic!("{}", expiring.raw));
        // With the leeway counted or without.
        assert!(
            announced.contains(&left) || announced.contains(&left.saturating_sub(5)),
            "a token of {ttl} s: {}",
            expiring.raw
        );
        // A renewal silences it.
        dashboard.send_join(room.as_str(), Some(&Token::of(room.as_str()).sign()), None).await;
        while !dashboard.is_silent_for(Duration::from_millis(300)).await {}
        assert_eq!(dashboard.ledger().count(|entry| matches!(entry, Entry::Other { .. })), 1, "{}", dashboard.ledger());
        dashboard.close().await;
    }
    stack.finish().await;
}

#[tokio::test]
async fn f64_a_token_is_announced_once_and_a_renewal_with_the_same_end_is_not() {
    let stack = Setup::new().lease().await;
    let room = tenant();
    let expires = now() + 12;
    // A page whose `getToken` caches: it answers each announcement, and also renews unasked, until the token ends.
    let token = || Token::of(room.as_str()).claim("exp", json!(expires)).claim("jti", json!(tenant().as_str())).sign();
    let mut dashboard = Dashboard::joined(stack.addr(), room.as_str(), &token()).await;
    let mut announced = Vec::new();
    let mut unasked = tokio::time::interval(Duration::from_secs(1));
    let code = loop {
        tokio::select! {
            _ = unasked.tick() => dashboard.send_join(room.as_str(), Some(&token()), None).await,
            incoming = dashboard.next_unbounded() => match incoming {
                Incoming::Message(message) if message.kind == "token_expiring" => {
                    announced.push(message.data["expiresInSeconds"].as_u64().unwrap());
                    dashboard.send_join(room.as_str(), Some(&token()), None).await;
                }
                Incoming::Message(_) => {}
                Incoming::Closed(code) => break code,
            },
        }
    };
    assert_eq!(code, Some(4401), "when the token ended, and for nothing else");
    assert!(matches!(announced[..], [1..=6]), "once, at half of its time: {announced:?}");
    stack.refused(&["disconnects token_expired"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn f64_each_new_end_is_announced_once_more() {
    let stack = Setup::new().lease().await;
    let room = tenant();
    let ending = |seconds| Token::of(room.as_str()).expiring_in(seconds).sign();
    let mut dashboard = Dashboard::joined(stack.addr(), room.as_str(), &ending(4)).await;
    for seconds in [8, 3, 62] {
        dashboard.until("token_expiring").await;
        dashboard.send_join(room.as_str(), Some(&ending(seconds)), None).await;
    }
    let left = dashboard.until("token_expiring").await.data["expiresInSeconds"].as_u64().unwrap();
    assert!((50..=60).contains(&left), "{left}");
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn b53_kick_wins_over_joins() {
    let stack = Setup::new().gateways(2).lease().await;
    let room = tenant();
    let issued_before = Token::of(room.as_str()).claim("iat", json!(now() - 10)).sign();
    let mut members = Vec::new();
    for addr in stack.addrs() {
        members.push(Dashboard::joined(addr, room.as_str(), &issued_before).await);
    }
    let answer = http::post(stack.gateway().internal, &format!("/v1/tenants/{room}/disconnect"), "").await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    for mut member in members {
        member.until("error").await;
        assert_eq!(member.close_code().await, 4401, "on every gateway");
    }
    // The kick may have overtaken them.
    for addr in stack.addrs() {
        let mut back = Dashboard::bring(addr, Bring::Join, room.as_str(), &issued_before).await;
        back.until("error").await;
        assert_eq!(back.close_code().await, 4401);
    }
    // Nobody else is meant.
    stack.dashboard(&tenant()).await.close().await;
    stack.refused(&["disconnects kicked", "joins kicked"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn kicking_a_user_leaves_the_colleagues_alone() {
    let stack = Setup::new().gateways(2).lease().await;
    let room = tenant();
    let of = |sub: &str| Token::of(room.as_str()).claim("sub", json!(sub)).claim("iat", json!(now() - 10)).sign();
    let user = format!("user {}|é", tenant());
    let mut kicked = Dashboard::joined(stack.addrs()[1], room.as_str(), &of(&user)).await;
    let mut colleague = Dashboard::joined(stack.addrs()[1], room.as_str(), &of("colleague")).await;
    let path = format!("/v1/users/{}/disconnect", user.replace(' ', "%20").replace('|', "%7C").replace('é', "%C3%A9"));
    let answer = http::post(stack.gateway().internal, &path, "").await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    kicked.until("error").await;
    assert_eq!(kicked.close_code().await, 4401);
    colleague.ping().await;
    colleague.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn too_many_dashboards_of_one_centre_are_1013() {
    let stack = Setup::new().env("MAX_CONNECTIONS_PER_TENANT", "2").lease().await;
    let room = tenant();
    let first = stack.dashboard(&room).await;
    let second = stack.dashboard(&room).await;
    let mut third = Dashboard::bring(stack.addr(), Bring::Join, room.as_str(), &Token::of(room.as_str()).sign()).await;
    let error = third.expect_refusal(1013).await;
    assert!(error.data["retryInMs"].is_u64(), "{}", error.raw);
    stack.dashboard(&tenant()).await.close().await;
    first.close().await;
    second.close().await;
    stack.refused(&["disconnects full", "joins tenant_full"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b52_a_refusal_that_crosses_a_switch_leaves_nothing_behind() {
    let stack = Setup::new().env("MAX_CONNECTIONS_PER_TENANT", "1").start().await;
    let (full, free) = (tenant(), tenant());
    let resident = stack.dashboard(&full).await;
    let token = Token::naming(json!([full.as_str(), free.as_str()])).sign();
    for _ in 0..20 {
        let mut socket = RawSocket::upgraded(stack.addr(), &token).await;
        let join = |room: &TenantId| {
            RawFrame::text(&json!({"event": "join", "data": {"tenantId": room.as_str()}}).to_string())
        };
        // In one packet: the full room's refusal is on its way while the second join is read.
        let both = [join(&full), join(&free)].iter().flat_map(RawFrame::encode).collect::<Vec<_>>();
        socket.send_bytes(&both).await;
        assert_eq!(socket.close_code().await, Some(1013));
    }
    eventually("only the resident is left", Duration::from_secs(5), async || {
        let gateway = stack.gateway();
        let left = (gateway.metric("gateway_connections", &[]).await, gateway.metric("gateway_tenants", &[]).await);
        (left == (1.0, 1.0)).then_some(())
    })
    .await;
    resident.close().await;
    // The join that the verdict overtook is refused as well.
    stack.refused(&["disconnects full", "joins full", "joins tenant_full"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn heartbeats_come_by_themselves_and_speak_of_the_position() {
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "1").lease().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    stack.publish(&room, &payment()).await;
    dashboard.next_event().await;
    for _ in 0..2 {
        let heartbeat = dashboard.until("heartbeat").await;
        assert_eq!(heartbeat.data["seq"], 1);
    }
    Oracle::new([]).judge("the listener", &dashboard.close().await);
    stack.finish().await;
}

#[tokio::test]
async fn switched_off_dashboards_are_4503() {
    let stack = Setup::new().env("REALTIME_DASHBOARD", "false").lease().await;
    for way in Bring::ALL {
        let mut dashboard = Dashboard::bring(stack.addr(), way, "t1", &Token::of("t1").sign()).await;
        let disabled = dashboard.expect("disabled").await;
        assert_eq!(disabled.data["pollSeconds"], 30);
        assert_eq!(dashboard.close_code().await, 4503, "{way:?}");
    }
    stack.finish().await;
}
