//! Several gateways on one Redis: isolation, subscriptions, the limit; and gateways that come and go (F21, F25).

use std::time::{Duration, Instant};

use publisher::Publisher;
use rand::seq::IndexedRandom as _;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::harness::follower::{caught_up, judge};
use crate::harness::ledger::{Entry, Ledger};
use crate::harness::oracle::assert_rate;
use crate::harness::{Dashboard, Follower, Incoming, Oracle, Setup, Token, Traffic, eventually, http, tenant, tenants};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tenant_sees_another_over_three_gateways() {
    let mut stack = Setup::new().gateways(3).lease().await;
    let rooms = tenants(30);
    let mut followers = Vec::new();
    for _ in 0..3 {
        followers.extend(Follower::start_all(&stack.addrs(), &rooms).await);
    }
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 5);
    // Meanwhile accountants hop between centres.
    let mut hopping = JoinSet::new();
    for index in 0..5 {
        let addr = stack.addrs()[index % 3];
        let centres: Vec<_> = rooms.sample(&mut rand::rng(), 4).cloned().collect();
        hopping.spawn(async move {
            let token = Token::naming(json!(centres.iter().map(|room| room.as_str()).collect::<Vec<_>>())).sign();
            let mut dashboard = Dashboard::open(addr).await;
            for hop in 0..12 {
                let room = &centres[hop % centres.len()];
                dashboard.send_join(room.as_str(), Some(&token), None).await;
                while dashboard.until("joined").await.data["tenantId"] != room.as_str() {}
                for _ in 0..rand::random_range(0..3) {
                    dashboard.next_event().await;
                }
            }
            dashboard.close().await
        });
    }
    let hoppers = hopping.join_all().await;
    let receipts = traffic.stop().await;
    caught_up(&followers, &receipts).await;
    let mut oracle = Oracle::new(receipts.clone());
    for ledger in &hoppers {
        oracle.judge("an accountant", ledger);
    }
    judge(followers, receipts).await;
    stack.finish().await;
}

#[tokio::test]
async fn subscriptions_equal_the_connected_tenants() {
    let stack = Setup::new().gateways(2).lease().await;
    let rooms = tenants(12);
    let mut members = Vec::new();
    for (index, room) in rooms.iter().enumerate() {
        let addr = stack.addrs()[index % 2];
        members.push((room, Dashboard::joined(addr, room.as_str(), &Token::of(room.as_str()).sign()).await));
    }
    stack.subscriptions_become(&rooms.iter().collect::<Vec<_>>()).await;
    // A second member on the other gateway is a second subscriber; a second one on the same is not.
    for addr in [stack.addrs()[1], stack.addrs()[0]] {
        members
            .push((&rooms[0], Dashboard::joined(addr, rooms[0].as_str(), &Token::of(rooms[0].as_str()).sign()).await));
    }
    eventually("two gateways subscribe the first tenant", Duration::from_secs(5), async || {
        (stack.redis().subscribers(&stack.channel(&rooms[0])).await == 2).then_some(())
    })
    .await;
    while let Some((room, member)) = members.pop() {
        member.close().await;
        let left: Vec<_> = rooms.iter().filter(|other| members.iter().any(|(room, _)| room == other)).collect();
        if members.len() < 12 {
            assert!(!left.contains(&room));
        }
        stack.subscriptions_become(&left).await;
    }
    stack.finish().await;
}

