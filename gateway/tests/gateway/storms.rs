//! Everybody at once: rolling restarts, a balancer that dies, gateways that are all gone (F22–F24, F40), with nine hundred
//! clients behind a real HAProxy that return as browsers do.

use std::time::{Duration, Instant};

use publisher::TenantId;

use crate::harness::balancer::{Behind, CHECKED_OFTEN};
use crate::harness::follower::judge;
use crate::harness::ledger::{Entry, Ledger};
use crate::harness::{Balancer, Follower, Setup, Stack, Traffic, eventually, tenants};

const CLIENTS: usize = 900;
const ROOMS: usize = 30;

/// Three gateways that can be restarted, behind HAProxy.
async fn cluster(setup: Setup) -> (Stack, Balancer) {
    let stack = setup.gateways(3).keeping_ports().start().await;
    let balancer = Balancer::haproxy(&Behind::stack(&stack).await, &[("CHECK_INTERVAL", CHECKED_OFTEN)]).await;
    (stack, balancer)
}

/// The clients, joined.
async fn crowd(balancer: &Balancer, rooms: &[TenantId]) -> Vec<Follower> {
    let mut followers = Vec::new();
    for _ in 0..CLIENTS / rooms.len() {
        followers.extend(Follower::start_all(&[balancer.addr], rooms).await);
    }
    followers
}

async fn connections(stack: &Stack) -> usize {
    let counts = stack.gateways.iter().map(|gateway| gateway.metric("gateway_connections", &[]));
    futures::future::join_all(counts).await.into_iter().sum::<f64>() as usize
}

async fn all_back(stack: &Stack, limit: Duration) {
    eventually("every client is back", limit, async || (connections(stack).await == CLIENTS).then_some(())).await;
}

/// How many entries of this kind there were in each second of a span.
fn each_second(ledgers: &[Ledger], from: Instant, to: Instant, kind: impl Fn(&Entry) -> bool) -> Vec<usize> {
    let mut seconds = vec![0; (to - from).as_secs() as usize + 1];
    for (at, entry) in ledgers.iter().flat_map(|ledger| &ledger.entries) {
        if (from..to).contains(at) && kind(entry) {
            seconds[(*at - from).as_secs() as usize] += 1;
        }
    }
    seconds
}

fn returned(entry: &Entry) -> bool {
    matches!(entry, Entry::Joined { recovered: true, .. })
}

/// Nobody was sent back to a snapshot: the log had what everybody missed.
fn assert_all_resumed(ledgers: &[Ledger]) {
    for ledger in ledgers {
        let fresh = ledger.count(|entry| matches!(entry, Entry::Joined { recovered: false, .. } | Entry::Resync(_)));
        assert_eq!(fresh, 1, "one first start and no other: {ledger}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f23_a_rolling_restart_loses_nothing_and_spreads_the_returns() {
    const DRAIN: Duration = Duration::from_secs(8);
    let (mut stack, balancer) = cluster(Setup::new().env("DRAIN_SECONDS", "8")).await;
    let rooms = tenants(ROOMS);
    let followers = crowd(&balancer, &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 10);
    let mut drains = Vec::new();
    for index in 0..3 {
        let gateway = &mut stack.gateways[index];
        let clients = gateway.metric("gateway_connections", &[]).await;
        drains.push((Instant::now(), clients));
        gateway.terminate();
        let (status, took) = gateway.exit(DRAIN + Duration::from_secs(2)).await;
        assert!(status.success(), "{status} after {took:?}");
        gateway.log().assert_clean();
        gateway.restart().await;
        all_back(&stack, Duration::from_secs(10)).await;
    }
    let over = Instant::now();
    let ledgers = judge(followers, traffic.stop().await).await;
    assert_all_resumed(&ledgers);
    let codes = |entry: &Entry| matches!(entry, Entry::Closed(code) if *code != Some(1012));
    assert_eq!(ledgers.iter().map(|ledger| ledger.count(codes)).sum::<usize>(), 0, "closed otherwise than with 1012");
    let ends = drains.iter().skip(1).map(|(begun, _)| *begun).chain([over]);
    for ((begun, clients), end) in drains.iter().zip(ends) {
        let curve = each_second(&ledgers, *begun, end, returned);
        let fair = clients / DRAIN.as_secs_f64();
        eprintln!("{clients} clients came back: {curve:?} a second, {fair} would be fair");
        assert_eq!(curve.iter().sum::<usize>(), *clients as usize, "each once: {curve:?}");
        assert!(curve.iter().all(|&count| count as f64 <= 1.5 * fair), "{fair} a second would be fair: {curve:?}");
    }
    stack.finish().await;
}
