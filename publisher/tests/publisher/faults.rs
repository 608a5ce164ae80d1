//! Publishing while Redis is lost, frozen or full, has lost its data, or is another server than before.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use publisher::{DashboardEvent, EventId, Outcome, PublishError, Publisher, PublisherConfig};
use tokio::task::JoinSet;

use crate::harness::{
    Proxy, RedisClient, RedisServer, Sentinel, assert_once_and_in_order, eventually, fill, log, payment, publisher,
    tenant,
};

/// The configured 250 ms, and the time that a busy machine takes to wake a task.
const LIMIT: Duration = Duration::from_millis(300);

/// A publisher whose tenants have a higher limit than ten events.
async fn unlimited(url: &str) -> Publisher {
    let mut config = PublisherConfig::new(url);
    config.events_per_second = 1000;
    Publisher::connect(config).await.unwrap()
}

async fn timed(publisher: &Publisher, event: &DashboardEvent) -> (Result<Outcome, PublishError>, Duration) {
    let started = Instant::now();
    let result = publisher.broadcast_to_tenant(&tenant("acorn"), event).await;
    (result, started.elapsed())
}

/// Publishes the event until Redis has answered, as a caller should when the outcome is unknown.
async fn insist(publisher: &Publisher, event: &DashboardEvent) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match publisher.broadcast_to_tenant(&tenant("acorn"), event).await {
            Ok(outcome) => return outcome,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn redis_down_at_the_start_is_no_error_and_heals() {
    let mut redis = RedisServer::start().await;
    redis.kill9();
    let publisher = publisher(&redis).await;
    let (result, took) = timed(&publisher, &payment()).await;
    assert_eq!(result, Err(PublishError::Unavailable));
    assert!(took < Duration::from_millis(50), "{took:?}");
    redis.restart().await;
    eventually(Duration::from_secs(5), "published again", async || timed(&publisher, &payment()).await.0.is_ok()).await;
}

#[tokio::test]
async fn f03_redis_killed_is_unavailable_at_once_and_heals() {
    let mut redis = RedisServer::start().await;
    let publisher = publisher(&redis).await;
    timed(&publisher, &payment()).await.0.unwrap();
    redis.kill9();
    // The kernel reports the end within moments. A publish before that gets an answer in time, too.
    let (_, took) = timed(&publisher, &payment()).await;
    assert!(took < LIMIT, "{took:?}");
    tokio::time::sleep(Duration::from_millis(50)).await;
    for _ in 0..100 {
        let (result, took) = timed(&publisher, &payment()).await;
        assert_eq!(result, Err(PublishError::Unavailable));
        assert!(took < Duration::from_millis(50), "{took:?}");
    }
    redis.restart().await;
    eventually(Duration::from_secs(5), "published again", async || timed(&publisher, &payment()).await.0.is_ok()).await;
}

#[tokio::test]
async fn f04_a_restart_with_its_data_begins_an_epoch_and_keeps_the_bucket() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let acorn = tenant("acorn");
    let mut config = PublisherConfig::new(redis.url());
    // The restart must fall within the second.
    config.events_per_second = 1;
    let publisher = Publisher::connect(config).await.unwrap();
    publisher.broadcast_to_tenant(&acorn, &payment()).await.unwrap();
    let before = log(&redis, &acorn).await;
    let spent = redis_field(&redis, "bucket").await;
    redis.kill9();
    redis.restart().await;
    assert_eq!(log(&redis, &acorn).await, before, "the data is back");

    let event = payment();
    let outcome = loop {
        match insist(&publisher, &event).await {
            Outcome::Throttled { retry_after } => tokio::time::sleep(retry_after).await,
            outcome => break outcome,
        }
    };
    assert_eq!(outcome, Outcome::Published { seq: 1, receivers: 0 });
    let after = log(&redis, &acorn).await;
    assert_ne!(after[0].epoch, before[0].epoch);
    assert_eq!(after.len(), 1, "the old epoch's log is gone");
    assert!(after[0].published_micros >= spent.parse::<u64>().unwrap() + 1_000_000, "the limit holds over the restart");
}

async fn redis_field(redis: &RedisServer, field: &str) -> String {
    redis.command(&["HGET", "dash:{acorn}:state", field]).await.text().to_owned()
}

