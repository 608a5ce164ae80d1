//! The relay, with everything around it breaking: exactly once, in order, and by itself again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use publisher::TenantId;
use tokio::sync::Notify;

use crate::harness::books::{emit, emit_all, fates, try_emit};
use crate::harness::follower::judge;
use crate::harness::oracle::Receipt;
use crate::harness::postgres::WAL_SEGMENT;
use crate::harness::proxy::{Direction, Fate, Proxy};
use crate::harness::redis::RedisServer;
use crate::harness::{
    Dashboard, Database, Follower, Gateway, Oracle, PostgresServer, Sentinels, Setup, Stack, Traffic, eventually,
    payment, tenant, tenants, within,
};

/// The next events are these, in this order, and no others.
async fn receives(dashboard: &mut Dashboard, ids: &[String]) {
    for id in ids {
        let event = dashboard.until_event().await;
        assert_eq!(event.id.as_ref(), Some(id), "{}", event.raw);
    }
}

async fn leader_among(gateways: &[&Gateway]) -> usize {
    eventually("exactly one leads", Duration::from_secs(15), async || {
        let mut leaders = Vec::new();
        for (index, gateway) in gateways.iter().enumerate() {
            if gateway.metric("relay_leader", &[]).await == 1.0 {
                leaders.push(index);
            }
        }
        (leaders.len() == 1).then(|| leaders[0])
    })
    .await
}

/// What became of the stream's payments on the follower's socket: all of them, once, in the order of their commits.
async fn complete(follower: Follower, committed: &[Receipt]) {
    let committed: Vec<&str> = committed.iter().map(|receipt| receipt.id.as_str()).collect();
    let last = committed.last().expect("payments were emitted");
    eventually("the last payment has arrived", Duration::from_secs(30), async || {
        follower.ledger().has(last).then_some(())
    })
    .await;
    let ledger = follower.stop().await;
    Oracle::default().judge("the follower", &ledger);
    let seen: Vec<&str> = ledger.ids().filter(|id| committed.contains(id)).collect();
    assert_eq!(seen, committed);
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Redis,
    Postgres,
}

/// The leader is killed when the `step`-th message has come this far, counted from the commit of three payments: the message is lost
/// with it.
async fn killed_at(step: usize, side: Side, direction: Direction) -> bool {
    let database = PostgresServer::shared().await.database().await;
    let redis = RedisServer::start().await;
    // Counts down from the moment it is armed; at zero everything stops, as it does when a process dies.
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let reached = Arc::new(Notify::new());
    let (count, reach) = (left.clone(), reached.clone());
    let rule = move |seen: Direction, counts: bool| {
        if count.load(Ordering::SeqCst) == 0 {
            return Fate::Swallow;
        }
        if seen != direction || !counts || count.load(Ordering::SeqCst) == usize::MAX {
            return Fate::Pass;
        }
        if count.fetch_sub(1, Ordering::SeqCst) == 1 {
            reach.notify_one();
            return Fate::Swallow;
        }
        Fate::Pass
    };
    let mut setup = Setup::new().gateways(0).database(&database);
    let proxy = match side {
        Side::Redis => {
            let publishes =
                |frame: &crate::harness::resp::Reply| frame.texts().iter().any(|text| text.contains("EVAL"));
            // A reply can't be told from another; questions can.
            let counts = move |seen, frame: &_| seen == Direction::ToClient || publishes(frame);
            Proxy::of_redis(redis.addr(), move |seen, frame| rule(seen, counts(seen, frame))).await
        }
        Side::Postgres => Proxy::of_chunks(database.addr, move |seen| rule(seen, true)).await,
    };
    let doomed = match side {
        Side::Redis => setup.clone().through(proxy.addr()),
        Side::Postgres => setup.clone().env("DATABASE_URL", &database.url_through(proxy.addr())),
    };
    setup = setup.clone();
    let mut stack = setup.start_on(Some(redis)).await;
    let mut environment = doomed.environment().to_vec();
    let redis_url = match side {
        Side::Redis => format!("redis://{}", proxy.addr()),
        Side::Postgres => stack.redis().url(),
    };
    environment.push(("REDIS_URL".to_owned(), redis_url));
    environment.push(("REDIS_PREFIX".to_owned(), stack.prefix.clone()));
    let mut leader = Gateway::start(&environment).await;
    leader.metric_becomes("relay_leader", &[], 1.0).await;
    stack.add_gateway().await;

    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    left.store(step, Ordering::SeqCst);
    let ids = emit_all(&database, &acorn, 1..4).await;
    let killed = tokio::time::timeout(Duration::from_secs(5), reached.notified()).await.is_ok();
    leader.kill9();
    receives(&mut dashboard, &ids).await;
    let marker = emit(&mut database.client().await, &acorn, 4).await;
    assert_eq!(dashboard.until_event().await.id, Some(marker), "step {step} of {side:?} {direction:?}");
    eventually("every row is marked", Duration::from_secs(5), async || {
        (fates(&database, &acorn).await == BTreeMap::from([("published".to_owned(), 4)])).then_some(())
    })
    .await;
    dashboard.close().await;
    stack.finish().await;
    killed
}

