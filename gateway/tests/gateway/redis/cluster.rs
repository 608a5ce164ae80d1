//! On a Redis Cluster: sharded subscriptions, slots that move, nodes that die (F16, F18, F19).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use publisher::internals::topology::{RedisUrl, Servers};
use publisher::{PublishError, Publisher, PublisherConfig, TenantId};
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::time::sleep;

use crate::chaos::{LASTING, fate};
use crate::harness::failover::{
    Absent, assert_sockets_stayed_open, ends_well, until_all_arrives, until_delivery_is_back,
};
use crate::harness::follower::judge;
use crate::harness::holdings::info;
use crate::harness::ledger::Ledger;
use crate::harness::resp::Reply;
use crate::harness::{
    Follower, Holdings, RedisCluster, Setup, Stack, Token, Traffic, eventually, http, payment, tenants, traffic,
};

/// One tenant on each of the three masters first, then two more of each.
async fn spread(cluster: &RedisCluster) -> Vec<TenantId> {
    let mut by_master = [const { Vec::new() }; 3];
    while by_master.iter().any(|rooms: &Vec<_>| rooms.len() < 3) {
        for room in tenants(10) {
            let master = cluster.master_of(&room).await;
            by_master[master].push(room);
        }
    }
    (0..3).flat_map(|turn| by_master.iter().map(move |rooms| rooms[turn].clone())).collect()
}

async fn subscribed(cluster: &RedisCluster, stack: &Stack) -> BTreeSet<String> {
    let mut channels = BTreeSet::new();
    for node in &cluster.nodes {
        let reply = node.command(&["PUBSUB", "SHARDCHANNELS", &format!("{}:*", stack.prefix)]).await;
        channels.extend(reply.texts().into_iter().map(str::to_owned));
    }
    channels
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_of_all_nodes_are_served_and_let_go() {
    let cluster = RedisCluster::start().await;
    let mut stack = Setup::new().gateways(2).redis_url(&cluster.url()).start_on(None).await;
    let rooms = spread(&cluster).await;
    let mut followers = Follower::start_all(&stack.addrs(), &rooms).await;
    followers.extend(Follower::start_all(&stack.addrs()[1..], &rooms).await);
    let channels: BTreeSet<_> = rooms.iter().map(|room| stack.channel(room)).collect();
    assert_eq!(subscribed(&cluster, &stack).await, channels);
    for node in &cluster.nodes {
        let plain = node.command(&["PUBSUB", "CHANNELS", &format!("{}:{{*", stack.prefix)]).await;
        assert_eq!(plain.texts(), Vec::<&str>::new(), "tenants' channels are sharded");
    }
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 10);
    // A kick reaches every gateway, whichever node it is sent through.
    let kicked = &rooms[8];
    let token = Token::of(kicked.as_str()).claim("iat", json!(1)).sign();
    let mut seen = Vec::new();
    for addr in stack.addrs() {
        let mut dashboard = crate::harness::Dashboard::open(addr).await;
        dashboard.send_join(kicked.as_str(), Some(&token), None).await;
        dashboard.until("joined").await;
        seen.push(dashboard);
    }
    // A kicked client comes back with a newer token; the followers of this room have none.
    let (kicked_ones, followers): (Vec<_>, Vec<_>) =
        followers.into_iter().partition(|follower| follower.tenant == *kicked);
    let path = format!("/v1/tenants/{kicked}/disconnect");
    let answer = http::post(stack.gateway().internal, &path, "").await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    for mut dashboard in seen {
        dashboard.until("error").await;
        assert_eq!(dashboard.close_code().await, 4401);
    }
    for follower in kicked_ones {
        follower.stop().await;
    }
    sleep(Duration::from_secs(1)).await;
    let receipts = traffic.stop().await;
    assert!(receipts.len() > 80, "only {} events were published", receipts.len());
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert_eq!(ledgers.iter().map(Ledger::resyncs).sum::<usize>(), 0);
    eventually("nothing is subscribed to any more", Duration::from_secs(5), async || {
        subscribed(&cluster, &stack).await.is_empty().then_some(())
    })
    .await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f19_a_slot_that_moves_under_load_is_followed() {
    let cluster = RedisCluster::start().await;
    let mut stack = Setup::new().redis_url(&cluster.url()).start_on(None).await;
    let before = Holdings::before(&mut stack, cluster.addrs()).await;
    let rooms = spread(&cluster).await;
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 10);
    sleep(Duration::from_millis(500)).await;
    // There and back and on: each leaves subscriptions behind that no longer bring anything.
    for (room, to) in [(&rooms[0], 1), (&rooms[1], 2), (&rooms[0], 0), (&rooms[0], 2)] {
        cluster.move_slot(room, to).await;
        sleep(Duration::from_millis(700)).await;
    }
    let mut receipts = traffic.stop().await;
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    // The new node has another run id, so that each move is told; nobody else hears of it.
    for (ledger, moves) in ledgers.iter().zip([3, 1, 0, 0, 0, 0, 0, 0, 0]) {
        assert!(ledger.resyncs() <= moves, "moved {moves} times: {ledger}");
    }
    before.are_back(&stack).await;
    stack.finish().await;
}

