//! Faults of Redis and of the way to it: F01–F03, F07, F10, F11, F13, F15, F16, F42, F48, F52, F53, F65.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use publisher::{Publisher, TenantId};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::harness::failover::{Absent, assert_sockets_stayed_open};
use crate::harness::follower::judge;
use crate::harness::ledger::{Cursor, Entry, Ledger};
use crate::harness::oracle::{Receipt, assert_rate};
use crate::harness::proxy::{Direction, Fate, Proxy};
use crate::harness::redis::RedisServer;
use crate::harness::{
    Dashboard, Follower, Gateway, Holdings, Oracle, Setup, Stack, Token, Traffic, eventually, http, payment, tenant,
    tenants,
};

/// As long as outages last in life.
const MINUTE: Duration = Duration::from_secs(60);

fn is_degraded(entry: &Entry) -> bool {
    matches!(entry, Entry::Degraded)
}

/// Each dashboard that was told of an outage was told of its end.
fn assert_doubts_were_settled(ledgers: &[Ledger]) {
    for ledger in ledgers {
        let degraded = ledger.count(is_degraded);
        let restored = ledger.count(|entry| matches!(entry, Entry::Restored));
        assert_eq!(degraded, restored, "{degraded} times degraded, {restored} times restored");
    }
}

/// Fifty tenants at ten events a second while `kill` strikes. Returns how many gaps were filled.
async fn killed_under_load(kill: impl AsyncFn(&RedisServer)) -> f64 {
    let mut stack = Setup::new().start().await;
    let rooms = tenants(50);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 10);
    for _ in 0..10 {
        // Everybody publishes at the same tenth of a second: each strike comes a hundredth later in it than the one before, so
        // that some meet the events on their way.
        sleep(Duration::from_millis(310)).await;
        kill(stack.redis()).await;
    }
    sleep(Duration::from_millis(500)).await;
    let receipts = traffic.stop().await;
    assert!(receipts.len() > 500, "only {} events were published", receipts.len());
    eventually("delivery is proven again", Duration::from_secs(10), async || {
        (stack.gateway().metric("gateway_redis_up", &[]).await == 1.0).then_some(())
    })
    .await;
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert_doubts_were_settled(&ledgers);
    let filled = stack.gateway().metric("gateway_gaps_total", &["outcome=\"filled\""]).await;
    let resyncs = stack.gateway().metric("gateway_gaps_total", &["outcome=\"resync\""]).await;
    let reconnects = stack.gateway().metric("gateway_redis_reconnects_total", &[]).await;
    assert!(reconnects >= 5.0, "the subscriber was hit only {reconnects} times");
    assert_eq!(resyncs, 0.0);
    assert_eq!(ledgers.iter().map(Ledger::resyncs).sum::<usize>(), 0);
    for room in &rooms[..5] {
        assert_rate(stack.redis(), &stack.prefix, room, 10).await;
    }
    stack.finish().await;
    filled
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_pubsub_connection_killed_under_load() {
    let filled = killed_under_load(async |redis| {
        redis.kill_subscribers().await;
    })
    .await;
    assert!(filled >= 1.0, "no gap was filled, so nothing was tested");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_all_redis_connections_killed_under_load() {
    // The publishers are hit as well, and may be back later than the gateway: then there is no gap to fill.
    killed_under_load(async |redis| redis.kill_everyone().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f03_redis_killed_and_restarted_empty() {
    let mut stack = Setup::new().start().await;
    let rooms = tenants(5);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let mut receipts = Vec::new();
    for room in &rooms {
        for _ in 0..3 {
            receipts.push(stack.publish(room, &payment()).await);
        }
    }
    let epochs = async |followers: &[Follower]| {
        followers.iter().map(|follower| follower.ledger().cursor().unwrap()).collect::<Vec<_>>()
    };
    crate::harness::follower::caught_up(&followers, &receipts).await;
    let before = epochs(&followers).await;

    let all = async |what: &str, limit: Duration, seen: fn(&Entry) -> bool| {
        eventually(what, limit, async || {
            followers.iter().all(|follower| follower.ledger().count(seen) > 0).then_some(())
        })
        .await;
    };
    stack.redis_mut().kill9();
    all("degraded within 2 s", Duration::from_millis(2500), is_degraded).await;
    sleep(MINUTE).await;
    stack.redis_mut().restart().await;
    all("restored within 2 s of Redis' return", Duration::from_millis(2500), |entry| matches!(entry, Entry::Restored))
        .await;
    all("resync for all", Duration::from_secs(2), |entry| matches!(entry, Entry::Resync(_))).await;

    for (cursor, old) in epochs(&followers).await.iter().zip(&before) {
        assert_ne!(cursor.epoch, old.epoch, "a counter that starts again is a new epoch");
    }
    for room in &rooms {
        receipts.push(stack.publish(room, &payment()).await);
    }
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert_doubts_were_settled(&ledgers);
    for ledger in &ledgers {
        assert_eq!(ledger.resyncs(), 1, "told once: {ledger}");
        assert_eq!(ledger.cursor().unwrap().seq, 1);
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f04_redis_killed_and_restarted_with_its_data() {
    let redis = RedisServer::start_durable().await;
    let mut stack = Setup::new().start_on(Some(redis)).await;
    let rooms = tenants(5);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 10);
    sleep(Duration::from_millis(700)).await;
    stack.redis_mut().kill9();
    sleep(Duration::from_millis(200)).await;
    stack.redis_mut().restart().await;
    sleep(Duration::from_millis(700)).await;
    let receipts = traffic.stop().await;
    eventually("everybody was told", Duration::from_secs(5), async || {
        followers.iter().all(|follower| follower.ledger().resyncs() > 0).then_some(())
    })
    .await;
    // O4: what the log had kept is never given out again under other contents.
    assert_sockets_stayed_open(&judge(followers, receipts).await);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f07_paused_writes_make_no_gap() {
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "1").start().await;
    let rooms = tenants(10);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 5);
    sleep(Duration::from_millis(500)).await;
    stack.redis().command(&["CLIENT", "PAUSE", "3000", "WRITE"]).await;
    sleep(Duration::from_millis(4000)).await;
    let receipts = traffic.stop().await;
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert_doubts_were_settled(&ledgers);
    assert_eq!(ledgers.iter().map(Ledger::resyncs).sum::<usize>(), 0);
    assert_eq!(stack.gateway().metric("gateway_gaps_total", &[]).await, 0.0, "nothing was missing");
    stack.finish().await;
}

#[tokio::test]
async fn f10_silent_loss_of_the_last_event_is_found() {
    let redis = RedisServer::start().await;
    let swallow = Arc::new(AtomicBool::new(false));
    let swallowed = Arc::new(AtomicUsize::new(0));
    let (armed, count) = (Arc::clone(&swallow), Arc::clone(&swallowed));
    let proxy = Proxy::of_redis(redis.addr(), move |direction, frame| {
        let is_event = direction == Direction::ToClient
            && frame.is_command("message")
            && frame.texts().get(1).is_some_and(|channel| channel.ends_with(":events"));
        if is_event && armed.load(Ordering::Relaxed) {
            count.fetch_add(1, Ordering::Relaxed);
            return Fate::Swallow;
        }
        Fate::Pass
    })
    .await;
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "2").through(proxy.addr()).start_on(Some(redis)).await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    stack.publish(&room, &payment()).await;
    assert_eq!(dashboard.next_event().await.seq, Some(1));

    swallow.store(true, Ordering::Relaxed);
    let receipt = stack.publish(&room, &payment()).await;
    let lost = Instant::now();
    let found = dashboard.next_event().await;
    assert_eq!((found.seq, found.id), (Some(2), Some(receipt.id)));
    assert_eq!(swallowed.load(Ordering::Relaxed), 1, "the live message was lost on its way");
    assert!(lost.elapsed() < Duration::from_secs(3), "found after {:?}, more than a heartbeat", lost.elapsed());
    assert_eq!(stack.gateway().metric("gateway_gaps_total", &["outcome=\"filled\""]).await, 1.0);

    // And in the middle of the stream: the next event shows the hole, which is filled before it.
    stack.publish(&room, &payment()).await;
    swallow.store(false, Ordering::Relaxed);
    stack.publish(&room, &payment()).await;
    for seq in 3..=4 {
        assert_eq!(dashboard.next_event().await.seq, Some(seq));
    }
    dashboard.close().await;
    stack.finish().await;
}

/// What happens to the first SUBSCRIBE for a tenant's channel.
async fn lost_subscribe(fate: Fate) {
    let redis = RedisServer::start().await;
    let left = Arc::new(AtomicUsize::new(1));
    let budget = Arc::clone(&left);
    let proxy = Proxy::of_redis(redis.addr(), move |direction, frame| {
        let is_ours = direction == Direction::ToServer
            && frame.is_command("SUBSCRIBE")
            && frame.texts().iter().any(|text| text.ends_with(":events"));
        let taken =
            is_ours && budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if taken { fate } else { Fate::Pass }
    })
    .await;
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "2").through(proxy.addr()).start_on(Some(redis)).await;
    let room = tenant();
    let joined_within = Instant::now();
    let mut dashboard = stack.dashboard(&room).await;
    assert_eq!(left.load(Ordering::Relaxed), 0, "the fault was injected");
    let receipt = stack.publish(&room, &payment()).await;
    eventually("subscribed within 5 s", Duration::from_secs(6).saturating_sub(joined_within.elapsed()), async || {
        (stack.redis().subscribers(&stack.channel(&room)).await == 1).then_some(())
    })
    .await;
    assert_eq!(dashboard.until("payment_received").await.id, Some(receipt.id));
    stack.publish(&room, &payment()).await;
    assert_eq!(dashboard.until("payment_received").await.seq, Some(2));
    stack.gateway().metric_becomes("gateway_subscriptions_pending", &[], 0.0).await;
    Oracle::new([]).judge("the subscriber", &dashboard.close().await);
    stack.finish().await;
}

#[tokio::test]
async fn f11_swallowed_subscribe_is_noticed() {
    lost_subscribe(Fate::Swallow).await;
}

#[tokio::test]
async fn f11_connection_cut_between_subscribe_and_barrier() {
    lost_subscribe(Fate::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f13_forgotten_scripts_are_invisible() {
    let mut stack = Setup::new().start().await;
    let rooms = tenants(20);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 10);
    let mut redis = stack.redis().client().await;
    let begun = Instant::now();
    let mut joins = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        redis.command(&["SCRIPT", "FLUSH"]).await;
        if joins < 20 {
            stack.dashboard(&tenant()).await.close().await;
            joins += 1;
        }
        sleep(Duration::from_millis(10)).await;
    }
    let ledgers = judge(followers, traffic.stop().await).await;
    assert_eq!(stack.gateway().metric("gateway_gaps_total", &[]).await, 0.0);
    assert!(ledgers.iter().all(|ledger| ledger.count(is_degraded) == 0), "a dashboard noticed");
    stack.finish().await;
}

/// Follows three tenants, lets `damage` happen to Redis in mid-stream, publishes on; every ledger, judged.
async fn damaged_in_mid_load(damage: impl AsyncFn(&RedisServer, &str, &[TenantId])) -> Vec<Ledger> {
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "1").start().await;
    let rooms = tenants(3);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 8);
    sleep(Duration::from_millis(600)).await;
    damage(stack.redis(), &stack.prefix, &rooms).await;
    sleep(Duration::from_millis(600)).await;
    let ledgers = judge(followers, traffic.stop().await).await;
    assert_sockets_stayed_open(&ledgers);
    stack.finish().await;
    ledgers
}