async fn killed_at_every_step(side: Side, direction: Direction) {
    // Far more than three payments take; from some step on, nothing is left to kill it at.
    let mut reached = 0;
    for portion in (1..=12).collect::<Vec<_>>().chunks(4) {
        let killed = futures::future::join_all(portion.iter().map(|step| killed_at(*step, side, direction))).await;
        reached += killed.iter().filter(|killed| **killed).count();
    }
    assert!(reached >= 3, "only {reached} steps were reached");
}

#[tokio::test]
async fn f34_killed_before_any_publish_arrives() {
    killed_at_every_step(Side::Redis, Direction::ToServer).await;
}

#[tokio::test]
async fn f34_killed_before_any_reply_of_redis_arrives() {
    killed_at_every_step(Side::Redis, Direction::ToClient).await;
}

#[tokio::test]
async fn f34_killed_before_any_fetch_or_mark_arrives() {
    killed_at_every_step(Side::Postgres, Direction::ToServer).await;
}

#[tokio::test]
async fn f34_killed_before_any_answer_of_postgres_arrives() {
    killed_at_every_step(Side::Postgres, Direction::ToClient).await;
}

/// Three gateways on one database; the follower sits on the last.
async fn cluster(database: &Database) -> (Stack, TenantId) {
    (one_by_one().gateways(3).database(database).start().await, tenant())
}

/// Every row arrives under its own id, however long the outage was.
fn one_by_one() -> Setup {
    Setup::new().env("OUTBOX_CONDENSE_AFTER", "1000")
}

#[tokio::test]
async fn f35_a_frozen_leader_is_succeeded_and_wakes_up_harmless() {
    let database = PostgresServer::shared().await.database().await;
    let (mut stack, acorn) = cluster(&database).await;
    let leader = leader_among(&stack.gateways.iter().collect::<Vec<_>>()).await;
    let others: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    let follower = Follower::start(&[stack.gateways[others[0]].public], &acorn).await;
    let streaming = Traffic::into_outbox(&database, std::slice::from_ref(&acorn), 7);
    eventually("payments arrive", Duration::from_secs(10), async || {
        (follower.ledger().ids().count() > 5).then_some(())
    })
    .await;

    stack.gateways[leader].freeze();
    // Its session is the lock's lease: it ends without a word for five seconds.
    let running: Vec<&Gateway> = others.iter().map(|index| &stack.gateways[*index]).collect();
    leader_among(&running).await;
    let at_succession = follower.ledger().ids().count();
    eventually("payments arrive again", Duration::from_secs(10), async || {
        (follower.ledger().ids().count() > at_succession + 5).then_some(())
    })
    .await;
    stack.gateways[leader].thaw();
    let all: Vec<&Gateway> = stack.gateways.iter().collect();
    eventually("the sleeper knows", Duration::from_secs(10), async || {
        (stack.gateways[leader].metric("relay_leader", &[]).await == 0.0).then_some(())
    })
    .await;
    leader_among(&all).await;
    complete(follower, &streaming.stop().await).await;
    stack.gateways[leader].assert_unharmed();
}