/// Nothing is published that would show the gap, and nobody's heartbeat is due: the count of subscriptions tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f19_a_slot_that_moves_in_silence_is_found_within_seconds() {
    let cluster = RedisCluster::start().await;
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "300").redis_url(&cluster.url()).start_on(None).await;
    let before = Holdings::before(&mut stack, cluster.addrs()).await;
    let rooms = spread(&cluster).await[..3].to_vec();
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let mut receipts = Vec::new();
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    let channel = stack.channel(&rooms[0]);
    assert_eq!(cluster.subscribers(0, &channel).await, 1);
    cluster.move_slot(&rooms[0], 1).await;
    let moved = Instant::now();
    eventually("subscribed on the new node", Duration::from_secs(5), async || {
        (cluster.subscribers(1, &channel).await == 1).then_some(())
    })
    .await;
    until_delivery_is_back(&mut stack, &followers, &mut receipts, moved).await;
    assert_sockets_stayed_open(&judge(followers, receipts).await);
    before.are_back(&stack).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f19_a_node_that_dies_is_replaced_by_its_replica() {
    let mut cluster = RedisCluster::start().await;
    let mut stack = Setup::new().gateways(2).redis_url(&cluster.url()).start_on(None).await;
    let before = Holdings::before(&mut stack, cluster.addrs()).await;
    let rooms = spread(&cluster).await;
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 10);
    sleep(Duration::from_millis(500)).await;
    cluster.nodes[0].kill9();
    let died = Instant::now();
    eventually("the replica is the master", Duration::from_secs(20), async || {
        (cluster.master_of(&rooms[0]).await == 3).then_some(())
    })
    .await;
    let took_over = died.elapsed();
    let mut receipts = traffic.stop().await;
    let back = until_delivery_is_back(&mut stack, &followers, &mut receipts, died).await;
    assert!(back - took_over < Duration::from_secs(5), "the cluster took {took_over:?}, delivery {back:?}");

    // And it comes back, as the replica of its replica; nobody minds.
    cluster.nodes[0].restart().await;
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    for (ledger, room) in ledgers.iter().zip(&rooms) {
        let died_under_it = cluster.slot_of(room).await <= 5460;
        assert_eq!(ledger.resyncs() > 0, died_under_it, "{room}: {ledger}");
    }
    before.are_back(&stack).await;
    stack.finish().await;
}

