//! Who may lead the relay, and who may keep others from it (B69).

use std::time::Duration;

use sqlx::{Connection, PgConnection};

use crate::harness::books::emit;
use crate::harness::{Dashboard, Database, Gateway, PostgresServer, Setup, Token, eventually, payment, tenant, within};
use publisher::{TenantId, outbox};

/// The lock of every version.
const LOCK: i64 = 0x6372_6563_6865_5245;

async fn take(thief: &mut PgConnection, how: &str, lock: i64) {
    let statement = sqlx::AssertSqlSafe(format!("select {how}($1)"));
    sqlx::query(statement).bind(lock).execute(thief).await.unwrap();
}

async fn lock_that_counts(database: &Database) -> i64 {
    database.value("select lock_key from dashboard.relay").await
}

async fn leader(gateways: &[Gateway]) -> usize {
    eventually("one leads", Duration::from_secs(15), async || {
        for (index, gateway) in gateways.iter().enumerate() {
            if gateway.metric("relay_leader", &[]).await == 1.0 {
                return Some(index);
            }
        }
        None
    })
    .await
}

async fn arrives(dashboard: &mut Dashboard, database: &Database, tenant: &TenantId, number: u32) {
    let id = emit(&mut database.client().await, tenant, number).await;
    let shown = within("the event", Duration::from_secs(10), dashboard.until_event()).await;
    assert_eq!(shown.id, Some(id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b69_a_login_that_takes_the_relays_lock_stops_nothing() {
    let database = PostgresServer::shared().await.database().await;
    let (login, url) = database.login("thief").await;
    let mut thieves = Vec::new();
    for _ in 0..2 {
        // Shared, so that several hold it at once.
        let mut thief = PgConnection::connect(&url).await.unwrap();
        take(&mut thief, "pg_advisory_lock_shared", LOCK).await;
        thieves.push(thief);
    }
    let mut stack = Setup::new().gateways(3).database(&database).start().await;
    let acorn = tenant();
    let first = leader(&stack.gateways).await;
    let counts = lock_that_counts(&database).await;
    assert_ne!(counts, LOCK, "another lock counts");
    let said = stack.gateways.iter().flat_map(|gateway| gateway.log().lines()).filter(|line| line.contains(&login));
    assert!(said.count() >= 1, "the log names the login");
    let mut dashboard =
        Dashboard::joined(stack.gateways[(first + 1) % 3].public, acorn.as_str(), &Token::of(acorn.as_str()).sign())
            .await;
    arrives(&mut dashboard, &database, &acorn, 1).await;

    // A thief that waits in the lock's queue has it in the moment in which the leader dies.
    let mut queued = PgConnection::connect(&url).await.unwrap();
    let stolen = tokio::spawn(async move {
        take(&mut queued, "pg_advisory_lock", counts).await;
        queued
    });
    eventually("the thief waits", Duration::from_secs(5), async || {
        database
            .value::<bool>("select exists (select from pg_locks where locktype = 'advisory' and not granted)")
            .await
            .then_some(())
    })
    .await;
    stack.gateways[first].kill9();
    stack.gateways.remove(first);
    let thief = within("the theft", Duration::from_secs(10), stolen).await.unwrap();
    leader(&stack.gateways).await;
    let now = lock_that_counts(&database).await;
    assert!(now != LOCK && now != counts, "a third lock counts");
    arrives(&mut dashboard, &database, &acorn, 2).await;
    drop((thieves, thief));
    dashboard.close().await;
    stack.finish().await;
}

/// As a leader of an earlier version does: it holds the lock, and says nothing else. Its right may be that of a role that it can become.
#[tokio::test]
async fn b69_a_leader_of_an_earlier_version_is_waited_for() {
    let database = PostgresServer::shared().await.database().await;
    let (login, url) = database.login("relay").await;
    let (role, _) = database.login("dashboards").await;
    database
        .run(&format!(
            "grant update on dashboard.relay to {role}; alter role {login} noinherit; grant {role} to {login}"
        ))
        .await;
    let mut earlier = PgConnection::connect(&url).await.unwrap();
    take(&mut earlier, "pg_advisory_lock", LOCK).await;
    let stack = Setup::new().database(&database).start().await;
    eventually("it stands by", Duration::from_secs(10), async || {
        let standing = "select exists (select from pg_stat_activity where datname = current_database()
            and application_name = 'crechebooks-relay' and backend_start < now() - interval '2.5 seconds')";
        database.value::<bool>(standing).await.then_some(())
    })
    .await;
    assert_eq!(stack.gateway().metric("relay_leader", &[]).await, 0.0);
    assert_eq!(database.value::<i64>("select term from dashboard.relay").await, 0);
    earlier.close().await.unwrap();
    leader(&stack.gateways).await;
    assert_eq!(lock_that_counts(&database).await, LOCK, "the same lock for old and new");
    stack.finish().await;
}

#[tokio::test]
async fn b69_the_relay_leads_before_the_migration_too() {
    let database = PostgresServer::shared().await.database().await;
    database.run("alter table dashboard.relay drop column lock_key").await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    arrives(&mut dashboard, &database, &acorn, 1).await;
    let held = format!(
        "select exists (select from pg_locks where locktype = 'advisory' and granted
            and database = (select oid from pg_database where datname = current_database())
            and (classid::bigint << 32) + objid::bigint = {LOCK})"
    );
    assert!(database.value::<bool>(&held).await, "the lock that earlier versions know");
    dashboard.close().await;
    stack.finish().await;
}

/// An id is a word for one event of one tenant. It is chosen by `record` alone; `emit`, which is all that an emitter needs, makes it.
#[tokio::test]
async fn b69_an_emitter_cannot_choose_ids_and_no_tenants_id_is_anothers() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let (acorn, hazel) = (tenant(), tenant());
    let mut dashboards = [stack.dashboard(&acorn).await, stack.dashboard(&hazel).await];

    let (login, url) = database.login("billing").await;
    database.run(&format!("grant execute on function dashboard.emit(text, text, jsonb) to {login}")).await;
    let mut emitter = PgConnection::connect(&url).await.unwrap();
    let event = payment();
    let refused = outbox::record(&mut emitter, &acorn, &event).await.unwrap_err().to_string();
    assert!(refused.contains("permission denied for function record"), "{refused}");

    // A login that may record, and has learnt an id, suppresses nothing of another tenant.
    let mut recorder = database.client().await;
    for tenant in [&acorn, &hazel] {
        outbox::record(&mut recorder, tenant, &event).await.unwrap();
    }
    for dashboard in &mut dashboards {
        assert_eq!(dashboard.until_event().await.id.as_deref(), Some(event.id.as_str()));
    }
    arrives(&mut dashboards[1], &database, &hazel, 2).await;
    let [first, second] = dashboards;
    first.close().await;
    second.close().await;
    stack.finish().await;
}