#[tokio::test]
async fn two_relays_have_one_leader_and_a_dead_one_is_succeeded() {
    let database = PostgresServer::shared().await.database().await;
    let (mut stack, acorn) = cluster(&database).await;
    let first = leader_among(&stack.gateways.iter().collect::<Vec<_>>()).await;
    let rest: Vec<usize> = (0..3).filter(|index| *index != first).collect();
    let mut client = database.client().await;

    // SIGKILL: the kernel closes its session.
    stack.gateways[first].kill9();
    let survivors: Vec<&Gateway> = rest.iter().map(|index| &stack.gateways[*index]).collect();
    let second = rest[leader_among(&survivors).await];
    let last = *rest.iter().find(|index| **index != second).unwrap();
    let mut dashboard = Dashboard::joined(
        stack.gateways[last].public,
        acorn.as_str(),
        &crate::harness::Token::of(acorn.as_str()).sign(),
    )
    .await;
    let id = emit(&mut client, &acorn, 1).await;
    receives(&mut dashboard, &[id]).await;

    // SIGTERM: it hands over.
    stack.gateways[second].terminate();
    let (status, _) = stack.gateways[second].exit(Duration::from_secs(6)).await;
    assert!(status.success());
    let id = emit(&mut client, &acorn, 2).await;
    receives(&mut dashboard, &[id]).await;
    stack.gateways[last].metric_becomes("relay_leader", &[], 1.0).await;
    dashboard.close().await;
}

