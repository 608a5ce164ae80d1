//! Behind Sentinels: the gateway follows the master that they name (F16–F18, F43).

use std::time::{Duration, Instant};

use publisher::internals::topology::{RedisUrl, Servers};
use publisher::{Outcome, Publisher, PublisherConfig};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::chaos::{LASTING, fate};
use crate::harness::failover::{
    Absent, assert_sockets_stayed_open, ends_well, until_all_arrives, until_delivery_is_back,
};
use crate::harness::follower::judge;
use crate::harness::ledger::Entry;
use crate::harness::oracle::Receipt;
use crate::harness::redis::RedisServer;
use crate::harness::sentinel::Sentinel;
use crate::harness::{
    Follower, Holdings, Sentinels, Setup, Stack, Traffic, eventually, payment, tenant, tenants, traffic,
};

/// Under load, what `strike` does to the first server; then delivery must be back within five seconds of the new master.
async fn failover_under_load(
    strike: impl AsyncFnOnce(&mut Sentinels),
) -> (Sentinels, Stack, Holdings, Vec<Follower>, Vec<Receipt>) {
    let mut sentinels = Sentinels::start().await;
    let mut stack = Setup::new().gateways(2).redis_url(&sentinels.url()).start_on(None).await;
    let before = Holdings::before(&mut stack, sentinels.addrs()).await;
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
    (sentinels, stack, before, followers, receipts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f17_a_frozen_master_is_succeeded_and_wakes_up_harmless() {
    let (sentinels, mut stack, before, followers, mut receipts) =
        failover_under_load(async |sentinels| sentinels.servers[0].freeze()).await;
    // It wakes up as a master, with what was sent to it before, and is made a replica.
    sentinels.servers[0].thaw();
    eventually("it is a replica", Duration::from_secs(20), async || {
        // A Sentinel that demotes a master ends its clients' connections.
        let role = sentinels.servers[0].client().await.try_command(&["ROLE"]).await.ok()?;
        (role.texts().first() == Some(&"slave")).then_some(())
    })
    .await;
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    // Once for the new master, and once more when the old one wakes up: for a moment it is a master, with what was sent to it before.
    assert!(ledgers.iter().all(|ledger| (1..=3).contains(&ledger.resyncs())), "{}", ledgers[0]);
    before.are_back(&stack).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f17_a_killed_master_is_succeeded() {
    let (_sentinels, stack, before, followers, receipts) =
        failover_under_load(async |sentinels| sentinels.servers[0].kill9()).await;
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert!(ledgers.iter().all(|ledger| ledger.resyncs() == 1), "told once each");
    before.are_back(&stack).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f18_a_healthy_master_is_demoted() {
    let (_sentinels, stack, before, followers, receipts) =
        failover_under_load(async |sentinels| sentinels.fail_over().await).await;
    assert_sockets_stayed_open(&judge(followers, receipts).await);
    before.are_back(&stack).await;
    stack.finish().await;
}

/// A billing process that learns of the new master last: it publishes to the old one until that one refuses, ten times a second
/// for each tenant. What it was told is published must be on every dashboard, or under a resync.
async fn a_demoted_master_takes_events(meanwhile: impl AsyncFnOnce(&Sentinels)) {
    let sentinels = Sentinels::start().await;
    let mut stack = Setup::new().gateways(2).redis_url(&sentinels.url()).start_on(None).await;
    let rooms = tenants(10);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let mut config = PublisherConfig::new(sentinels.servers[0].url());
    config.prefix = stack.prefix.clone();
    let publisher = Publisher::connect(config).await.unwrap();
    let mut late = JoinSet::new();
    for room in rooms.clone() {
        let publisher = publisher.clone();
        late.spawn(async move {
            let mut receipts = Vec::new();
            let mut ticks = tokio::time::interval(Duration::from_millis(110));
            loop {
                ticks.tick().await;
                let event = payment();
                match publisher.broadcast_to_tenant(&room, &event).await {
                    Ok(Outcome::Published { seq, .. }) => {
                        let (tenant, id) = (room.clone(), event.id.to_string());
                        receipts.push(Receipt { tenant, id, seq: Some(seq), at: Instant::now() });
                    }
                    Ok(_) => {}
                    Err(_) => return receipts,
                }
            }
        });
    }
    sleep(Duration::from_secs(1)).await;
    sentinels.fail_over().await;
    sentinels.master_becomes(1).await;
    let moved = Instant::now();
    meanwhile(&sentinels).await;
    let receipts = late.join_all().await.concat();
    let late = receipts.iter().filter(|receipt| receipt.at > moved).count();
    assert!(late > 0, "the old master took nothing after the new one was known, so nothing was tested");

    let mut after = Vec::new();
    until_all_arrives(&mut stack, &followers, &mut after).await;
    let unheard = |receipt: &&Receipt| {
        let follower = followers.iter().find(|follower| follower.tenant == receipt.tenant).unwrap();
        let ledger = follower.ledger();
        let told = |(at, entry): &(Instant, Entry)| *at >= receipt.at && matches!(entry, Entry::Resync(_));
        !ledger.has(&receipt.id) && !ledger.entries.iter().any(told)
    };
    let begun = Instant::now();
    let missed = loop {
        let missed = receipts.iter().filter(unheard).count();
        if missed == 0 || begun.elapsed() > Duration::from_secs(20) {
            break missed;
        }
        sleep(Duration::from_millis(100)).await;
    };
    let (all, waited) = (receipts.len(), begun.elapsed());
    println!("{late} of {all} events went to the old master after the move; {missed} are nowhere after {waited:.2?}");
    assert_eq!(missed, 0, "acknowledged events that no dashboard has and no resync covers");
    publisher.close().await;
    let ledgers = judge(followers, after).await;
    assert_sockets_stayed_open(&ledgers);
    for ledger in &ledgers {
        println!("{} resyncs", ledger.resyncs());
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_what_a_demoted_master_still_takes_is_told() {
    a_demoted_master_takes_events(async |_| {}).await;
}

/// The gateways lose their connections to the old master, and get no new ones while it takes events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_what_a_demoted_master_takes_unheard_is_told() {
    a_demoted_master_takes_events(async |sentinels| {
        let mut client = sentinels.servers[0].client().await;
        // They connect anew after a failover, and have one subscription each.
        eventually("the Sentinels are connected to the old master", Duration::from_secs(5), async || {
            let subscribers = sentinels.servers[0].command(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
            (subscribers.text().matches(" sub=1 ").count() == 3).then_some(())
        })
        .await;
        client.command(&["CONFIG", "SET", "maxclients", "1"]).await;
        let subscribers = client.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
        let lines: Vec<_> = subscribers.text().lines().map(str::to_owned).collect();
        for line in lines.iter().filter(|line| !line.contains(" sub=1 ")) {
            let id = line.strip_prefix("id=").and_then(|line| line.split(' ').next()).unwrap();
            client.command(&["CLIENT", "KILL", "ID", id]).await;
        }
    })
    .await;
}

/// The replica never heard of the last events: their numbers are given out again, under another epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f16_sentinels_promote_a_replica_that_lags() {
    let mut sentinels = Sentinels::start().await;
    let mut stack = Setup::new().redis_url(&sentinels.url()).start_on(None).await;
    let before = Holdings::before(&mut stack, sentinels.addrs()).await;
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
    before.are_back(&stack).await;
    stack.finish().await;
}

/// Everything asks the Sentinels for a master that there is not: over the connections that there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f41_an_outage_behind_sentinels_costs_no_connections() {
    let mut sentinels = Sentinels::start().await;
    let mut stack = Setup::new().redis_url(&sentinels.url()).start_on(None).await;
    let before = Holdings::before(&mut stack, sentinels.addrs()).await;
    let rooms = tenants(5);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let mut receipts = Vec::new();
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    for server in [1, 0] {
        sentinels.servers[server].kill9();
    }
    // A browser each.
    before.stay_bounded(&mut stack, &rooms, Duration::from_secs(60), rooms.len() + 10).await;
    for server in [0, 1] {
        sentinels.servers[server].restart().await;
    }
    let healed = Instant::now();
    until_delivery_is_back(&mut stack, &followers, &mut receipts, healed).await;
    assert_sockets_stayed_open(&judge(followers, receipts).await);
    before.are_back(&stack).await;
    stack.finish().await;
}

fn follow(url: &str) -> Servers {
    Servers::follow(RedisUrl::parse(url).unwrap())
}

/// The port that a process takes for the master's, once it knows of one.
async fn port_of_master(servers: &Servers) -> u16 {
    eventually("a master is known", Duration::from_secs(10), async || {
        servers.layout().servers().first().map(|server| server.port)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_all_processes_follow_a_failover_at_the_same_moment() {
    let sentinels = Sentinels::start().await;
    let (old, new) = (sentinels.servers[0].addr().port(), sentinels.servers[1].addr().port());
    let mut processes = Vec::new();
    for first in 0..9 {
        // Each with a clock of its own.
        sleep(Duration::from_millis(110)).await;
        let mut servers = follow(&sentinels.url_from(first));
        assert_eq!(servers.changed().await.servers()[0].port, old);
        processes.push(servers);
    }
    sentinels.fail_over().await;
    let moved = processes.iter_mut().map(async |servers| {
        while servers.changed().await.servers()[0].port != new {}
        Instant::now()
    });
    let moved = futures::future::join_all(moved).await;
    let (first, last) = (moved.iter().min().unwrap(), moved.iter().max().unwrap());
    println!("the last process moved {:?} after the first", *last - *first);
    assert!(*last - *first < Duration::from_millis(400), "{:?}", *last - *first);
}

/// A Sentinel that was cut off during a failover, with the old master: both go on as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_a_stale_sentinel_splits_no_processes() {
    let (sentinels, old_master) = tokio::join!(Sentinels::start(), RedisServer::start());
    let stale = Sentinel::watching(&old_master).await;
    sentinels.fail_over().await;
    sentinels.master_becomes(1).await;
    let setup = Setup::new().gateways(4).redis_url(&sentinels.url_with(&stale));
    let mut stack = setup.start_on(None).await;
    let rooms = tenants(3);
    let mut followers = Vec::new();
    for addr in stack.addrs() {
        followers.extend(Follower::start_all(&[addr], &rooms).await);
    }
    let mut config = stack.publisher_config();
    config.redis_url = sentinels.url();
    let billing = Publisher::connect(config).await.unwrap();
    let mut receipts = Vec::new();
    for _ in 0..5 {
        for room in &rooms {
            receipts.push(traffic::publish(&billing, room, &payment()).await);
            receipts.push(stack.publish(room, &payment()).await);
        }
    }
    // Every dashboard of every gateway has all of them.
    assert_sockets_stayed_open(&judge(followers, receipts).await);
    assert_eq!(old_master.command(&["DBSIZE"]).await.integer(), 0, "something was written to the old master");
    billing.close().await;
    stack.finish().await;
}

/// All Sentinels lost what they knew, and count failovers from zero.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_sentinels_that_were_set_up_anew_are_believed_after_a_while() {
    let mut sentinels = Sentinels::start().await;
    let servers = follow(&sentinels.url());
    sentinels.fail_over().await;
    sentinels.master_becomes(1).await;
    let ports = sentinels.servers.each_ref().map(|server| server.addr().port());
    eventually("the new master is followed", Duration::from_secs(5), async || {
        (port_of_master(&servers).await == ports[1]).then_some(())
    })
    .await;
    sentinels.rebuild(0).await;
    let rebuilt = Instant::now();
    eventually("they are believed", Duration::from_secs(30), async || {
        (port_of_master(&servers).await == ports[0]).then_some(())
    })
    .await;
    println!("believed {:?} after they agreed", rebuilt.elapsed());
}

/// Masters that are demoted under traffic, frozen or killed, Sentinels that sleep through it, minutes without any Redis: one after
/// the other, drawn from a seed. By hand:
/// `FAULT_SEED=7 FAULT_SECONDS=600 cargo test -p gateway --test gateway whatever_breaks_behind_sentinels -- --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f18_whatever_breaks_behind_sentinels_nobody_misses_an_event_without_being_told() {
    let (seed, time) = fate(25);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut sentinels = Sentinels::start().await;
    let mut stack =
        Setup::new().gateways(2).env("HEARTBEAT_SECONDS", "2").redis_url(&sentinels.url()).start_on(None).await;
    let before = Holdings::before(&mut stack, sentinels.addrs()).await;
    let rooms = tenants(5);
    let mut followers = Follower::start_all(&stack.addrs(), &rooms).await;
    followers.extend(Follower::start_all(&stack.addrs()[1..], &rooms).await);
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 5);
    let begun = Instant::now();
    let mut strikes = STRIKES.iter().cycle();
    while begun.elapsed() < time {
        let master = sentinels.master().await;
        let other = 1 - master;
        let pause = Duration::from_millis(random.random_range(200..3000));
        // Each in its turn, so that a run of any length has most of them; the seed says where it starts and when.
        let strike = strikes.nth(random.random_range(0..2)).unwrap();
        println!("{:6.2} s: {strike}", begun.elapsed().as_secs_f32());
        match *strike {
            "planned failover" => {
                sentinels.fail_over().await;
                sentinels.master_becomes(other).await;
            }
            "planned failover, a Sentinel asleep" => {
                let asleep = random.random_range(1..3);
                sentinels.freeze(asleep);
                sentinels.fail_over().await;
                eventually("another master", Duration::from_secs(30), async || {
                    (sentinels.master().await == other).then_some(())
                })
                .await;
                sleep(pause).await;
                sentinels.thaw(asleep);
            }
            "master frozen until long after its succession" => {
                sentinels.servers[master].freeze();
                sentinels.master_becomes(other).await;
                sleep(pause * 5).await;
                sentinels.servers[master].thaw();
            }
            "master killed" => {
                sentinels.servers[master].kill9();
                sentinels.master_becomes(other).await;
                sleep(pause).await;
                sentinels.servers[master].restart().await;
            }
            "subscribers killed" => drop(sentinels.servers[master].kill_subscribers().await),
            _ => {
                sentinels.servers.iter().for_each(RedisServer::freeze);
                sleep(LASTING + pause).await;
                sentinels.servers.iter().for_each(RedisServer::thaw);
            }
        }
        sentinels.agree().await;
        sleep(pause).await;
    }
    ends_well(stack, followers, traffic, before).await;
}

const STRIKES: [&str; 6] = [
    "planned failover",
    "master killed",
    "planned failover, a Sentinel asleep",
    "subscribers killed",
    "master frozen until long after its succession",
    "no server answers for a minute",
];
