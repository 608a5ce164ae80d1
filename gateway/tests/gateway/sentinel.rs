//! Behind Sentinels: whoever is the master is followed (F16–F18).

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::harness::failover::{Absent, assert_sockets_stayed_open, until_all_arrives, until_delivery_is_back};
use crate::harness::follower::judge;
use crate::harness::oracle::Receipt;
use crate::harness::{Follower, Sentinels, Setup, Stack, Traffic, eventually, payment, tenant, tenants};

/// Under load, what `strike` does to the first server; then delivery must be back within five seconds of the new master.
async fn failover_under_load(
    strike: impl AsyncFnOnce(&mut Sentinels),
) -> (Sentinels, Stack, Vec<Follower>, Vec<Receipt>) {
    let mut sentinels = Sentinels::start().await;
    let mut stack = Setup::new().gateways(2).redis_url(&sentinels.url()).start_on(None).await;
    let rooms = tenants(10);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 10);
    sleep(Duration::from_millis(500)).await;
    let struck = Instant::now();
    strike(&mut sentinels).await;
    sentinels.master_becomes(1).await;
    let promoted = struck.elapsed();
    let mut receipts = traffic.stop().await;
    let back = until_delivery_is_back(&mut stack, &followers, &mut receipts, struck).await;
    assert!(back - promoted < Duration::from_secs(5), "the Sentinels took {promoted:?}, delivery {back:?}");
    (sentinels, stack, followers, receipts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f17_a_frozen_master_is_succeeded_and_wakes_up_harmless() {
    let (sentinels, mut stack, followers, mut receipts) =
        failover_under_load(async |sentinels| sentinels.servers[0].freeze()).await;
    // It wakes up as a master, with what was sent to it before, and is made a replica.
    sentinels.servers[0].thaw();
    eventually("it is a replica", Duration::from_secs(20), async || {
        let role = sentinels.servers[0].command(&["ROLE"]).await;
        (role.texts().first() == Some(&"slave")).then_some(())
    })
    .await;
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert!(ledgers.iter().all(|ledger| ledger.resyncs() == 1), "told once each");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f17_a_killed_master_is_succeeded() {
    let (_sentinels, stack, followers, receipts) =
        failover_under_load(async |sentinels| sentinels.servers[0].kill9()).await;
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert!(ledgers.iter().all(|ledger| ledger.resyncs() == 1), "told once each");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f18_a_healthy_master_is_demoted() {
    let (_sentinels, stack, followers, receipts) =
        failover_under_load(async |sentinels| sentinels.fail_over().await).await;
    assert_sockets_stayed_open(&judge(followers, receipts).await);
    stack.finish().await;
}

/// The replica never heard of the last events: their numbers are given out again, under another epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f16_sentinels_promote_a_replica_that_lags() {
    let mut sentinels = Sentinels::start().await;
    let mut stack = Setup::new().redis_url(&sentinels.url()).start_on(None).await;
    let followers = Follower::start_all(&stack.addrs(), &tenants(2)).await;
    let mut receipts = Vec::new();
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    let away = tenant();
    stack.publish(&away, &payment()).await;
    sentinels.servers[1].freeze();
    sentinels.servers[0].command(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    let absent = Absent::after(&mut stack, away, 3).await;
    for _ in 0..3 {
        until_all_arrives(&mut stack, &followers, &mut receipts).await;
    }
    let old = followers[0].ledger().cursor().unwrap();
    assert_eq!(old.seq, 4);
    sentinels.servers[0].kill9();
    let died = Instant::now();
    sentinels.servers[1].thaw();
    until_delivery_is_back(&mut stack, &followers, &mut receipts, died).await;
    absent.returns_and_is_told(&mut stack).await;
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    for ledger in &ledgers {
        assert!(ledger.resyncs() >= 1, "{ledger}");
        assert_ne!(ledger.cursor().unwrap().epoch, old.epoch);
    }
    stack.finish().await;
}