#[tokio::test]
async fn f37_without_any_notification_rows_are_found_within_a_second() {
    let database = PostgresServer::shared().await.database().await;
    database.run("alter table dashboard.outbox disable trigger wake").await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    let mut client = database.client().await;
    for number in 0..3 {
        let id = emit(&mut client, &acorn, number).await;
        within("the promise without NOTIFY", Duration::from_secs(1), receives(&mut dashboard, &[id])).await;
    }
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f37_sessions_that_are_terminated_come_back() {
    let database = PostgresServer::shared().await.database().await;
    let stack = one_by_one().database(&database).start().await;
    let acorn = tenant();
    let follower = Follower::start(&stack.addrs(), &acorn).await;
    let streaming = Traffic::into_outbox(&database, std::slice::from_ref(&acorn), 7);
    for _ in 0..3 {
        let before = follower.ledger().ids().count();
        eventually("payments arrive", Duration::from_secs(10), async || {
            (follower.ledger().ids().count() > before + 3).then_some(())
        })
        .await;
        let terminate = "select count(pg_terminate_backend(pid)) from pg_stat_activity
            where datname = current_database() and application_name like 'crechebooks%'";
        assert!(database.value::<i64>(terminate).await > 0);
    }
    complete(follower, &streaming.stop().await).await;
    stack.finish().await;
}

#[tokio::test]
async fn f44_redis_killed_for_a_minute_during_a_stream_of_payments() {
    let database = PostgresServer::shared().await.database().await;
    let redis = RedisServer::start_durable().await;
    let mut stack = one_by_one().gateways(2).database(&database).start_on(Some(redis)).await;
    let acorn = tenant();
    let follower = Follower::start(&stack.addrs(), &acorn).await;
    let streaming = Traffic::into_outbox(&database, std::slice::from_ref(&acorn), 2);
    eventually("payments arrive", Duration::from_secs(10), async || {
        (follower.ledger().ids().count() > 5).then_some(())
    })
    .await;
    // The gateways hand the lead round meanwhile; only the one that leads measures.
    let lag = async |stack: &Stack| {
        let lags = stack.gateways.iter().map(|gateway| gateway.metric("relay_lag_seconds", &[]));
        futures::future::join_all(lags).await.into_iter().fold(0.0, f64::max)
    };
    stack.redis_mut().kill9();
    tokio::time::sleep(Duration::from_secs(60)).await;
    eventually("the lag shows", Duration::from_secs(10), async || (lag(&stack).await > 50.0).then_some(())).await;
    stack.redis_mut().restart().await;
    let back = Instant::now();
    eventually("the backlog is gone", Duration::from_secs(40), async || {
        let leaders = stack.gateways.iter().map(|gateway| gateway.metric("relay_leader", &[]));
        let leads = futures::future::join_all(leaders).await.contains(&1.0);
        (leads && lag(&stack).await < 1.0).then_some(())
    })
    .await;
    println!("the backlog of a minute was gone {:?} after Redis was back", back.elapsed());
    let committed: Vec<String> = streaming.stop().await.into_iter().map(|receipt| receipt.id).collect();
    eventually("every row is published", Duration::from_secs(10), async || {
        (fates(&database, &acorn).await == BTreeMap::from([("published".to_owned(), committed.len() as i64)]))
            .then_some(())
    })
    .await;
    let last = committed.last().expect("payments were emitted");
    eventually("the last payment has arrived", Duration::from_secs(10), async || {
        follower.ledger().has(last).then_some(())
    })
    .await;
    let ledger = follower.stop().await;
    Oracle::default().judge("the follower", &ledger);
    // The restart began a new epoch. What was published in it before the gateway was back is told as a resync, with a snapshot.
    let seen: Vec<&str> = ledger.ids().collect();
    let missing = committed.iter().filter(|id| !seen.contains(&id.as_str())).count();
    assert!(missing == 0 || ledger.resyncs() > 0, "{missing} payments are missing, and nobody was told");
    let in_order: Vec<&str> = committed.iter().map(String::as_str).filter(|id| seen.contains(id)).collect();
    assert_eq!(seen, in_order);
    stack.finish().await;
}

/// The leader of three gateways loses Redis in this way, and nobody else does: another one leads.
async fn f44_leader_cut_off(lose: impl AsyncFnOnce(&Proxy), find: impl AsyncFnOnce(&Proxy, &Stack)) {
    let database = PostgresServer::shared().await.database().await;
    let redis = RedisServer::start().await;
    let way = Proxy::to(redis.addr()).await;
    let setup = one_by_one().gateways(0).database(&database);
    let mut environment = setup.environment().to_vec();
    let mut stack = setup.start_on(Some(redis)).await;
    environment.push(("REDIS_URL".to_owned(), format!("redis://{}", way.addr())));
    environment.push(("REDIS_PREFIX".to_owned(), stack.prefix.clone()));
    let mut leader = Gateway::start(&environment).await;
    leader.metric_becomes("relay_leader", &[], 1.0).await;
    stack.add_gateway().await;
    stack.add_gateway().await;
    let acorn = tenant();
    let follower = Follower::start(&stack.addrs(), &acorn).await;
    let streaming = Traffic::into_outbox(&database, std::slice::from_ref(&acorn), 4);
    let arrive = async |what: &str| {
        let before = follower.ledger().ids().count();
        let begun = Instant::now();
        eventually(what, Duration::from_secs(20), async || {
            (follower.ledger().ids().count() > before + 5).then_some(())
        })
        .await;
        begun.elapsed()
    };
    arrive("payments arrive").await;

    lose(&way).await;
    let lost = Instant::now();
    arrive("payments arrive while the leader is cut off").await;
    println!("five payments had arrived {:?} after the leader was cut off", lost.elapsed());
    while lost.elapsed() < Duration::from_secs(60) {
        arrive("payments go on arriving").await;
    }
    assert_eq!(leader.metric("relay_leader", &[]).await, 0.0);
    find(&way, &stack).await;
    arrive("payments arrive when the leader of before is back").await;
    complete(follower, &streaming.stop().await).await;
    leader.assert_unharmed();
    stack.finish().await;
}

#[tokio::test]
async fn f44_a_leader_whose_way_to_redis_is_a_black_hole_is_succeeded() {
    f44_leader_cut_off(async |way| way.freeze(), async |way, _| way.thaw()).await;
}

#[tokio::test]
async fn f44_a_leader_that_redis_refuses_to_know_is_succeeded() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    f44_leader_cut_off(async |way| way.retarget(nobody), async |way, stack| way.retarget(stack.redis().addr())).await;
}

