//! `gateway migrate`: applied once, whoever asks and how often.

use std::time::Duration;

use super::harness::{Gateway, PostgresServer};

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
    let (status, log) = super::harness::within("an end", Duration::from_secs(8), migration).await;
    assert!(!status.success() && log.lines().len() == 1, "{}", log.text());
}