#[tokio::test]
async fn f05_a_frozen_redis_costs_no_call_more_than_the_timeout_and_doubles_nothing() {
    let redis = RedisServer::start().await;
    let publisher = unlimited(&redis.url()).await;
    let events: Vec<_> = (0..20).map(|_| payment()).collect();
    timed(&publisher, &events[0]).await.0.unwrap();

    redis.freeze();
    let mut calls = JoinSet::new();
    for event in events.clone() {
        let publisher = publisher.clone();
        calls.spawn(async move { timed(&publisher, &event).await });
    }
    for (result, took) in calls.join_all().await {
        assert!(matches!(result, Err(PublishError::Unknown { .. } | PublishError::Unavailable)), "{result:?}");
        assert!(took < LIMIT, "{took:?}");
    }
    // By now the publisher knows that Redis does not answer.
    let (result, took) = timed(&publisher, &payment()).await;
    assert_eq!(result, Err(PublishError::Unavailable));
    assert!(took < Duration::from_millis(50), "{took:?}");

    redis.thaw();
    for event in &events {
        insist(&publisher, event).await;
    }
    let log = log(&redis, &tenant("acorn")).await;
    assert_once_and_in_order(&log);
    let shown: HashSet<&EventId> = log.iter().map(|message| &message.id).collect();
    assert!(events.iter().all(|event| shown.contains(&event.id)));
    assert_eq!(log.len(), events.len());
}

#[tokio::test]
async fn f02_connections_killed_under_load_lose_and_double_nothing() {
    let redis = RedisServer::start().await;
    let publisher = unlimited(&redis.url()).await;
    let mut tasks = JoinSet::new();
    for _ in 0..10 {
        let publisher = publisher.clone();
        tasks.spawn(async move {
            let mut ids = Vec::new();
            for _ in 0..40 {
                let event = payment();
                insist(&publisher, &event).await;
                ids.push(event.id);
            }
            ids
        });
    }
    let mut admin = redis.client().await;
    let mut ids = HashSet::new();
    while !tasks.is_empty() {
        admin.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        while let Some(done) = tasks.try_join_next() {
            ids.extend(done.unwrap());
        }
    }
    let log = log(&redis, &tenant("acorn")).await;
    assert_once_and_in_order(&log);
    assert_eq!(log.into_iter().map(|message| message.id).collect::<HashSet<_>>(), ids);
}

#[tokio::test]
async fn an_event_whose_reply_was_lost_is_sent_again_under_the_same_id() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::to(redis.addr()).await;
    let publisher = unlimited(&format!("redis://{}", proxy.addr())).await;
    // Redis must know the script already, otherwise the lost reply is only "NOSCRIPT".
    timed(&publisher, &payment()).await.0.unwrap();
    proxy.lose_answers(true);
    let event = payment();
    let (result, took) = timed(&publisher, &event).await;
    assert_eq!(result, Err(PublishError::Unknown { id: event.id.clone() }));
    assert!(took < LIMIT, "{took:?}");
    // It is sent over more than one connection, and published by the first.
    proxy.lose_answers(false);
    assert_eq!(insist(&publisher, &event).await, Outcome::Duplicate { seq: 2 });
    assert_eq!(log(&redis, &tenant("acorn")).await.len(), 2);
}

/// "Nothing was published" is the answer to one attempt. It holds for the event only when no other attempt is under way.
#[tokio::test]
async fn f51_throttled_does_not_count_while_another_attempt_is_under_way() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::to(redis.addr()).await;
    let mut config = PublisherConfig::new(format!("redis://{}", proxy.addr()));
    config.connections = 2;
    let slow = Publisher::connect(config).await.unwrap();
    fill(&publisher(&redis).await, &tenant("acorn")).await;

    // The two calls begin with different connections: one of them with the connection that is held.
    proxy.hold(Some(0));
    let (mut throttled, mut unknown) = (Vec::new(), Vec::new());
    for event in [payment(), payment()] {
        match timed(&slow, &event).await.0 {
            Ok(Outcome::Throttled { .. }) => throttled.push(event.id),
            Err(PublishError::Unknown { .. }) => unknown.push(event.id),
            other => panic!("{other:?}"),
        }
    }
    // By now the limit has room again for the attempt that was held.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    proxy.hold(None);
    let mut late = HashSet::new();
    eventually(Duration::from_secs(5), "the attempt that was held is carried out", async || {
        late = log(&redis, &tenant("acorn")).await.into_iter().skip(10).map(|message| message.id).collect();
        !late.is_empty()
    })
    .await;
    assert!(throttled.iter().all(|id| !late.contains(id)), "reported as throttled, and published");
    assert!(unknown.iter().any(|id| late.contains(id)));
}

