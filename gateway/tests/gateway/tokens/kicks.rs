//! B65, B71: a kick revokes tokens, on every gateway and for as long as they live, and leaves a line.

use std::net::SocketAddr;
use std::time::Duration;

use publisher::TenantId;
use serde_json::{Value, json};

use crate::harness::token::now;
use crate::harness::{
    Bring, Dashboard, Gateway, PUBLISH_API_KEY, RedisCluster, Setup, Stack, Token, eventually, http, payment, tenant,
};

/// The path of a kick: `tenants/t1`, `users/thandi`. A gateway that has just started may have no connection yet.
async fn kick(gateway: &Gateway, whom: &str) {
    eventually("the kick is taken", Duration::from_secs(10), async || {
        let answer = http::post(gateway.internal, &format!("/v1/{whom}/disconnect"), "").await;
        (answer.status != 503).then(|| answer.expect(202))
    })
    .await;
}

async fn kick_tenant(gateway: &Gateway, room: &TenantId) {
    kick(gateway, &format!("tenants/{room}")).await;
}

/// A token that is issued now.
fn fresh(room: &TenantId) -> String {
    Token::of(room.as_str()).claim("iat", json!(now())).sign()
}

/// Tokens that were issued by now, whatever they say of it.
fn issued(room: &TenantId) -> Vec<(&'static str, String)> {
    let says = |iat: Value| Token::of(room.as_str()).claim("iat", iat).sign();
    vec![
        ("nothing", Token::of(room.as_str()).sign()),
        ("an hour ago", says(json!(now() - 3600))),
        ("now", says(json!(now()))),
        ("in milliseconds", says(json!(now() * 1000))),
        ("in ten minutes", says(json!(now() + 600))),
        ("never", says(json!(u64::MAX))),
        ("in words", says(json!("now"))),
    ]
}

/// Waits for the next second: what is issued then is newer than what was kicked before.
async fn next_second() {
    let second = now();
    eventually("the next second", Duration::from_secs(5), async || (now() > second).then_some(())).await;
}

async fn snapshot(addr: SocketAddr, room: &TenantId, token: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    let path = format!("/dashboard/snapshot?tenantId={room}");
    http::get_with(addr, &path, &[("Authorization", &bearer)]).await.status
}