/// A planned failover under traffic: the old master acknowledges rows for a while that the new one never gets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_rows_that_a_demoted_master_acknowledged_are_published_again() {
    let sentinels = Sentinels::start().await;
    let database = PostgresServer::shared().await.database().await;
    let setup = one_by_one().gateways(2).database(&database).redis_url(&sentinels.url());
    let stack = setup.start_on(None).await;
    let rooms = tenants(10);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let traffic = Traffic::into_outbox(&database, &rooms, 8);
    tokio::time::sleep(Duration::from_secs(2)).await;
    sentinels.fail_over().await;
    sentinels.master_becomes(1).await;
    // Until the old master is a replica, and for as long as rows are looked for.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let receipts = traffic.stop().await;
    let mut lost = Vec::new();
    for _ in 0..50 {
        lost.clear();
        let mut master = sentinels.servers[1].client().await;
        for Receipt { tenant, id, .. } in &receipts {
            let mark = format!("{}:{{{tenant}}}:once:{id}", stack.prefix);
            if master.command(&["EXISTS", &mark]).await.integer() == 0 {
                lost.push(id);
            }
        }
        if lost.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("{} of {} rows are not on the new master", lost.len(), receipts.len());
    assert!(lost.is_empty(), "{} of {} rows are on no server: {lost:?}", lost.len(), receipts.len());
    judge(followers, receipts).await;
    stack.finish().await;
}