async fn connections_received(redis: &RedisServer) -> usize {
    let stats = redis.command(&["INFO", "stats"]).await;
    let line = stats.text().lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    line.unwrap().parse().unwrap()
}

/// The outage lasts a minute. No attempt that began during it is carried out afterwards.
#[tokio::test]
async fn f42_a_minute_of_a_frozen_redis_costs_few_connections_and_leaves_none_behind() {
    let redis = RedisServer::start().await;
    let publisher = unlimited(&redis.url()).await;
    timed(&publisher, &payment()).await.0.unwrap();
    let before = connections_received(&redis).await;
    redis.freeze();
    let frozen = Instant::now();
    while frozen.elapsed() < Duration::from_secs(62) {
        let (result, took) = timed(&publisher, &payment()).await;
        assert!(result.is_err() && took < LIMIT, "{result:?} after {took:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    redis.thaw();
    let thawed = Instant::now();
    let event = payment();
    insist(&publisher, &event).await;
    let back = thawed.elapsed();
    tokio::time::sleep(Duration::from_secs(3)).await;
    // One connection a second, and the four that stay.
    let dialled = connections_received(&redis).await - before;
    println!("{dialled} dials, published {back:?} after the outage");
    assert!(dialled <= 62 + 20, "{dialled} dials");
    let healed = connections_received(&redis).await;
    for _ in 0..20 {
        timed(&publisher, &payment()).await.0.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(connections_received(&redis).await, healed + 1, "a connection that is well was dialled anew");
}

#[tokio::test]
async fn f42_a_redis_that_refuses_all_logins_gets_a_few_connections_a_second() {
    let redis = RedisServer::start().await;
    redis.command(&["CONFIG", "SET", "requirepass", "right"]).await;
    let publisher = unlimited(&redis.url().replace("redis://", "redis://:wrong@")).await;
    assert_eq!(timed(&publisher, &payment()).await.0, Err(PublishError::Unavailable));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut admin = redis.client().await;
    admin.command(&["AUTH", "right"]).await;
    let stats = admin.command(&["INFO", "stats"]).await;
    let dialled = stats.text().lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
    println!("{dialled} dials");
    assert!(dialled.parse::<usize>().unwrap() <= 100, "{dialled} dials in 11 seconds");
}

/// Without this connection, and without those of other Sentinels, which have names.
async fn clients_of(sentinel: &Sentinel) -> usize {
    let mut client = RedisClient::connect(sentinel.addr()).await.unwrap();
    let clients = client.command(&["CLIENT", "LIST"]).await;
    clients.text().lines().filter(|client| !client.contains(" name=sentinel-")).count() - 1
}

/// The publisher asks the Sentinels over connections that it keeps, and closes them when it ends.
#[tokio::test]
async fn f41_an_outage_behind_sentinels_costs_no_connections() {
    let mut redis = RedisServer::start().await;
    let sentinels = [Sentinel::watching(&redis).await, Sentinel::watching(&redis).await];
    let clients = async || [clients_of(&sentinels[0]).await, clients_of(&sentinels[1]).await];
    let [first, second] = sentinels.each_ref().map(|sentinel| sentinel.addr().to_string());
    let url = format!("redis-sentinel://{first}?sentinelServiceName=books&node={second}");
    let publisher = unlimited(&url).await;
    timed(&publisher, &payment()).await.0.unwrap();
    assert_eq!(clients().await, [1, 1]);
    redis.kill9();
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_secs(20) {
        let (result, _) = timed(&publisher, &payment()).await;
        assert!(result.is_err(), "{result:?}");
        let now = clients().await;
        assert!(now.iter().all(|clients| *clients <= 2), "{now:?} connections to the Sentinels");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    redis.restart().await;
    eventually(Duration::from_secs(5), "published again", async || timed(&publisher, &payment()).await.0.is_ok()).await;
    assert_eq!(clients().await, [1, 1]);
    drop(publisher);
    eventually(Duration::from_secs(5), "billing's connections end with it", async || clients().await == [0, 0]).await;
}

#[tokio::test]
async fn f09_black_holed_connections_are_noticed_and_replaced() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::to(redis.addr()).await;
    let publisher = unlimited(&format!("redis://{}", proxy.addr())).await;
    timed(&publisher, &payment()).await.0.unwrap();
    proxy.swallow_connections();
    let swallowed = Instant::now();
    loop {
        let (result, took) = timed(&publisher, &payment()).await;
        assert!(took < LIMIT, "{took:?}");
        if result.is_ok() {
            break;
        }
        assert!(swallowed.elapsed() < Duration::from_secs(5), "not healed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn f13_a_script_that_redis_has_forgotten_is_sent_again() {
    let redis = RedisServer::start().await;
    let publisher = unlimited(&redis.url()).await;
    let mut admin = redis.client().await;
    for seq in 1..=200 {
        admin.command(&["SCRIPT", "FLUSH"]).await;
        let (result, _) = timed(&publisher, &payment()).await;
        assert_eq!(result, Ok(Outcome::Published { seq, receivers: 0 }));
    }
    assert_once_and_in_order(&log(&redis, &tenant("acorn")).await);
}

#[tokio::test]
async fn f14_a_full_redis_refuses_an_event_as_a_whole() {
    let redis = RedisServer::start().await;
    let publisher = publisher(&redis).await;
    let mut admin = redis.client().await;
    let everything = async |admin: &mut RedisClient| {
        let state = admin.command(&["HGETALL", "dash:{acorn}:state"]).await;
        (state, admin.command(&["XRANGE", "dash:{acorn}:log", "-", "+"]).await, admin.command(&["DBSIZE"]).await)
    };
    // One tenant's epoch must begin, the other's has begun.
    for _ in 0..2 {
        let before = everything(&mut admin).await;
        admin.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
        let event = payment();
        match timed(&publisher, &event).await.0 {
            Err(PublishError::Refused(why)) => assert!(why.contains("OOM"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(everything(&mut admin).await, before);
        admin.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
        assert!(matches!(timed(&publisher, &event).await.0, Ok(Outcome::Published { .. })));
    }
    assert_eq!(log(&redis, &tenant("acorn")).await.len(), 2);
}

#[tokio::test]
async fn f15_flushall_or_a_lost_state_begins_an_epoch_without_the_old_log() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let publisher = unlimited(&redis.url()).await;
    let mut epochs = HashSet::new();
    for loss in [["FLUSHALL", "SYNC"], ["DEL", "dash:{acorn}:state"], ["PING", "no loss"]] {
        for seq in 1..=3 {
            let (result, _) = timed(&publisher, &payment()).await;
            assert_eq!(result, Ok(Outcome::Published { seq, receivers: 0 }));
        }
        let log = log(&redis, &acorn).await;
        assert_once_and_in_order(&log);
        assert_eq!(log.len(), 3);
        assert!(epochs.insert(log[0].epoch.clone()), "an epoch came back");
        redis.command(&loss).await;
    }
    redis.command(&["DEL", "dash:{acorn}:log"]).await;
    // A lost log alone ends no epoch: the numbers go on.
    assert_eq!(timed(&publisher, &payment()).await.0, Ok(Outcome::Published { seq: 4, receivers: 0 }));
}

#[tokio::test]
async fn f16_another_run_id_begins_an_epoch_and_keeps_the_bucket() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let publisher = publisher(&redis).await;
    assert_eq!(fill(&publisher, &acorn).await, 10);
    let before = log(&redis, &acorn).await;
    redis.command(&["HSET", "dash:{acorn}:state", "run", &"0".repeat(40)]).await;

    let (result, _) = timed(&publisher, &payment()).await;
    assert!(matches!(result, Ok(Outcome::Throttled { .. })), "the limit knows no epochs: {result:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(timed(&publisher, &payment()).await.0, Ok(Outcome::Published { seq: 1, receivers: 0 }));
    let after = log(&redis, &acorn).await;
    assert_eq!(after.len(), 1);
    assert_ne!(after[0].epoch, before[0].epoch);
}

/// The master fails over to a server that lacks its last two writes, and back. The tenant has no event in between, so that the run id
/// in its state is the master's own again.
#[tokio::test]
async fn f55_a_failover_and_a_failback_without_events_begin_an_epoch() {
    let (first, second) = (RedisServer::start().await, RedisServer::start().await);
    let acorn = tenant("acorn");
    let publisher = publisher(&first).await;
    second.follow(first.addr()).await;
    for _ in 0..3 {
        timed(&publisher, &payment()).await.0.unwrap();
    }
    eventually(Duration::from_secs(10), "the copy has three events", async || log(&second, &acorn).await.len() == 3)
        .await;
    second.promote().await;
    // These events are shown to dashboards, and lost.
    for _ in 0..2 {
        timed(&publisher, &payment()).await.0.unwrap();
    }
    let lost = log(&first, &acorn).await;
    assert_eq!(lost.len(), 5);
    first.follow(second.addr()).await;
    assert_eq!(log(&first, &acorn).await.len(), 3);
    first.promote().await;

    insist(&publisher, &payment()).await;
    let after = log(&first, &acorn).await;
    let last = after.last().expect("what was published just now");
    let twice = lost.iter().find(|before| (&before.epoch, before.seq) == (&last.epoch, last.seq));
    assert_eq!(twice, None, "one position names two events");
    assert_eq!((last.seq, after.len()), (1, 1), "a new epoch, and a log of its own");
}

#[tokio::test]
async fn f55_a_state_of_an_older_version_keeps_its_epoch() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let publisher = publisher(&redis).await;
    timed(&publisher, &payment()).await.0.unwrap();
    redis.command(&["HDEL", "dash:{acorn}:state", "replid"]).await;
    assert_eq!(timed(&publisher, &payment()).await.0, Ok(Outcome::Published { seq: 2, receivers: 0 }));
    assert_eq!(log(&redis, &acorn).await.len(), 2);
    assert_eq!(redis.command(&["HSTRLEN", "dash:{acorn}:state", "replid"]).await.integer(), 40);
}

#[tokio::test]
async fn f18_a_demoted_master_refuses_and_the_publisher_connects_again() {
    let redis = RedisServer::start().await;
    let publisher = publisher(&redis).await;
    let mut admin = redis.client().await;
    // A replica of a master that does not exist.
    admin.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    assert_eq!(timed(&publisher, &payment()).await.0, Err(PublishError::Unavailable));
    admin.command(&["REPLICAOF", "NO", "ONE"]).await;
    eventually(Duration::from_secs(5), "published again", async || timed(&publisher, &payment()).await.0.is_ok()).await;
}

#[tokio::test]
async fn f20_a_missing_right_refuses_an_event_as_a_whole() {
    let redis = RedisServer::start().await;
    let mut admin = redis.client().await;
    admin.command(&["ACL", "SETUSER", "billing", "on", ">secret", "~*", "+@all", "resetchannels"]).await;
    let url = redis.url().replace("redis://", "redis://billing:secret@");
    let publisher = unlimited(&url).await;
    for _ in 0..3 {
        match timed(&publisher, &payment()).await.0 {
            Err(PublishError::Refused(why)) => assert!(why.contains("NOPERM"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(log(&redis, &tenant("acorn")).await.is_empty());
    admin.command(&["ACL", "SETUSER", "billing", "&dash:*"]).await;
    assert_eq!(timed(&publisher, &payment()).await.0, Ok(Outcome::Published { seq: 1, receivers: 0 }));
}

#[tokio::test]
async fn f20_a_wrong_password_heals_when_it_becomes_right() {
    let redis = RedisServer::start().await;
    let mut admin = redis.client().await;
    admin.command(&["CONFIG", "SET", "requirepass", "right"]).await;
    admin.command(&["AUTH", "right"]).await;
    let publisher = unlimited(&redis.url().replace("redis://", "redis://:wrong@")).await;
    assert_eq!(timed(&publisher, &payment()).await.0, Err(PublishError::Unavailable));
    admin.command(&["CONFIG", "SET", "requirepass", "wrong"]).await;
    eventually(Duration::from_secs(5), "published", async || timed(&publisher, &payment()).await.0.is_ok()).await;
}

#[tokio::test]
async fn calls_beyond_the_configured_number_are_refused_at_once() {
    let redis = RedisServer::start().await;
    let mut config = PublisherConfig::new(redis.url());
    (config.max_in_flight, config.events_per_second) = (5, 1000);
    let publisher = Publisher::connect(config).await.unwrap();
    redis.freeze();
    let mut calls = JoinSet::new();
    for _ in 0..50 {
        let publisher = publisher.clone();
        calls.spawn(async move { timed(&publisher, &payment()).await });
    }
    let results = calls.join_all().await;
    let overloaded = results.iter().filter(|(result, _)| *result == Err(PublishError::Overloaded)).count();
    assert!(overloaded >= 40, "{overloaded}");
    redis.thaw();
}