/// Every way in is closed to the token.
async fn stays_out(addr: SocketAddr, room: &TenantId, what: &str, token: &str) {
    for way in Bring::ALL {
        let mut back = Dashboard::bring(addr, way, room.as_str(), token).await;
        back.until("error").await;
        assert_eq!(back.close_code().await, 4401, "issued {what}, by {way:?}");
    }
    assert_eq!(snapshot(addr, room, token).await, 401, "issued {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b65_a_kicked_token_stays_out() {
    let mut stack = Setup::new().gateways(2).start().await;
    let (room, other) = (tenant(), tenant());
    let mut neighbour = stack.dashboard(&other).await;
    let tokens = issued(&room);
    let mut members = Vec::new();
    for (_, token) in &tokens {
        for addr in stack.addrs() {
            members.push(Dashboard::joined(addr, room.as_str(), token).await);
        }
    }
    // These two come by a token of both centres, and ask for the kicked one later.
    let both = Token::naming(json!([room.as_str(), other.as_str()])).claim("iat", json!(now())).sign();
    let mut switches = Dashboard::joined(stack.addr(), other.as_str(), &both).await;
    let shown = snapshot(stack.addr(), &room, &tokens[1].1).await;
    kick_tenant(stack.gateway(), &room).await;
    // On the gateway that took it a kick is in force before it is answered, also for what is kept for a moment.
    assert_eq!((shown, snapshot(stack.addr(), &room, &tokens[1].1).await), (200, 401));
    for mut member in members {
        member.until("error").await;
        assert_eq!(member.close_code().await, 4401);
    }

    // Not for seconds, nor for a minute: a gateway that starts later reads it, and so does one that is cut off and returns.
    stack.add_gateway().await;
    for addr in stack.addrs() {
        for (what, token) in &tokens {
            stays_out(addr, &room, what, token).await;
        }
    }
    stack.redis().kill_subscribers().await;
    for addr in stack.addrs() {
        stays_out(addr, &room, tokens[0].0, &tokens[0].1).await;
    }
    switches.send_join(room.as_str(), None, None).await;
    switches.until("error").await;
    assert_eq!(switches.close_code().await, 4401, "a switch");

    next_second().await;
    for addr in stack.addrs() {
        let token = fresh(&room);
        assert_eq!(snapshot(addr, &room, &token).await, 200);
        let mut back = Dashboard::joined(addr, room.as_str(), &token).await;
        back.send_join(room.as_str(), Some(&tokens[1].1), None).await;
        back.until("error").await;
        assert_eq!(back.close_code().await, 4401, "a renewal");
    }
    // The old kick is read again with each connection, and closes nobody who came since.
    let mut back = Dashboard::joined(stack.addr(), room.as_str(), &fresh(&room)).await;
    stack.redis().kill_subscribers().await;
    stack.publish(&room, &payment()).await;
    back.until_event().await;
    back.ping().await;
    back.close().await;

    let receipt = stack.publish(&other, &payment()).await;
    assert_eq!(neighbour.until_event().await.id, Some(receipt.id), "nobody else is meant");
    neighbour.close().await;
    let scrape = stack.gateway().scrape().await;
    assert!(scrape.value("gateway_tokens_refused_total", &["reason=\"revoked\""]) >= 7.0 * 4.0);
    stack.finish().await;
}

#[tokio::test]
async fn b65_a_kick_of_a_user_revokes_in_every_tenant() {
    let stack = Setup::new().start().await;
    let (room, user) = (tenant(), tenant());
    let of = |sub: Value| Token::of(room.as_str()).claim("sub", sub).claim("iat", json!(now())).sign();
    let colleague = Dashboard::joined(stack.addr(), room.as_str(), &of(json!("colleague"))).await;
    // A number is its digits.
    let number = 7_000_000_000 + u64::from(std::process::id());
    for (sub, path) in [(json!(user.as_str()), user.to_string()), (json!(number), number.to_string())] {
        let mut kicked = Dashboard::joined(stack.addr(), room.as_str(), &of(sub.clone())).await;
        kick(stack.gateway(), &format!("users/{path}")).await;
        kicked.until("error").await;
        assert_eq!(kicked.close_code().await, 4401);
        let elsewhere = tenant();
        let token = Token::of(elsewhere.as_str()).claim("sub", sub).sign();
        stays_out(stack.addr(), &elsewhere, "for another tenant", &token).await;
    }
    // No token has such a `sub`.
    let path = format!("/v1/users/{}/disconnect", "x".repeat(257));
    http::post(stack.gateway().internal, &path, "").await.expect(400);
    colleague.close().await;
    stack.refused(&["disconnects kicked", "http_requests 400", "http_requests 401", "joins kicked"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b65_a_gateway_without_redis_revokes_as_well() {
    let stack = Setup::new().memory().lease().await;
    let room = tenant();
    let tokens = issued(&room);
    let mut member = Dashboard::joined(stack.addr(), room.as_str(), &tokens[0].1).await;
    kick_tenant(stack.gateway(), &room).await;
    member.until("error").await;
    assert_eq!(member.close_code().await, 4401);
    for (what, token) in &tokens {
        stays_out(stack.addr(), &room, what, token).await;
    }
    next_second().await;
    Dashboard::joined(stack.addr(), room.as_str(), &fresh(&room)).await.close().await;
    stack.refused(&["disconnects kicked", "http_requests 401", "joins kicked"]).await;
    stack.finish().await;
}

/// It can neither hear the kick nor read it, until it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b65_a_gateway_that_was_away_learns_of_the_kick() {
    let stack = Setup::new().gateways(2).start().await;
    let room = tenant();
    let token = fresh(&room);
    let mut member = Dashboard::joined(stack.addr(), room.as_str(), &token).await;
    stack.gateway().freeze();
    stack.redis().kill_subscribers().await;
    kick_tenant(&stack.gateways[1], &room).await;
    stack.gateway().thaw();
    member.until("error").await;
    assert_eq!(member.close_code().await, 4401);
    stays_out(stack.addr(), &room, "before", &token).await;
    stack.finish().await;
}

/// A Redis that keeps nothing, or a failover that lost the kick.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b65_what_redis_has_lost_stays_revoked() {
    let mut stack = Setup::new().start().await;
    let room = tenant();
    let token = fresh(&room);
    kick_tenant(stack.gateway(), &room).await;
    stays_out(stack.addr(), &room, "before", &token).await;
    stack.redis_mut().kill9();
    // While Redis is away the gateway goes by what it knows.
    let mut refused = Dashboard::bring(stack.addr(), Bring::Join, room.as_str(), &token).await;
    refused.until("error").await;
    assert_eq!(refused.close_code().await, 4401);
    stack.redis_mut().restart_empty().await;
    let key = format!("{}:revoked", stack.prefix);
    eventually("the kick is given back", Duration::from_secs(10), async || {
        (stack.redis().command(&["ZCARD", &key]).await.integer() == 1).then_some(())
    })
    .await;
    stack.add_gateway().await;
    for addr in stack.addrs() {
        stays_out(addr, &room, "before", &token).await;
    }
    stack.finish().await;
}

/// A client that may write to Redis by hand can kick, but not into the future.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b65_a_time_that_has_yet_to_come_shuts_nobody_out() {
    let mut stack = Setup::new().start().await;
    let room = tenant();
    let mut member = Dashboard::joined(stack.addr(), room.as_str(), &fresh(&room)).await;
    let (key, control) = (format!("{}:revoked", stack.prefix), format!("{}:control", stack.prefix));
    let who = format!("tenant:{room}");
    let hour = ((now() + 3600) * 1000).to_string();
    for (score, name) in [
        ("+inf", &*who),
        ("18446744073709551615", &*who),
        (&*hour, &*who),
        ("-inf", &*who),
        ("1", "\u{1b}[31mnobody\n"),
        ("1", "tenant:{*}"),
    ] {
        stack.redis().command(&["ZADD", &key, score, name]).await;
        let junk = format!("{{\"who\":{{\"tenant\":\"{room}\"}},\"at\":{score},\"x\":\"\u{1b}[31m\n\"}}");
        stack.redis().command(&["PUBLISH", &control, &junk]).await;
        stack.publish(&room, &payment()).await;
        member.until_event().await;
    }
    stack.redis().command(&["ZADD", &key, &hour, &who]).await;
    stack.redis().kill_subscribers().await;
    // It starts with what was forged.
    stack.add_gateway().await;
    for addr in stack.addrs() {
        Dashboard::joined(addr, room.as_str(), &fresh(&room)).await.close().await;
    }
    let line = "kicks that no gateway gave are ignored: they name nobody, or a time that has yet to come";
    eventually("it is said", Duration::from_secs(5), async || stack.gateway().log().find(line)).await;
    stack.publish(&room, &payment()).await;
    member.until_event().await;
    member.ping().await;

    // Nor does it weaken a kick that a gateway gives.
    let token = fresh(&room);
    kick_tenant(stack.gateway(), &room).await;
    member.until("error").await;
    assert_eq!(member.close_code().await, 4401);
    next_second().await;
    for addr in stack.addrs() {
        stays_out(addr, &room, "before", &token).await;
        Dashboard::joined(addr, room.as_str(), &fresh(&room)).await.close().await;
    }
    stack.finish().await;
}

#[tokio::test]
async fn b65_a_kick_is_one_entry_that_expires_with_the_tokens() {
    let stack = Setup::new().env("JWT_MAX_LIFETIME_SECONDS", "3600").start().await;
    let (room, user) = (tenant(), tenant());
    for _ in 0..10 {
        kick_tenant(stack.gateway(), &room).await;
        kick(stack.gateway(), &format!("users/{user}")).await;
    }
    let key = format!("{}:revoked", stack.prefix);
    assert_eq!(stack.redis().command(&["ZCARD", &key]).await.integer(), 2);
    let left = stack.redis().command(&["TTL", &key]).await.integer();
    // The longest life, and what clocks may differ.
    assert!((3600..=3615).contains(&left), "{left} s");
    // A token that could outlive it is none.
    let other = tenant();
    let too_long = Token::of(other.as_str()).expiring_in(3700).sign();
    let mut refused = Dashboard::bring(stack.addr(), Bring::Join, other.as_str(), &too_long).await;
    refused.expect_refusal(4401).await;
    // What no such token can have seen is forgotten at the next kick.
    stack.redis().command(&["ZADD", &key, &((now() - 3700) * 1000).to_string(), &format!("tenant:{room}")]).await;
    kick(stack.gateway(), &format!("users/{user}")).await;
    assert_eq!(stack.redis().command(&["ZCARD", &key]).await.integer(), 1);
    stack.finish().await;
}

/// The kicks are on one master, the tenant's events may be on another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b65_a_cluster_keeps_kicked_tokens_out() {
    let cluster = RedisCluster::start().await;
    let mut stack = Setup::new().gateways(2).redis_url(&cluster.url()).start_on(None).await;
    let rooms: Vec<_> = (0..6).map(|_| tenant()).collect();
    let tokens: Vec<_> = rooms.iter().map(|room| (room, fresh(room))).collect();
    let mut members = Vec::new();
    for (room, token) in &tokens {
        members.push(Dashboard::joined(stack.addrs()[1], room.as_str(), token).await);
    }
    for room in &rooms {
        kick_tenant(stack.gateway(), room).await;
    }
    for mut member in members {
        member.until("error").await;
        assert_eq!(member.close_code().await, 4401);
    }
    stack.add_gateway().await;
    let later = stack.addrs()[2];
    for (room, token) in &tokens {
        stays_out(later, room, "before", token).await;
    }
    next_second().await;
    for room in &rooms {
        let mut back = Dashboard::joined(later, room.as_str(), &fresh(room)).await;
        stack.publish(room, &payment()).await;
        back.until_event().await;
        back.close().await;
    }
    stack.finish().await;
}