#[tokio::test]
async fn a_reload_within_the_linger_does_not_resubscribe() {
    let stack = Setup::new().env("UNSUBSCRIBE_LINGER_SECONDS", "1").lease().await;
    let room = tenant();
    stack.dashboard(&room).await.close().await;
    let left = Instant::now();
    assert_eq!(stack.redis().subscribers(&stack.channel(&room)).await, 1, "it lingers");
    let mut monitor = stack.redis().client().await;
    monitor.command(&["MONITOR"]).await;
    let reloaded = stack.dashboard(&room).await;
    // Past the end of the first linger, which the return has cancelled.
    sleep(Duration::from_millis(1500).saturating_sub(left.elapsed())).await;
    let seen = monitor.drain(Duration::from_millis(50)).await;
    let churn = |line: &str| line.to_ascii_uppercase().contains("SUBSCRIBE\"") && line.contains(room.as_str());
    assert!(!seen.iter().any(|line| churn(line.text())), "{seen:?}");
    assert_eq!(stack.redis().subscribers(&stack.channel(&room)).await, 1);
    reloaded.close().await;
    stack.subscriptions_become(&[]).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_publishers_share_one_limit_in_any_window() {
    let stack = Setup::new().gateways(3).lease().await;
    let room = tenant();
    let mut followers = Vec::new();
    for addr in stack.addrs() {
        followers.push(Follower::start(&[addr], &room).await);
    }
    let mut publishers = Vec::new();
    for _ in 0..3 {
        publishers.push(Publisher::connect(stack.publisher_config()).await.unwrap());
    }
    let begun = Instant::now();
    let storms = publishers.iter().map(|publisher| Traffic::start(publisher, std::slice::from_ref(&room), 200));
    let storms: Vec<_> = storms.collect();
    sleep(Duration::from_millis(3200)).await;
    let mut receipts = Vec::new();
    for storm in storms {
        receipts.extend(storm.stop().await);
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert_rate(stack.redis(), &stack.prefix, &room, 10).await;
    // Held, and also used: ten at once, then each token again after its second.
    let published = receipts.len() as f64;
    assert!(published >= 30.0 && published <= 10.0 * (seconds.floor() + 1.0), "{published} in {seconds} s");
    judge(followers, receipts).await;
    for publisher in publishers {
        publisher.close().await;
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_killed_gateway_costs_nobody_an_event() {
    let mut stack = Setup::new().gateways(3).start().await;
    let rooms = tenants(15);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 8);
    sleep(Duration::from_millis(500)).await;
    stack.gateways[0].kill9();
    stack.gateways.remove(0);
    sleep(Duration::from_millis(1500)).await;
    let ledgers = judge(followers, traffic.stop().await).await;
    let back = |entry: &Entry| matches!(entry, Entry::Joined { recovered: true, .. });
    assert_eq!(ledgers.iter().filter(|ledger| ledger.count(back) == 1).count(), 5, "a third came back, and resumed");
    assert_eq!(ledgers.iter().map(Ledger::resyncs).sum::<usize>(), 0);
    let fresh = |entry: &Entry| matches!(entry, Entry::Joined { recovered: false, .. });
    assert!(ledgers.iter().all(|ledger| ledger.count(fresh) == 1), "nobody had to start again");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_spreads_the_closes_and_loses_nothing() {
    let mut stack = Setup::new().gateways(2).env("DRAIN_SECONDS", "2").start().await;
    let rooms = tenants(20);
    let draining = stack.addrs()[0];
    let staying = stack.addrs()[1];
    let mut followers = Vec::new();
    for room in &rooms {
        followers.push(Follower::start(&[draining, staying], room).await);
    }
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 8);
    sleep(Duration::from_millis(300)).await;

    stack.gateways[0].terminate();
    let begun = Instant::now();
    let internal = stack.gateways[0].internal;
    eventually("not ready any more", Duration::from_secs(1), async || {
        let ready = http::get(internal, "/readyz").await;
        (ready.status == 503 && ready.json()["reason"] == "draining").then_some(())
    })
    .await;
    http::get(internal, "/healthz").await.expect(200);
    assert_eq!(stack.gateways[0].metric("gateway_draining", &[]).await, 1.0);
    let (status, _) = stack.gateways[0].exit(Duration::from_secs(5)).await;
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(4), "the drain took {:?}", begun.elapsed());
    stack.gateways[0].log().assert_clean();
    stack.gateways.remove(0);

    sleep(Duration::from_millis(500)).await;
    let ledgers = judge(followers, traffic.stop().await).await;
    let mut closes: Vec<Duration> = Vec::new();
    for ledger in &ledgers {
        let closed = ledger.entries.iter().find_map(|(at, entry)| match entry {
            Entry::Closed(code) => Some((*at, *code)),
            _ => None,
        });
        let (at, code) = closed.unwrap_or_else(|| panic!("one was not closed: {ledger}"));
        assert_eq!(code, Some(1012));
        closes.push(at - begun);
    }
    closes.sort();
    let spread = closes[closes.len() - 1] - closes[0];
    assert!(spread > Duration::from_millis(1000), "all within {spread:?}: {closes:?}");
    let busiest = closes
        .iter()
        .map(|at| closes.iter().filter(|other| **other >= *at && **other < *at + Duration::from_millis(500)).count())
        .max();
    assert!(busiest.unwrap() <= 10, "half of all in half a second: {closes:?}");
    let resumed = |entry: &Entry| matches!(entry, Entry::Joined { recovered: true, .. });
    assert!(ledgers.iter().all(|ledger| ledger.count(resumed) == 1), "each came back once and resumed");
    stack.finish().await;
}

#[tokio::test]
async fn drain_gives_each_client_its_own_moment_to_return() {
    let stack = Setup::new().start().await;
    let room = tenant();
    let mut members = Vec::new();
    for _ in 0..8 {
        members.push(stack.dashboard(&room).await);
    }
    stack.gateways[0].terminate();
    let mut moments = Vec::new();
    for mut member in members {
        let error = member.until("error").await;
        moments.push(error.data["retryInMs"].as_u64().unwrap_or_else(|| panic!("{}", error.raw)));
        assert_eq!(member.close_code().await, 1012);
    }
    moments.sort_unstable();
    moments.dedup();
    assert!(moments.len() > 4, "jitter, not a fixed pause: {moments:?}");
}

/// New sockets all the time, until the gateway takes none.
async fn join_storm(addr: std::net::SocketAddr) -> JoinSet<Vec<Ledger>> {
    let mut storm = JoinSet::new();
    for _ in 0..8 {
        storm.spawn(async move {
            let mut ledgers = Vec::new();
            let room = tenant();
            let token = Token::of(room.as_str()).sign();
            while let Ok((mut dashboard, _)) = Dashboard::connect(addr, &[]).await {
                dashboard.send_join(room.as_str(), Some(&token), None).await;
                let more = async { while let Incoming::Message(_) = dashboard.next_unbounded().await {} };
                let _ = tokio::time::timeout(Duration::from_millis(100), more).await;
                ledgers.push(dashboard.ledger().clone());
            }
            ledgers
        });
    }
    storm
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_sigterm_during_a_join_storm() {
    let mut stack = Setup::new().start().await;
    let storm = join_storm(stack.addr()).await;
    sleep(Duration::from_millis(300)).await;
    stack.gateways[0].terminate();
    let (status, took) = stack.gateways[0].exit(Duration::from_secs(4)).await;
    assert!(status.success() && took < Duration::from_secs(3), "{status} after {took:?}, with a drain of 1 s");
    for ledger in storm.join_all().await.iter().flatten() {
        let closed = ledger.entries.iter().position(|(_, entry)| matches!(entry, Entry::Closed(_)));
        assert!(
            closed.is_none_or(|closed| closed == ledger.entries.len() - 1),
            "something came after the close: {ledger}"
        );
    }
    stack.gateways[0].log().assert_clean();
}

#[tokio::test]
async fn f25_sigterm_while_redis_is_down() {
    let mut stack = Setup::new().start().await;
    let mut member = stack.dashboard(&tenant()).await;
    stack.redis_mut().kill9();
    member.until("degraded").await;
    stack.gateways[0].terminate();
    let (status, took) = stack.gateways[0].exit(Duration::from_secs(4)).await;
    assert!(status.success() && took < Duration::from_secs(3), "{status} after {took:?}, with a drain of 1 s");
    assert_eq!(member.close_code().await, 1012);
    stack.gateways[0].log().assert_clean();
}

#[tokio::test]
async fn f25_sigterm_while_redis_is_frozen() {
    let mut stack = Setup::new().start().await;
    let mut member = stack.dashboard(&tenant()).await;
    stack.redis().freeze();
    stack.gateways[0].terminate();
    let (status, took) = stack.gateways[0].exit(Duration::from_secs(4)).await;
    assert!(status.success() && took < Duration::from_secs(3), "{status} after {took:?}, with a drain of 1 s");
    assert_eq!(member.close_code().await, 1012);
    stack.redis().thaw();
}

#[tokio::test]
async fn f25_second_sigterm_exits_at_once() {
    let mut stack = Setup::new().env("DRAIN_SECONDS", "60").start().await;
    let mut members = Vec::new();
    for _ in 0..5 {
        members.push(stack.dashboard(&tenant()).await);
    }
    stack.gateways[0].terminate();
    stack.gateways[0].metric_becomes("gateway_draining", &[], 1.0).await;
    stack.gateways[0].terminate();
    let (_, took) = stack.gateways[0].exit(Duration::from_secs(3)).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    for mut member in members {
        while let Incoming::Message(_) = member.next().await {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churn_leaves_nothing_behind() {
    const CYCLES: usize = 5;
    const SOCKETS: usize = 60;
    let stack = Setup::new().start().await;
    let addr = stack.addr();
    let cycle = async || {
        let mut sockets = JoinSet::new();
        for index in 0..SOCKETS {
            sockets.spawn(async move {
                let room = tenant();
                let dashboard = Dashboard::joined(addr, room.as_str(), &Token::of(room.as_str()).sign()).await;
                match index % 3 {
                    0 => drop(dashboard.close().await),
                    1 => drop(dashboard),
                    _ => drop(Dashboard::open(addr).await),
                }
            });
        }
        sockets.join_all().await;
        stack.gateway().metric_becomes("gateway_connections", &[], 0.0).await;
        stack.gateway().metric_becomes("gateway_unauthenticated", &[], 0.0).await;
        stack.gateway().metric_becomes("gateway_tenants", &[], 0.0).await;
        stack.subscriptions_become(&[]).await;
    };
    cycle().await;
    let baseline = async || (stack.gateway().file_descriptors(), stack.gateway().metric("gateway_tasks", &[]).await);
    // A scrape is a connection, too: the smallest of a few is what is always there.
    let settle = async || {
        let mut least = baseline().await;
        for _ in 0..20 {
            let next = baseline().await;
            least = (least.0.min(next.0), least.1.min(next.1));
            sleep(Duration::from_millis(20)).await;
        }
        least
    };
    let before = settle().await;
    for _ in 0..CYCLES {
        cycle().await;
    }
    assert_eq!(settle().await, before, "file descriptors and tasks");
    stack.finish().await;
}