fn resyncs(ledgers: &[Ledger]) -> Vec<usize> {
    ledgers.iter().map(Ledger::resyncs).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f15_flushall_begins_a_new_epoch() {
    let ledgers = damaged_in_mid_load(async |redis, _, _| {
        redis.command(&["FLUSHALL"]).await;
    })
    .await;
    assert_eq!(resyncs(&ledgers), [1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f15_deleted_state_begins_a_new_epoch() {
    let ledgers = damaged_in_mid_load(async |redis, prefix, rooms| {
        redis.command(&["DEL", &format!("{prefix}:{{{}}}:state", rooms[0])]).await;
    })
    .await;
    assert_eq!(resyncs(&ledgers), [1, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f15_deleted_log_leaves_the_live_ones_alone() {
    let ledgers = damaged_in_mid_load(async |redis, prefix, rooms| {
        redis.command(&["DEL", &format!("{prefix}:{{{}}}:log", rooms[0])]).await;
    })
    .await;
    assert_eq!(resyncs(&ledgers), [0, 0, 0]);
}

#[tokio::test]
async fn f15_deleted_log_recovers_nobody_behind() {
    let mut stack = Setup::new().start().await;
    let room = tenant();
    let dashboard = stack.dashboard(&room).await;
    let start = dashboard.cursor();
    dashboard.close().await;
    stack.publish(&room, &payment()).await;
    stack.publish(&room, &payment()).await;
    stack.redis().command(&["DEL", &stack.log_key(&room)]).await;
    stack.publish(&room, &payment()).await;
    let token = Token::of(room.as_str()).sign();
    // The log begins at 3 again: 2 is enough to resume from, 1 is not.
    for (last, recovered) in [(1, false), (2, true), (3, true)] {
        let mut back = Dashboard::open(stack.addr()).await;
        let joined = back.resume(room.as_str(), &token, &Cursor { epoch: start.epoch.clone(), seq: last }).await;
        assert_eq!(joined.data["recovered"], recovered, "after {last}: {}", joined.raw);
        back.close().await;
    }
    stack.finish().await;
}

#[tokio::test]
async fn f15_flushall_in_silence_is_noticed_by_the_sweep() {
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "1").start().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    stack.publish(&room, &payment()).await;
    dashboard.next_event().await;
    let before = dashboard.cursor();
    stack.redis().command(&["FLUSHALL"]).await;
    let resync = dashboard.until("resync").await;
    assert_ne!(resync.data["epoch"], serde_json::json!(before.epoch));
    assert_eq!(resync.data["seq"], 0);
    stack.publish(&room, &payment()).await;
    assert_eq!(dashboard.next_event().await.seq, Some(1));
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f16_failover_to_a_replica_that_lags() {
    let mut master = RedisServer::start().await;
    let replication = Proxy::to(master.addr()).await;
    let replica = RedisServer::start().await;
    replica.follow(replication.addr()).await;

    // Everybody reaches "Redis" through one address, which will lead elsewhere.
    let front = Proxy::to(master.addr()).await;
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "1").through(front.addr()).start_on(None).await;
    let before = Holdings::before(&mut stack, [master.addr(), replica.addr()]).await;
    let publisher = stack.publisher().await;
    let room = tenant();
    let followers = Follower::start_all(&stack.addrs(), std::slice::from_ref(&room)).await;
    let mut receipts: Vec<Receipt> = Vec::new();
    let mut publish = async |count: usize| {
        for _ in 0..count {
            receipts.push(crate::harness::traffic::publish(&publisher, &room, &payment()).await);
        }
    };
    publish(3).await;
    let state = stack.state_key(&room);
    eventually("the replica has 3", Duration::from_secs(5), async || {
        (replica.command(&["HGET", &state, "seq"]).await.texts() == ["3"]).then_some(())
    })
    .await;
    let away = tenant();
    stack.publish(&away, &payment()).await;
    let away_state = stack.state_key(&away);
    eventually("the replica has the other's first", Duration::from_secs(5), async || {
        (replica.command(&["HGET", &away_state, "seq"]).await.texts() == ["1"]).then_some(())
    })
    .await;
    replication.freeze();
    let absent = Absent::after(&mut stack, away, 3).await;
    publish(2).await;
    eventually("5 were delivered", Duration::from_secs(5), async || {
        (followers[0].ledger().cursor().unwrap().seq == 5).then_some(())
    })
    .await;
    let old = followers[0].ledger().cursor().unwrap();

    master.kill9();
    drop(replication);
    replica.promote().await;
    front.retarget(replica.addr());
    publish(3).await;
    // O4, O6: the new master counts from where the old one was once, and everybody is told before they see it.
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert!(ledgers[0].resyncs() >= 1, "{}", ledgers[0]);
    assert_ne!(ledgers[0].cursor().unwrap().epoch, old.epoch);
    absent.returns_and_is_told(&mut stack).await;
    before.are_back(&stack).await;
}

/// A minute without Redis: how often the gateway dials meanwhile, how soon delivery is back, and how many connections that takes.
async fn a_minute_without_redis(
    strike: impl AsyncFnOnce(&mut RedisServer, &Proxy),
    heal: impl AsyncFnOnce(&mut RedisServer, &Proxy),
) {
    let redis = RedisServer::start().await;
    let way = Proxy::to(redis.addr()).await;
    let mut stack = Setup::new().through(way.addr()).start_on(Some(redis)).await;
    let room = tenant();
    let followers = Follower::start_all(&stack.addrs(), std::slice::from_ref(&room)).await;
    let mut receipts = vec![stack.publish(&room, &payment()).await];
    let seen = |what: fn(&Entry) -> bool| followers[0].ledger().count(what);

    let struck = Instant::now();
    let before = way.accepted();
    strike(stack.redis_mut(), &way).await;
    eventually("degraded", Duration::from_secs(10), async || (seen(is_degraded) > 0).then_some(())).await;
    sleep(Duration::from_secs(65).saturating_sub(struck.elapsed())).await;
    let dialled = way.accepted() - before;

    let (healed, before) = (Instant::now(), way.accepted());
    heal(stack.redis_mut(), &way).await;
    eventually("restored", Duration::from_secs(30), async || {
        (seen(|entry| matches!(entry, Entry::Restored)) > 0).then_some(())
    })
    .await;
    let restored = healed.elapsed();
    receipts.push(stack.publish(&room, &payment()).await);
    crate::harness::follower::caught_up(&followers, &receipts).await;
    let arrived = healed.elapsed();
    // The connections stay: no order from the outage is left to be carried out.
    sleep(Duration::from_secs(3)).await;
    let made = way.accepted() - before;
    println!(
        "{dialled} dials in 65 s; restored after {restored:.2?}, the next event after {arrived:.2?}; {made} connections made after it"
    );
    assert!(dialled < 650, "the gateway dialled {dialled} times in 65 s");
    assert!(restored < Duration::from_secs(3), "restored {restored:?} after the outage");
    assert!(made <= 12, "{made} connections were made after the outage");
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert_doubts_were_settled(&ledgers);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f42_after_a_minute_of_a_frozen_redis_delivery_is_back_at_once() {
    a_minute_without_redis(async |redis, _| redis.freeze(), async |redis, _| redis.thaw()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f42_a_minute_without_redis_costs_few_dials() {
    a_minute_without_redis(async |redis, _| redis.kill9(), async |redis, _| redis.restart().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f42_after_a_minute_of_a_swallowed_way_delivery_is_back_at_once() {
    a_minute_without_redis(async |_, way| way.freeze(), async |_, way| way.thaw()).await;
}

/// Who opens a dashboard during an outage waits for its room, answers Pings meanwhile, and is joined when Redis is back.
#[tokio::test]
async fn f03_a_socket_that_waits_out_the_outage_stays_open() {
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "1").start().await;
    stack.redis_mut().kill9();
    let room = tenant();
    let mut waiting = Dashboard::open(stack.addr()).await;
    waiting.send_join(room.as_str(), Some(&Token::of(room.as_str()).sign()), None).await;
    waiting.expect("degraded").await;
    for _ in 0..4 {
        // Longer than the two heartbeats of silence that would close it.
        waiting.until("heartbeat").await;
    }
    stack.redis_mut().restart().await;
    waiting.until("joined").await;
    waiting.until("restored").await;
    waiting.close().await;
    stack.finish().await;
}

/// What forty rooms missed is more than Redis lets a subscriber's connection fall behind: asked for all at once, it would be cut
/// each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f12_output_buffer_overrun_is_healed_in_smaller_portions() {
    let mut stack = Setup::new().env("EVENTS_PER_SECOND", "1000").start().await;
    let rooms = tenants(40);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    stack.redis().command(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 64kb 0 0"]).await;
    stack.gateway().freeze();
    stack.redis().kill_subscribers().await;
    let mut receipts = Vec::new();
    for room in &rooms {
        // The stack's own publisher keeps the usual limit.
        for _ in 0..10 {
            receipts.push(stack.publish(room, &payment()).await);
        }
    }
    stack.gateway().thaw();
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert_eq!(ledgers.iter().map(Ledger::resyncs).sum::<usize>(), 0);
    stack.finish().await;
}

/// A tenant whose state in Redis can't be read waits alone.
#[tokio::test]
async fn f14_a_tenant_that_redis_refuses_degrades_nobody_else() {
    let mut stack = Setup::new().start().await;
    let (broken, healthy, newcomer) = (tenant(), tenant(), tenant());
    stack.redis().command(&["SET", &stack.state_key(&broken), "no hash"]).await;
    let mut neighbour = stack.dashboard(&healthy).await;
    let mut waiting = Dashboard::open(stack.addr()).await;
    waiting.send_join(broken.as_str(), Some(&Token::of(broken.as_str()).sign()), None).await;

    let late = stack.dashboard(&newcomer).await;
    stack.publish(&healthy, &payment()).await;
    // Nothing but the event: no word of an outage.
    neighbour.next_event().await;
    stack.gateway().metric_becomes("gateway_redis_up", &[], 1.0).await;

    stack.redis().command(&["DEL", &stack.state_key(&broken)]).await;
    waiting.until("joined").await;
    for dashboard in [neighbour, waiting, late] {
        dashboard.close().await;
    }
    stack.finish().await;
}

async fn kick(gateway: &Gateway, room: &TenantId) -> http::Response {
    http::post(gateway.internal, &format!("/v1/tenants/{room}/disconnect"), "").await
}

/// Something between the gateway and Redis swallows the connection that kicks go out on, and that one alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f53_a_swallowed_command_connection_is_replaced_once() {
    let redis = RedisServer::start().await;
    let armed = Arc::new(AtomicBool::new(false));
    let trigger = Arc::clone(&armed);
    let way = Proxy::of_redis(redis.addr(), move |direction, frame| {
        let is_kick = direction == Direction::ToServer && frame.is_command("EVAL");
        if is_kick && trigger.swap(false, Ordering::Relaxed) { Fate::BlackHole } else { Fate::Pass }
    })
    .await;
    let stack = Setup::new().through(way.addr()).start_on(Some(redis)).await;
    let (victim, bystander) = (tenant(), tenant());
    let mut dashboard = stack.dashboard(&victim).await;
    let other = stack.dashboard(&bystander).await;
    kick(stack.gateway(), &tenant()).await.expect(202);
    let before = way.accepted();

    armed.store(true, Ordering::Relaxed);
    kick(stack.gateway(), &victim).await.expect(503);
    assert!(!armed.load(Ordering::Relaxed), "the fault was injected");
    let begun = Instant::now();
    eventually("kicks go out again", Duration::from_secs(5), async || {
        (kick(stack.gateway(), &victim).await.status == 202).then_some(())
    })
    .await;
    println!("kicks go out again {:.2?} after the first that failed", begun.elapsed());
    assert_eq!(dashboard.close_code().await, 4401);
    // Longer than a probe takes to come back: nothing else is found wrong.
    sleep(Duration::from_secs(6)).await;
    assert_eq!(way.accepted() - before, 1, "connections made");
    assert_eq!(stack.gateway().metric("gateway_redis_reconnects_total", &[]).await, 0.0);
    assert_eq!(other.close().await.count(is_degraded), 0);
    stack.finish().await;
}

/// Puts the next message of a tenant into Redis by hand: into its log and its state, and on its channel when it is `told`.
async fn put_message(stack: &Stack, room: &TenantId, id: &str, message: impl Fn(&str) -> String, told: bool) -> u64 {
    let redis = stack.redis();
    let state = redis.command(&["HMGET", &stack.state_key(room), "epoch", "seq", "id"]).await;
    let [epoch, seq, previous] = state.texts()[..] else { panic!("no state of {room}: {state:?}") };
    let seq: u64 = seq.parse::<u64>().unwrap() + 1;
    let text = message(&format!("{epoch} {seq} {id} {previous}"));
    redis.command(&["XADD", &stack.log_key(room), &format!("{seq}-0"), "m", &text]).await;
    redis.command(&["HSET", &stack.state_key(room), "seq", &seq.to_string(), "id", id]).await;
    if told {
        redis.command(&["PUBLISH", &stack.channel(room), &text]).await;
    }
    seq
}

/// What a later version publishes goes to the browsers as it is; this one doesn't have to know it.
#[tokio::test]
async fn f48_an_event_of_a_later_version_is_forwarded() {
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "1").start().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    let start = dashboard.cursor();
    stack.publish(&room, &payment()).await;
    dashboard.next_event().await;
    let refund = |head: &str| {
        let seq = head.split(' ').nth(1).unwrap();
        let json = json!({ "id": "refund-1", "type": "refund_issued", "timestamp": "2026-11-25T12:00:00Z", "data": { "n": 1 } });
        format!("{head} refund_issued 1764000000000000\n{{\"seq\":{seq},{}", &json.to_string()[1..])
    };
    put_message(&stack, &room, "refund-1", refund, true).await;
    let event = dashboard.next_event().await;
    assert_eq!((&*event.kind, event.seq, event.data), ("refund_issued", Some(2), json!({ "n": 1 })));
    stack.publish(&room, &payment()).await;
    assert_eq!(dashboard.next_event().await.seq, Some(3));
    for metric in ["gateway_events_received_total", "gateway_deliveries_total"] {
        stack.gateway().metric_becomes(metric, &["type=\"other\""], 1.0).await;
    }
    stack.gateway().metric_becomes("gateway_gaps_total", &[], 0.0).await;
    // The log gives it back as well.
    let mut back = Dashboard::open(stack.addr()).await;
    let joined = back.resume(room.as_str(), &Token::of(room.as_str()).sign(), &start).await;
    assert_eq!(joined.data["recovered"], true, "{}", joined.raw);
    let kinds = [back.next_event().await.kind, back.next_event().await.kind, back.next_event().await.kind];
    assert_eq!(kinds, ["payment_received", "refund_issued", "payment_received"]);
    dashboard.close().await;
    back.close().await;
    stack.finish().await;
}

/// A hole in the log is told, and doesn't stop what comes after it.
#[tokio::test]
async fn f48_a_log_entry_that_cannot_be_read_is_a_hole() {
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "1").start().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    let start = dashboard.cursor();
    stack.publish(&room, &payment()).await;
    dashboard.next_event().await;
    put_message(&stack, &room, "lost-1", |_| "no message of any version".to_owned(), false).await;
    let resync = dashboard.expect("resync").await;
    assert_eq!(resync.data["seq"], 2);
    stack.publish(&room, &payment()).await;
    assert_eq!(dashboard.next_event().await.seq, Some(3));
    // A dashboard that was away is told as well.
    let mut back = Dashboard::open(stack.addr()).await;
    let joined = back.resume(room.as_str(), &Token::of(room.as_str()).sign(), &start).await;
    assert_eq!((&joined.data["recovered"], &joined.data["seq"]), (&json!(false), &json!(3)), "{}", joined.raw);
    dashboard.close().await;
    back.close().await;
    stack.finish().await;
}

/// The head is known, so nobody waits for a log that can't be read.
#[tokio::test]
async fn f48_a_log_that_cannot_be_read_is_one_hole() {
    let mut stack = Setup::new().start().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    let start = dashboard.cursor();
    stack.publish(&room, &payment()).await;
    dashboard.next_event().await;
    stack.redis().command(&["DEL", &stack.log_key(&room)]).await;
    stack.redis().command(&["SET", &stack.log_key(&room), "no stream"]).await;
    let mut back = Dashboard::open(stack.addr()).await;
    let joined = back.resume(room.as_str(), &Token::of(room.as_str()).sign(), &start).await;
    assert_eq!((&joined.data["recovered"], &joined.data["seq"]), (&json!(false), &json!(1)), "{}", joined.raw);
    assert_eq!(dashboard.close().await.count(is_degraded), 0);
    back.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f48_a_tenant_that_cannot_be_read_is_told_so() {
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "2").start().await;
    let broken = tenant();
    let mut dashboard = stack.dashboard(&broken).await;
    stack.publish(&broken, &payment()).await;
    dashboard.next_event().await;
    stack.redis().command(&["SET", &stack.state_key(&broken), "no hash"]).await;
    let struck = Instant::now();
    dashboard.expect("degraded").await;
    println!("told after {:.2?}", struck.elapsed());
    let mut late = Dashboard::open(stack.addr()).await;
    let resuming = (broken.as_str(), Token::of(broken.as_str()).sign(), dashboard.cursor());
    late.send_join(resuming.0, Some(&resuming.1), Some(&Cursor { seq: 0, ..resuming.2 })).await;
    late.expect("degraded").await;

    stack.redis().command(&["DEL", &stack.state_key(&broken)]).await;
    dashboard.until("resync").await;
    dashboard.until("restored").await;
    // In either order: the two questions are answered in one round.
    let is_over = |ledger: &Ledger| {
        let has = |seen: fn(&Entry) -> bool| ledger.count(seen) > 0;
        has(|entry| matches!(entry, Entry::Joined { .. })) && has(|entry| matches!(entry, Entry::Restored))
    };
    while !is_over(late.ledger()) {
        late.next_message().await;
    }
    stack.publish(&broken, &payment()).await;
    assert_eq!(dashboard.until_event().await.seq, Some(1));
    for dashboard in [dashboard, late] {
        dashboard.close().await;
    }
    stack.finish().await;
}

/// Clients of a tenant that Redis refuses join again and again; the other tenants' joins are as quick as ever.
async fn joins_beside_a_broken_tenant(damage: impl AsyncFn(&Stack, &TenantId), resume: bool) {
    let mut stack = Setup::new().start().await;
    let broken = tenant();
    let anchor = stack.dashboard(&broken).await;
    let start = anchor.cursor();
    stack.publish(&broken, &payment()).await;
    // Without one the room closes with its last client, and opens anew.
    let anchor = match resume {
        true => Some(anchor),
        false => {
            anchor.close().await;
            None
        }
    };
    damage(&stack, &broken).await;
    let mut crowd = JoinSet::new();
    for _ in 0..120 {
        let (addr, broken, start) = (stack.addr(), broken.clone(), start.clone());
        crowd.spawn(async move {
            loop {
                let mut client = Dashboard::open(addr).await;
                let token = Token::of(broken.as_str()).sign();
                client.send_join(broken.as_str(), Some(&token), resume.then_some(&start)).await;
                sleep(Duration::from_secs(3)).await;
                client.reset();
            }
        });
    }
    sleep(Duration::from_secs(1)).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let begun = Instant::now();
        let neighbour = stack.dashboard(&tenant()).await;
        slowest = slowest.max(begun.elapsed());
        neighbour.close().await;
    }
    println!("the slowest of the neighbours' joins took {slowest:.2?}");
    assert!(slowest < Duration::from_secs(1), "a neighbour's join took {slowest:?}");
    crowd.shutdown().await;
    if let Some(anchor) = anchor {
        anchor.close().await;
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f52_an_unreadable_state_holds_up_no_other_tenants_joins() {
    let damage = async |stack: &Stack, broken: &TenantId| {
        stack.redis().command(&["SET", &stack.state_key(broken), "no hash"]).await;
    };
    joins_beside_a_broken_tenant(damage, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f52_an_unreadable_log_holds_up_no_other_tenants_joins() {
    let damage = async |stack: &Stack, broken: &TenantId| {
        stack.redis().command(&["DEL", &stack.log_key(broken)]).await;
        stack.redis().command(&["SET", &stack.log_key(broken), "no stream"]).await;
    };
    joins_beside_a_broken_tenant(damage, true).await;
}

/// Two deployments share a Redis and a prefix, and differ by the database number alone, which pub/sub doesn't know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f65_kicks_and_events_stay_in_their_database() {
    let redis = RedisServer::start().await;
    let (url, server) = (redis.url(), redis.url());
    let setup = Setup::new().env("HEARTBEAT_SECONDS", "1").redis_url(&format!("{url}/1"));
    let mut environment = setup.environment().to_vec();
    let stack = setup.start_on(Some(redis)).await;
    environment.push(("REDIS_URL".to_owned(), format!("{url}/2")));
    environment.push(("REDIS_PREFIX".to_owned(), stack.prefix.clone()));
    let mut other = Gateway::start(&environment).await;
    let publisher_of = async |number: u8| {
        let mut config = stack.publisher_config();
        config.redis_url = format!("{server}/{number}");
        Publisher::connect(config).await.unwrap()
    };
    let (first, second) = (publisher_of(1).await, publisher_of(2).await);
    let room = tenant();
    let token = Token::of(room.as_str()).sign();
    let mut ours = stack.dashboard(&room).await;
    let mut theirs = Dashboard::joined(other.public, room.as_str(), &token).await;

    for seq in 1..=5 {
        second.broadcast_to_tenant(&room, &payment()).await.unwrap();
        assert_eq!(theirs.next_event().await.seq, Some(seq));
    }
    let event = payment();
    first.broadcast_to_tenant(&room, &event).await.unwrap();
    let seen = ours.next_event().await;
    assert_eq!(
        (seen.seq, seen.id),
        (Some(1), Some(event.id.to_string())),
        "nothing of the other database came before it"
    );

    eventually("the kick is taken", Duration::from_secs(5), async || {
        (kick(&other, &room).await.status == 202).then_some(())
    })
    .await;
    assert_eq!(theirs.close_code().await, 4401);
    // Everybody has heard the hint by now, and two heartbeats have looked again.
    assert!(ours.is_silent_for(Duration::from_millis(2500)).await);
    first.broadcast_to_tenant(&room, &payment()).await.unwrap();
    assert_eq!(ours.next_event().await.seq, Some(2));
    kick(stack.gateway(), &room).await.expect(202);
    assert_eq!(ours.close_code().await, 4401);
    for publisher in [first, second] {
        publisher.close().await;
    }
    other.assert_unharmed();
    stack.finish().await;
}

/// No Sentinel answers from the start: a request for a snapshot is answered in time.
#[tokio::test]
async fn a_snapshot_is_refused_in_time_while_no_server_is_known() {
    let stack = Setup::new().redis_url("redis-sentinel://127.0.0.1:1?sentinelServiceName=books").start_on(None).await;
    let token = format!("Bearer {}", Token::of("t1").sign());
    for _ in 0..3 {
        let begun = Instant::now();
        http::get_with(stack.addr(), "/dashboard/snapshot", &[("authorization", &token)]).await.expect(503);
        assert!(begun.elapsed() < Duration::from_secs(5), "after {:?}", begun.elapsed());
    }
    stack.finish().await;
}