/// The JSON lines of a gateway's log with this message.
fn lines(stack: &Stack, message: &str) -> Vec<Value> {
    let parsed = stack.gateway().log().lines();
    let parsed = parsed.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|line| line["message"] == message).collect()
}

#[tokio::test]
async fn b71_a_kick_is_a_line_by_whom_whom_and_how_many() {
    let second_key = "another-key-of-these-tests-with-32-bytes";
    let setup = Setup::new().env("PUBLISH_API_KEY", &format!("{PUBLISH_API_KEY}\n{second_key}"));
    let stack = setup.start().await;
    let room = tenant();
    let members = [fresh(&room), fresh(&room)]
        .map(|token| async { Dashboard::joined(stack.addr(), room.as_str(), &{ token }).await });
    let mut members = futures::future::join_all(members).await;
    // By the second key: both open.
    let bearer = format!("Bearer {second_key}");
    let path = format!("/v1/tenants/{room}/disconnect");
    http::request(stack.gateway().internal, "POST", &path, &[("Authorization", &bearer)], "").await.expect(202);
    for member in &mut members {
        assert_eq!(member.close_code().await, 4401);
    }
    let user = "%1B%5B31mthandi%0Aroot";
    kick(stack.gateway(), &format!("users/{user}")).await;
    let who = format!("tenant:{room}");
    let taken = eventually("both kicks are said", Duration::from_secs(5), async || {
        let taken = lines(&stack, "kick taken");
        (taken.len() == 2 && lines(&stack, "kick carried out").len() == 2).then_some(taken)
    })
    .await;
    assert_eq!((&taken[0]["who"], &taken[0]["key"]), (&json!(who), &json!(2)));
    assert_eq!(taken[0]["address"], "127.0.0.1");
    assert_eq!((&taken[1]["who"], &taken[1]["key"]), (&json!("user:?[31mthandi?root"), &json!(1)));
    let carried_out = lines(&stack, "kick carried out");
    assert_eq!((&carried_out[0]["who"], &carried_out[0]["closed"]), (&json!(who), &json!(2)));
    assert_eq!(carried_out[1]["closed"], 0);
    stack.finish().await;
}