/// The replica never heard of the last events: their numbers are given out again, under another epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f16_a_cluster_promotes_a_replica_that_lags() {
    let mut cluster = RedisCluster::start().await;
    let mut stack = Setup::new().redis_url(&cluster.url()).start_on(None).await;
    let before = Holdings::before(&mut stack, cluster.addrs()).await;
    let rooms = spread(&cluster).await;
    let followers = Follower::start_all(&stack.addrs(), &rooms[..3]).await;
    let mut receipts = Vec::new();
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    stack.publish(&rooms[3], &payment()).await;
    cluster.leave_behind(0, 3).await;
    let absent = Absent::after(&mut stack, rooms[3].clone(), 3).await;
    for _ in 0..3 {
        until_all_arrives(&mut stack, &followers, &mut receipts).await;
    }
    let old = followers[0].ledger().cursor().unwrap();
    assert_eq!(old.seq, 4);
    cluster.nodes[0].kill9();
    let died = Instant::now();
    cluster.nodes[3].thaw();
    until_delivery_is_back(&mut stack, &followers, &mut receipts, died).await;
    absent.returns_and_is_told(&mut stack).await;
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert!(ledgers[0].resyncs() >= 1, "{}", ledgers[0]);
    assert_ne!(ledgers[0].cursor().unwrap().epoch, old.epoch);
    assert_eq!(ledgers[1].resyncs() + ledgers[2].resyncs(), 0, "the other nodes' tenants heard of it");
    before.are_back(&stack).await;
    stack.finish().await;
}

/// Nobody takes over from a master that died with its replica. The other nodes are asked for the layout, over the
/// connections that there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f41_a_node_that_is_away_costs_the_others_no_connections() {
    let mut cluster = RedisCluster::start_with(&["--cluster-require-full-coverage", "no"]).await;
    let mut stack = Setup::new().redis_url(&cluster.url()).start_on(None).await;
    let before = Holdings::before(&mut stack, cluster.addrs()).await;
    let rooms = spread(&cluster).await;
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let mut receipts = Vec::new();
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    for node in [3, 0] {
        cluster.nodes[node].kill9();
    }
    // A browser each.
    before.stay_bounded(&mut stack, &rooms, Duration::from_secs(60), rooms.len() + 10).await;
    for node in [0, 3] {
        cluster.nodes[node].restart().await;
    }
    let healed = Instant::now();
    until_delivery_is_back(&mut stack, &followers, &mut receipts, healed).await;
    assert_sockets_stayed_open(&judge(followers, receipts).await);
    before.are_back(&stack).await;
    stack.finish().await;
}

/// A slot on its way is served by neither node: a script's keys must not be on two, and one of them is always new.
/// Billing is told so each time, and dials nobody for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f41_a_slot_in_migration_refuses_honestly_and_costs_no_connections() {
    let cluster = RedisCluster::start().await;
    let publisher = Publisher::connect(PublisherConfig::new(cluster.url())).await.unwrap();
    let rooms = spread(&cluster).await;
    let (moving, neighbour) = (&rooms[0], &rooms[1]);
    traffic::publish(&publisher, moving, &payment()).await;
    let mut received = Vec::new();
    for node in cluster.addrs() {
        received.push(info(node, "stats", "total_connections_received").await.unwrap());
    }
    let migration = cluster.begin_migration(moving, 1).await;
    let (begun, mut refused) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(15) {
        // Whichever node has its keys meanwhile.
        if refused == 5 {
            migration.move_keys().await;
            // To follow ASK would be of no use: the target runs no script with a key that is not there yet.
            let mut target = cluster.nodes[1].client().await;
            target.command(&["ASKING"]).await;
            let (state, mark) = (format!("dash:{{{moving}}}:state"), format!("dash:{{{moving}}}:once:new"));
            let answer = target.try_command(&["EVAL", "return 1", "2", &state, &mark]).await.unwrap();
            assert!(matches!(&answer, Reply::Error(error) if error.starts_with("TRYAGAIN")), "{answer:?}");
        }
        let event = payment();
        match publisher.broadcast_to_tenant(moving, &event).await {
            Err(PublishError::Unavailable) => {}
            // The timeout came between its last question and the refusal.
            Err(PublishError::Unknown { .. }) => {}
            other => panic!("{other:?}"),
        }
        refused += 1;
        assert!(publisher.broadcast_to_tenant(neighbour, &payment()).await.is_ok(), "the others don't notice");
        sleep(Duration::from_millis(100)).await;
    }
    for (node, before) in cluster.addrs().into_iter().zip(received) {
        let dialled = info(node, "stats", "total_connections_received").await.unwrap() - before;
        // Those of this test, and of the nodes among each other.
        assert!(dialled <= 12, "{dialled} connections to {node} while {refused} events were refused");
    }
    migration.end().await;
    let ended = Instant::now();
    let receipt = traffic::publish(&publisher, moving, &payment()).await;
    assert_eq!(receipt.seq, Some(1), "the first on its new server: nothing that was refused was published");
    println!("{refused} refused, published {:?} after the slot had moved", ended.elapsed());
    publisher.close().await;
}