#[tokio::test]
async fn a_tenant_that_redis_refuses_holds_up_nobody() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let (refused, other) = (tenant(), tenant());
    let mut dashboard = stack.dashboard(&other).await;
    stack.redis().command(&["SET", &stack.state_key(&refused), "not a hash"]).await;
    let waiting = emit(&mut database.client().await, &refused, 1).await;
    let ids = emit_all(&database, &other, 1..6).await;
    receives(&mut dashboard, &ids).await;
    assert_eq!(fates(&database, &refused).await, BTreeMap::from([("pending".to_owned(), 1)]));
    stack.redis().command(&["DEL", &stack.state_key(&refused)]).await;
    let mut of_refused = stack.dashboard(&refused).await;
    eventually("it is published when it can be", Duration::from_secs(10), async || {
        (fates(&database, &refused).await == BTreeMap::from([("published".to_owned(), 1)])).then_some(())
    })
    .await;
    let marker = emit(&mut database.client().await, &refused, 2).await;
    let mut event = of_refused.until_event().await;
    if event.id.as_ref() == Some(&waiting) {
        event = of_refused.until_event().await;
    }
    assert_eq!(event.id, Some(marker));
    dashboard.close().await;
    of_refused.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f33_postgres_killed_and_frozen_during_a_stream_of_payments() {
    let mut server = PostgresServer::start().await;
    let database = server.database().await;
    let mut stack = one_by_one().database(&database).start().await;
    let (acorn, direct) = (tenant(), tenant());
    let follower = Follower::start(&stack.addrs(), &acorn).await;
    let mut live = stack.dashboard(&direct).await;
    let streaming = Traffic::into_outbox(&database, std::slice::from_ref(&acorn), 7);
    let flows = async |follower: &Follower| {
        let before = follower.ledger().ids().count();
        eventually("payments arrive", Duration::from_secs(20), async || {
            (follower.ledger().ids().count() > before + 5).then_some(())
        })
        .await;
    };
    flows(&follower).await;

    server.kill9();
    for _ in 0..3 {
        // What needs no database goes on.
        let receipt = stack.publish(&direct, &payment()).await;
        assert_eq!(live.until_event().await.id, Some(receipt.id));
    }
    server.restart().await;
    flows(&follower).await;

    server.freeze();
    for _ in 0..3 {
        let receipt = stack.publish(&direct, &payment()).await;
        assert_eq!(live.until_event().await.id, Some(receipt.id));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    server.thaw();
    flows(&follower).await;
    let committed = streaming.stop().await;
    // A commit whose answer was lost is shown too; every one that was answered must be.
    complete(follower, &committed).await;
    live.close().await;
    stack.finish().await;
}

/// The disk is full for whatever must grow, which is the outbox: payments are refused, what had been committed is shown, and
/// not twice although its done mark can't be written.
#[tokio::test]
async fn f33_postgres_on_a_full_disk_refuses_payments_and_loses_none() {
    let server = PostgresServer::start().await;
    let database = server.database().await;
    let mut stack = one_by_one().database(&database).start().await;
    let (acorn, direct) = (tenant(), tenant());
    let follower = Follower::start(&stack.addrs(), &acorn).await;
    let mut live = stack.dashboard(&direct).await;
    stack.gateway().metric_becomes("relay_leader", &[], 1.0).await;

    stack.gateway().freeze();
    let committed = emit_all(&database, &acorn, 0..5).await;
    // Rows of yesterday: until the table is as large as it may be, and then smaller ones until no page has room for any.
    server.limit_file_size(Some(WAL_SEGMENT));
    let mut client = database.client().await;
    for (size, rows) in [(1500, 100), (200, 100), (1, 1)] {
        let fill = format!(
            "insert into dashboard.outbox (tenant_id, event_id, type, data, happened_at, relayed_at, fate)
             select 'yesterday', '', 'payment_received', jsonb_build_object('', repeat('x', {size})), now(), now(), 'published'
             from generate_series(1, {rows})"
        );
        let full = loop {
            if let Err(full) = sqlx::raw_sql(sqlx::AssertSqlSafe(fill.clone())).execute(&mut client).await {
                break full.to_string();
            }
        };
        assert!(full.contains("could not extend file"), "{full}");
    }
    let refused = try_emit(&mut client, &acorn, 5).await.unwrap_err().to_string();
    assert!(refused.contains("could not extend file"), "{refused}");

    stack.gateway().thaw();
    let shown = async |ids: &[String]| {
        eventually("what was committed is shown", Duration::from_secs(20), async || {
            ids.iter().all(|id| follower.ledger().has(id)).then_some(())
        })
        .await;
    };
    shown(&committed).await;
    for _ in 0..3 {
        let receipt = stack.publish(&direct, &payment()).await;
        assert_eq!(live.until_event().await.id, Some(receipt.id));
    }
    assert_eq!(fates(&database, &acorn).await, BTreeMap::from([("pending".to_owned(), 5)]));

    server.limit_file_size(None);
    let later = emit_all(&database, &acorn, 5..8).await;
    shown(&later).await;
    eventually("every row is marked", Duration::from_secs(20), async || {
        (fates(&database, &acorn).await == BTreeMap::from([("published".to_owned(), 8)])).then_some(())
    })
    .await;
    let ledger = follower.stop().await;
    Oracle::default().judge("the follower", &ledger);
    assert_eq!(ledger.ids().collect::<Vec<_>>(), [committed, later].concat());
    live.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn a_database_that_comes_up_late_is_found() {
    let mut server = PostgresServer::start().await;
    let database = server.database().await;
    server.stop().await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    server.restart().await;
    let ids = emit_all(&database, &acorn, 0..3).await;
    receives(&mut dashboard, &ids).await;
    dashboard.close().await;
    stack.finish().await;
}
