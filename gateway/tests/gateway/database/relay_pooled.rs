//! A pooler between the gateway and PostgreSQL (F61).

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row};

use crate::harness::books::{emit, emit_all, open_books, pay};
use crate::harness::pooler::Pooler;
use crate::harness::{Dashboard, Database, Gateway, PostgresServer, Setup, Token, eventually, tenant, tenants, within};

/// What the gateway could leave behind on a session that others use after it.
const SETTINGS: [&str; 6] = [
    "synchronous_commit",
    "statement_timeout",
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "tcp_keepalives_idle",
    "lock_timeout",
];

/// The settings of as many pooled sessions as there are, each held by a transaction of billing's.
async fn pooled_settings(pooler: &Pooler, database: &Database, sessions: usize) -> Vec<Vec<String>> {
    let mut clients = Vec::new();
    for _ in 0..sessions {
        let mut client = PgConnection::connect(&pooler.url(database)).await.unwrap();
        sqlx::raw_sql("begin").execute(&mut client).await.unwrap();
        clients.push(client);
    }
    let mut seen = Vec::new();
    for client in &mut clients {
        let mut settings: Vec<String> = Vec::new();
        for name in SETTINGS {
            let query = sqlx::AssertSqlSafe(format!("select current_setting('{name}')"));
            settings.push(sqlx::raw_sql(query).fetch_one(&mut *client).await.unwrap().get(0));
        }
        sqlx::raw_sql("commit").execute(&mut *client).await.unwrap();
        seen.push(settings);
    }
    seen
}

#[tokio::test]
async fn f61_behind_a_pooler_by_transaction_nobody_leads_and_no_setting_stays() {
    let database = PostgresServer::shared().await.database().await;
    let pooler = Pooler::start(&database, "transaction").await;
    let before = pooled_settings(&pooler, &database, 1).await.remove(0);
    let url = pooler.url(&database);
    let mut stack = Setup::new().gateways(2).env("DATABASE_URL", &url).start().await;
    for gateway in &stack.gateways {
        eventually("the pooler is named in one line", Duration::from_secs(20), async || {
            let lines = gateway.log().lines();
            let named = lines.iter().filter(|line| line.contains(&pooler.address()) && line.contains("pooler"));
            (named.count() == 1).then_some(())
        })
        .await;
    }
    // Long enough for many more attempts, and for billing to get every session that the relay has had.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for settings in pooled_settings(&pooler, &database, 12).await {
        assert_eq!(settings, before);
    }
    for gateway in &stack.gateways {
        assert_eq!(gateway.metric("relay_leader", &[]).await, 0.0);
    }

    // A gateway with a direct connection leads, and relays what was emitted through the pooler.
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    let ids = emit_all(&database, &acorn, 0..5).await;
    let mut environment = Setup::new().database(&database).environment().to_vec();
    environment.push(("REDIS_URL".to_owned(), stack.redis().url()));
    environment.push(("REDIS_PREFIX".to_owned(), stack.prefix.clone()));
    stack.gateways.push(Gateway::start(&environment).await);
    for id in &ids {
        assert_eq!(dashboard.until_event().await.id.as_ref(), Some(id));
    }
    dashboard.close().await;
    stack.finish().await;
}

/// Two sessions by turns: each of two clients that take turns as well always gets the same one.
#[tokio::test]
async fn f61_behind_a_pooler_that_lends_its_sessions_by_turns_nobody_leads() {
    let database = PostgresServer::shared().await.database().await;
    let pooler =
        Pooler::start_with(&database, "transaction", &["server_round_robin = 1", "default_pool_size = 2"]).await;
    let before = pooled_settings(&pooler, &database, 2).await;
    let stack = Setup::new().env("DATABASE_URL", &pooler.url(&database)).start().await;
    eventually("the pooler is named", Duration::from_secs(20), async || {
        let lines = stack.gateway().log().lines();
        lines.iter().any(|line| line.contains(&pooler.address()) && line.contains("pooler")).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(pooled_settings(&pooler, &database, 2).await, before);
    assert_eq!(database.value::<i64>("select term from dashboard.relay").await, 0, "nobody has led");
    stack.finish().await;
}

#[tokio::test]
async fn f47_behind_a_pooler_by_transaction_snapshots_come_and_no_setting_stays() {
    let database = PostgresServer::shared().await.database().await;
    let pooler = Pooler::start(&database, "transaction").await;
    let before = pooled_settings(&pooler, &database, 1).await.remove(0);
    let centres = tenants(20);
    for centre in &centres {
        open_books(&database, centre).await;
        pay(&mut database.client().await, centre, 1, 10).await;
    }
    let failing = tenant();
    open_books(&database, &failing).await;
    database
        .run(&format!(
            "alter view dashboard.metrics rename to metrics_well;
             create view dashboard.metrics as
                 select tenant_id, total_outstanding / (tenant_id <> '{failing}')::int as total_outstanding, total_arrears,
                     accounts_in_arrears, payments_today, amount_received_today, invoices_by_status
                 from dashboard.metrics_well"
        ))
        .await;
    let stack = Setup::new().env("DATABASE_URL", &pooler.url(&database)).start().await;
    for _ in 0..3 {
        let joins = centres.iter().chain([&failing]).map(|centre| async {
            let mut dashboard = Dashboard::open(stack.addr()).await;
            let mut told = dashboard.join(centre.as_str(), &Token::of(centre.as_str()).sign()).await;
            // What a busy database does not give in time follows.
            while told.data["payments"].is_null() || told.data["metrics"].is_null() && *centre != failing {
                told = dashboard.until("resync").await;
            }
            assert_eq!(told.data["metrics"].is_null(), *centre == failing, "{}", told.raw);
            dashboard.close().await;
        });
        futures::future::join_all(joins).await;
    }
    for settings in pooled_settings(&pooler, &database, 12).await {
        assert_eq!(settings, before);
    }
    stack.finish().await;
}

#[tokio::test]
async fn f61_behind_a_pooler_by_session_the_relay_works() {
    let database = PostgresServer::shared().await.database().await;
    let pooler = Pooler::start(&database, "session").await;
    let stack = Setup::new().env("DATABASE_URL", &pooler.url(&database)).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    for number in 0..3 {
        let id = emit(&mut database.client().await, &acorn, number).await;
        let shown = within("the event", Duration::from_secs(10), dashboard.until_event()).await;
        assert_eq!(shown.id, Some(id));
    }
    dashboard.close().await;
    stack.finish().await;
}

/// A crash of the database must not take a term back: Redis would refuse the leader that gets it a second time.
#[tokio::test]
async fn f61_a_term_is_written_before_it_is_used() {
    let mut server = PostgresServer::start().await;
    let database = server.database().await;
    database.run("checkpoint").await;
    server.freeze_wal_writer();
    let stack = Setup::new().database(&database).start().await;
    stack.gateway().metric_becomes("relay_leader", &[], 1.0).await;
    server.kill9_all();
    drop(stack);
    server.restart().await;
    assert!(database.value::<i64>("select term from dashboard.relay").await >= 1, "the term of the first leader");
}