/// A master that knows no other node any more was succeeded, lives, and answers all questions by its old view: where it
/// was the one that was asked, it goes on being asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_node_of_a_cluster_leads_nobody_astray() {
    let cluster = RedisCluster::start().await;
    let (old, new) = (cluster.nodes[0].addr().port(), cluster.nodes[3].addr().port());
    let mut stack = Setup::new().redis_url(&cluster.url()).start_on(None).await;
    let processes: Vec<_> = (0..12).map(|_| Servers::follow(RedisUrl::parse(&cluster.url()).unwrap())).collect();
    let rooms = spread(&cluster).await;
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let mut receipts = Vec::new();
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    let port_of =
        |servers: &Servers| servers.layout().server_of(rooms[0].as_str().as_bytes()).map(|server| server.port);
    assert!(processes.iter().all(|servers| port_of(servers) == Some(old)));
    cluster.isolate(0).await;
    cluster.nodes[3].command(&["CLUSTER", "FAILOVER", "TAKEOVER"]).await;
    let begun = Instant::now();
    for servers in &processes {
        eventually("the successor is followed", Duration::from_secs(5), async || {
            (port_of(servers) == Some(new)).then_some(())
        })
        .await;
    }
    println!("followed within {:?}", begun.elapsed());
    until_delivery_is_back(&mut stack, &followers, &mut receipts, begun).await;
    while begun.elapsed() < Duration::from_secs(10) {
        for servers in &processes {
            servers.doubt();
            assert_eq!(port_of(servers), Some(new));
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_sockets_stayed_open(&judge(followers, receipts).await);
    stack.finish().await;
}

/// Slots lose their server one after the other, and the tenants of each are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f19_a_second_slot_without_a_server_is_told_too() {
    let cluster = RedisCluster::start_with(&["--cluster-require-full-coverage", "no"]).await;
    let mut stack = Setup::new().redis_url(&cluster.url()).start_on(None).await;
    let rooms = spread(&cluster).await;
    let mut dashboards = Vec::new();
    for room in &rooms[..2] {
        dashboards.push(stack.dashboard(room).await);
    }
    let mut lost = Vec::new();
    for (room, dashboard) in rooms.iter().zip(&mut dashboards) {
        let (slot, owner) = (cluster.slot_of(room).await.to_string(), cluster.master_of(room).await);
        let mut nodes: Vec<_> = cluster.nodes.iter().collect();
        // What the owner still claims the others take up again.
        nodes.swap(0, owner);
        for node in nodes {
            drop(node.client().await.try_command(&["CLUSTER", "DELSLOTS", &slot]).await);
        }
        let begun = Instant::now();
        dashboard.until("degraded").await;
        println!("told after {:.2?}", begun.elapsed());
        lost.push((slot, owner));
    }
    for (slot, owner) in lost {
        cluster.nodes[owner].command(&["CLUSTER", "ADDSLOTS", &slot]).await;
    }
    for (room, mut dashboard) in rooms.iter().zip(dashboards) {
        dashboard.until("restored").await;
        stack.publish(room, &payment()).await;
        dashboard.until_event().await;
        dashboard.close().await;
    }
    stack.finish().await;
}

