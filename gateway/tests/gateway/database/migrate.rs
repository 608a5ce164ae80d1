//! `gateway migrate`: each migration is applied once, however often and by however many it is run.

use std::time::Duration;

use crate::harness::{Gateway, PostgresServer};

fn database_url(url: &str) -> [(String, String); 1] {
    [("DATABASE_URL".to_owned(), url.to_owned())]
}

#[tokio::test]
async fn twice_and_many_at_once_are_harmless() {
    let database = PostgresServer::shared().await.empty_database().await;
    let environment = database_url(&database.url);
    let migrations = (0..4).map(|_| Gateway::run(&["migrate", "--reference"], &environment));
    for (status, log) in futures::future::join_all(migrations).await {
        assert!(status.success(), "{}", log.text());
    }
    let (status, log) = Gateway::run(&["migrate"], &environment).await;
    assert!(status.success() && log.text().contains("up to date"), "{}", log.text());
    assert!(!log.text().contains("applied"), "{}", log.text());

    // Prisma owns the rest of the database: nothing of ours may be there.
    let outside: Vec<String> = {
        let query = "select schemaname || '.' || tablename from pg_tables
            where schemaname not in ('pg_catalog', 'information_schema', 'dashboard', 'billing')";
        sqlx::query_scalar(query).fetch_all(&mut database.client().await).await.unwrap()
    };
    assert_eq!(outside, Vec::<String>::new());
    assert_eq!(database.value::<i64>("select count(*) from dashboard.relay").await, 1);
}

#[tokio::test]
async fn up_to_date_is_said_only_when_it_was_and_else_what_was_applied() {
    let database = PostgresServer::shared().await.empty_database().await;
    let environment = database_url(&database.url);
    for (arguments, ours, reference) in [
        (&["migrate"][..], "applied 0001 outbox, 0002 emit, ", ""),
        (&["migrate", "--reference"], "up to date", "applied 0001 billing, "),
        (&["migrate", "--reference"], "up to date", "up to date"),
    ] {
        let (status, log) = Gateway::run(arguments, &environment).await;
        assert!(status.success(), "{}", log.text());
        let lines = log.lines();
        assert!(lines[0].starts_with(&format!("schema dashboard: {ours}")), "{lines:#?}");
        assert!(lines.get(1).is_none_or(|line| !reference.is_empty() && line.contains(reference)), "{lines:#?}");
    }
}

#[tokio::test]
async fn a_right_to_create_that_is_missing_is_named_once_with_its_grant() {
    let database = PostgresServer::shared().await.empty_database().await;
    let (login, url) = database.login("owner").await;
    let (name, environment) = (&database.name, database_url(&url));
    let refused = async |arguments: &[&str], grant: &str| {
        let (status, log) = Gateway::run(arguments, &environment).await;
        let (lines, text) = (log.lines(), log.text());
        assert_eq!(status.code(), Some(2), "{text}");
        assert_eq!(lines.iter().filter(|line| line.contains(grant)).count(), 1, "{text}");
        assert_eq!(text.matches(grant).count(), 1, "{text}");
        assert!(
            !lines.iter().any(|line| line.starts_with("schema dashboard: up to date")) || arguments.len() > 1,
            "{text}"
        );
    };
    refused(&["migrate"], &format!("grant create on database {name} to {login}")).await;
    database
        .run(&format!("create schema dashboard authorization postgres; grant usage on schema dashboard to {login}"))
        .await;
    refused(&["migrate"], &format!("grant create on schema dashboard to {login}")).await;
    // What the line says is what was missing.
    database.run(&format!("grant create on schema dashboard to {login}")).await;
    let (status, log) = Gateway::run(&["migrate"], &environment).await;
    assert!(status.success(), "{}", log.text());
    refused(&["migrate", "--reference"], &format!("grant create on database {name} to {login}")).await;

    // Another login than the one that has created everything.
    let (other, url) = database.login("other").await;
    database
        .run(&format!(
            "grant usage, create on schema dashboard to {other};
             grant select, insert, update on dashboard._sqlx_migrations to {other};
             delete from dashboard._sqlx_migrations where version = 4; alter table dashboard.relay drop column lock_key"
        ))
        .await;
    let (status, log) = Gateway::run(&["migrate"], &database_url(&url)).await;
    let text = log.text();
    assert!(status.code() == Some(2) && log.lines().len() == 1, "{text}");
    assert_eq!(text.matches("must be owner of table relay").count(), 1, "{text}");
}

#[tokio::test]
async fn without_reference_there_are_no_tables_of_billing() {
    let database = PostgresServer::shared().await.empty_database().await;
    let (status, log) = Gateway::run(&["migrate"], &database_url(&database.url)).await;
    assert!(status.success(), "{}", log.text());
    assert_eq!(database.value::<Option<String>>("select to_regclass('dashboard.metrics')::text").await, None);
    assert!(database.value::<Option<String>>("select to_regclass('dashboard.outbox')::text").await.is_some());
}

#[tokio::test]
async fn everything_that_is_documented_for_others_is_documented_in_the_database() {
    let database = PostgresServer::shared().await.database().await;
    let silent: Vec<String> = {
        let query = "select attrelid::regclass || '.' || attname from pg_attribute
            join pg_class on pg_class.oid = attrelid
            where relnamespace in ('dashboard'::regnamespace, 'billing'::regnamespace) and relkind in ('r', 'v')
              and relname not like '\\_sqlx%' and attnum > 0 and not attisdropped
              and col_description(attrelid, attnum) is null";
        sqlx::query_scalar(query).fetch_all(&mut database.client().await).await.unwrap()
    };
    assert_eq!(silent, Vec::<String>::new(), "columns without a comment");
}

#[tokio::test]
async fn what_is_missing_is_said_in_one_line() {
    let (status, log) = Gateway::run(&["migrate"], &[]).await;
    assert_eq!(status.code(), Some(2));
    assert!(log.text().starts_with("gateway: DATABASE_URL: "), "{}", log.text());

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let environment = database_url(&format!("postgres://postgres@{nobody}/x"));
    let migration = Gateway::run(&["migrate"], &environment);
    let (status, log) = crate::harness::within("an end", Duration::from_secs(8), migration).await;
    assert!(!status.success() && log.lines().len() == 1, "{}", log.text());
}