#[tokio::test]
async fn b71_refused_keys_and_tokens_are_counted_and_one_line_a_minute() {
    let stack = Setup::new().start().await;
    let room = tenant();
    let mut neighbour = stack.dashboard(&room).await;
    for n in 0..50 {
        let bearer = format!("Bearer {}{n}", PUBLISH_API_KEY);
        http::get_with(stack.gateway().internal, "/v1/tenants", &[("Authorization", &bearer)]).await.expect(401);
    }
    http::get(stack.gateway().internal, "/v1/tenants").await.expect(401);
    let hostile = "https://issuer.example/\u{1b}[2J\nroot".repeat(5);
    for _ in 0..20 {
        let token =
            Token::of(room.as_str()).expiring_in(-60).claim("iss", json!(hostile)).claim("aud", json!(["a", "b"]));
        let token = token.header("kid", json!("the-key")).sign();
        Dashboard::bring(stack.addr(), Bring::Header, room.as_str(), &token).await.expect_refusal(4401).await;
        assert_eq!(snapshot(stack.addr(), &room, &token).await, 401);
    }
    Dashboard::bring(stack.addr(), Bring::Header, room.as_str(), "nonsense").await.expect_refusal(4401).await;
    let scrape = stack.gateway().scrape().await;
    let tokens = |reason: &str| scrape.value("gateway_tokens_refused_total", &[&format!("reason=\"{reason}\"")]);
    let keys = |reason: &str| scrape.value("gateway_api_keys_refused_total", &[&format!("reason=\"{reason}\"")]);
    assert_eq!((tokens("expired"), tokens("not_a_signed_token")), (40.0, 1.0));
    assert_eq!((keys("wrong"), keys("missing"), keys("malformed")), (50.0, 1.0, 0.0));
    let said = || (lines(&stack, "API key refused"), lines(&stack, "token refused"));
    let (refused_keys, refused_tokens) = eventually("one line a reason", Duration::from_secs(5), async || {
        let (keys, tokens) = said();
        (keys.len() >= 2 && tokens.len() >= 2).then_some((keys, tokens))
    })
    .await;
    assert_eq!((refused_keys.len(), refused_tokens.len()), (2, 2), "{refused_keys:?} {refused_tokens:?}");
    let expired = &refused_tokens[0];
    assert_eq!(
        (&expired["reason"], &expired["count"], &expired["kid"]),
        (&json!("expired"), &json!(1), &json!("the-key"))
    );
    assert_eq!((&expired["address"], &refused_keys[0]["address"]), (&json!("127.0.0.1"), &json!("127.0.0.1")));
    assert_eq!(expired["audience"], json!("[\"a\",\"b\"]"));
    let issuer = expired["issuer"].as_str().unwrap();
    assert!(issuer.starts_with("https://issuer.example/?[2J?root") && issuer.chars().count() == 64, "{issuer:?}");
    stack.gateway().log().assert_clean();
    assert!(!stack.gateway().log().text().contains("bursar"), "nor whom they speak for");
    neighbour.ping().await;
    neighbour.close().await;
    stack.finish().await;
}