/// A failover by hand: the old master goes on as a replica, and its connections never break.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f18_a_cluster_demotes_a_healthy_master() {
    let cluster = RedisCluster::start().await;
    let mut stack = Setup::new().redis_url(&cluster.url()).start_on(None).await;
    let before = Holdings::before(&mut stack, cluster.addrs()).await;
    let rooms = spread(&cluster).await;
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 10);
    sleep(Duration::from_millis(500)).await;
    for replica in [3, 4, 5] {
        cluster.nodes[replica].command(&["CLUSTER", "FAILOVER"]).await;
        sleep(Duration::from_millis(500)).await;
    }
    eventually("all are demoted", Duration::from_secs(10), async || {
        for room in &rooms {
            (cluster.master_of(room).await >= 3).then_some(())?;
        }
        Some(())
    })
    .await;
    let mut receipts = traffic.stop().await;
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert!(ledgers.iter().all(|ledger| ledger.resyncs() <= 1));
    before.are_back(&stack).await;
    stack.finish().await;
}

/// Slots that move, masters that are demoted, frozen or killed, subscriptions that are cut: one after the other, drawn from a
/// seed. By hand: `FAULT_SEED=7 FAULT_SECONDS=600 cargo test -p gateway --test gateway whatever_breaks_in_a_cluster -- --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f19_whatever_breaks_in_a_cluster_nobody_misses_an_event_without_being_told() {
    let (seed, time) = fate(25);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut cluster = RedisCluster::start().await;
    let mut stack =
        Setup::new().gateways(2).env("HEARTBEAT_SECONDS", "2").redis_url(&cluster.url()).start_on(None).await;
    let before = Holdings::before(&mut stack, cluster.addrs()).await;
    let rooms = spread(&cluster).await;
    let mut followers = Follower::start_all(&stack.addrs(), &rooms).await;
    followers.extend(Follower::start_all(&stack.addrs()[1..], &rooms).await);
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 5);
    let begun = Instant::now();
    while begun.elapsed() < time {
        let room = rooms.choose(&mut random).unwrap();
        let master = cluster.master_of(room).await;
        let strike = random.random_range(0..STRIKES.len());
        let pause = Duration::from_millis(random.random_range(200..3000));
        println!("{:6.2} s: {} of node {master}", begun.elapsed().as_secs_f32(), STRIKES[strike]);
        match strike {
            0 => {
                let others: Vec<_> = cluster.masters().await.into_iter().filter(|other| *other != master).collect();
                cluster.move_slot(room, *others.choose(&mut random).unwrap()).await;
            }
            1 => {
                let replica = cluster.replica_of(master).await;
                cluster.nodes[replica].command(&["CLUSTER", "FAILOVER"]).await;
            }
            2 => {
                cluster.nodes[master].freeze();
                sleep(pause).await;
                cluster.nodes[master].thaw();
            }
            3 => {
                cluster.nodes[master].kill9();
                cluster.is_succeeded(master).await;
                cluster.nodes[master].restart().await;
            }
            4 => drop(cluster.nodes[master].kill_subscribers().await),
            _ => {
                // With its replica, so that no other node can take over.
                let without = [master, cluster.replica_of(master).await];
                without.iter().for_each(|node| cluster.nodes[*node].freeze());
                sleep(LASTING + pause).await;
                without.iter().for_each(|node| cluster.nodes[*node].thaw());
            }
        }
        cluster.is_whole().await;
        sleep(pause).await;
    }
    ends_well(stack, followers, traffic, before).await;
}

const STRIKES: [&str; 6] = [
    "a slot",
    "the mastership",
    "the use, for a while,",
    "the life",
    "the subscriptions",
    "the use, for a minute and with its replica,",
];
