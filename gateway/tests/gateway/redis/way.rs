//! Faults of the way to Redis, which is well itself: F06, F08.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use publisher::Publisher;
use tokio::time::sleep;

use crate::harness::follower::judge;
use crate::harness::ledger::{Entry, Ledger};
use crate::harness::oracle::published_at;
use crate::harness::proxy::{Direction, Fate, Proxy};
use crate::harness::redis::RedisServer;
use crate::harness::{Follower, Setup, Traffic, payment, tenant, tenants};

fn assert_nobody_noticed(ledgers: &[Ledger]) {
    for ledger in ledgers {
        let noticed = |entry: &Entry| matches!(entry, Entry::Closed(_) | Entry::Resync(_));
        assert_eq!(ledger.count(noticed), 0, "{ledger}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_a_slow_redis_delays_events_and_doubles_none() {
    let redis = RedisServer::start().await;
    let (way, billing) = (Proxy::to(redis.addr()).await, Proxy::to(redis.addr()).await);
    let stack = Setup::new().through(way.addr()).start_on(Some(redis)).await;
    let mut config = stack.publisher_config();
    config.redis_url = format!("redis://{}", billing.addr());
    let publisher = Publisher::connect(config).await.unwrap();
    let rooms = tenants(5);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    way.delay(Duration::from_millis(200), Duration::from_millis(100));
    // One publish in eight ends after its 250 ms without knowing what it did, and is sent again under the same id.
    billing.delay(Duration::from_millis(100), Duration::from_millis(50));
    let traffic = Traffic::start(&publisher, &rooms, 5);
    sleep(Duration::from_secs(6)).await;
    let receipts = traffic.stop().await;
    assert!(receipts.len() > rooms.len(), "only {} events were published", receipts.len());

    let (now, clock) = (Instant::now(), SystemTime::now());
    let mut published = HashMap::new();
    for room in &rooms {
        published.extend(published_at(stack.redis(), &stack.prefix, room).await);
    }
    // Also those whose answer came too late, which were sent again.
    let ledgers = judge(followers, receipts).await;
    assert_nobody_noticed(&ledgers);
    for (arrived, id) in ledgers.iter().flat_map(events) {
        let Some(published) = published.get(id) else { continue };
        let arrived = if arrived < now { clock - (now - arrived) } else { clock + (arrived - now) };
        let took = arrived.duration_since(*published).unwrap_or_default();
        assert!(took < Duration::from_secs(1), "{id} took {took:?}");
    }
    publisher.close().await;
    stack.finish().await;
}

fn events(ledger: &Ledger) -> impl Iterator<Item = (Instant, &str)> {
    ledger.entries.iter().filter_map(|(when, entry)| match entry {
        Entry::Event { id, .. } => Some((*when, id.as_str())),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f08_a_black_holed_subscriber_is_found_and_its_gap_filled() {
    let redis = RedisServer::start().await;
    let armed = Arc::new(AtomicBool::new(false));
    let trigger = Arc::clone(&armed);
    // The first event that comes while armed is lost, and with it the connection that carries the subscriptions: that one alone.
    let proxy = Proxy::of_redis(redis.addr(), move |direction, frame| {
        let carries_events = direction == Direction::ToClient && frame.is_command("message");
        if carries_events && trigger.swap(false, Ordering::Relaxed) { Fate::BlackHole } else { Fate::Pass }
    })
    .await;
    // Found by the probe: the heartbeat's look at the position comes much later.
    let setup = Setup::new().env("HEARTBEAT_SECONDS", "30").through(proxy.addr());
    let mut stack = setup.start_on(Some(redis)).await;
    let room = tenant();
    let followers = Follower::start_all(&stack.addrs(), std::slice::from_ref(&room)).await;
    let mut receipts = vec![stack.publish(&room, &payment()).await];

    armed.store(true, Ordering::Relaxed);
    let lost = Instant::now();
    for _ in 0..3 {
        receipts.push(stack.publish(&room, &payment()).await);
    }
    assert!(!armed.load(Ordering::Relaxed), "the fault was injected");
    let ledgers = judge(followers, receipts.clone()).await;
    assert_nobody_noticed(&ledgers);
    let (arrived, _) = events(&ledgers[0]).find(|(_, id)| *id == receipts[1].id).unwrap();
    assert!(arrived - lost < Duration::from_secs(5), "found after {:?}", arrived - lost);
    let found = async |name, labels: &[&str]| stack.gateway().metric(name, labels).await;
    assert_eq!(found("gateway_redis_reconnects_total", &[]).await, 1.0);
    assert_eq!(found("gateway_gaps_total", &["outcome=\"filled\""]).await, 1.0);
    stack.finish().await;
}
