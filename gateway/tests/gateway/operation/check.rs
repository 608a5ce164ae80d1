//! `gateway check`: each set-up that would fail is found, in one line that says what to write instead.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::ports::free_port;
use crate::harness::process::scratch;
use crate::harness::redis::RedisServer;
use crate::harness::tls::self_signed;
use crate::harness::{Database, Gateway, PostgresServer, Setup, eventually, within};

/// What a failed check exits with: for what only another configuration mends, and for what may work later.
const FAULT: i32 = 2;
const UNREACHABLE: i32 = 1;

async fn check(setup: &Setup) -> (i32, Vec<String>) {
    let (status, log) = Gateway::run(&["check"], setup.environment()).await;
    (status.code().expect("no signal ended it"), log.lines())
}

/// The check fails with this code, and exactly one line has all of these words.
async fn finds(setup: &Setup, code: i32, words: &[&str]) {
    let (ended, lines) = check(setup).await;
    assert_eq!(ended, code, "{lines:#?}");
    let found = lines.iter().filter(|line| words.iter().all(|word| line.contains(word)));
    assert_eq!(found.count(), 1, "one line with {words:?}: {lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("hunter2")), "a password is told: {lines:#?}");
}

fn on(url: &str) -> Setup {
    Setup::new().memory().env("DATABASE_URL", url)
}

/// A database with billing tables as Prisma makes them by default, and views over them.
async fn prismas_database(received_at: &str) -> Database {
    let database = PostgresServer::shared().await.empty_database().await;
    let (status, log) = Gateway::run(&["migrate"], &[("DATABASE_URL".to_owned(), database.url.clone())]).await;
    assert!(status.success(), "{}", log.text());
    database
        .run(&format!(
            r#"create table "Payment" (id text primary key, "centreId" text not null, amount numeric(12,2) not null,
                   parent text not null, child text not null, invoice text not null,
                   "receivedAt" timestamp(3) not null default current_timestamp);
               create index "Payment_centreId" on "Payment" ("centreId");
               create view dashboard.recent_payments as select "centreId" as tenant_id, id as payment_id, amount,
                   parent as parent_name, child as child_name, invoice as invoice_number, {received_at} as received_at
                   from "Payment";
               create view dashboard.metrics as select "centreId" as tenant_id, sum(amount) as total_outstanding,
                   sum(amount) as total_arrears, count(*) as accounts_in_arrears, count(*) as payments_today,
                   sum(amount) as amount_received_today, '{{}}'::jsonb as invoices_by_status from "Payment" group by 1"#
        ))
        .await;
    database
}

const RIGHT: &str = r#""receivedAt" at time zone 'UTC'"#;

#[tokio::test]
async fn check_is_content_with_views_over_prismas_tables() {
    let database = prismas_database(RIGHT).await;
    let (code, lines) = check(&on(&database.url)).await;
    assert_eq!(code, 0, "{lines:#?}");
    assert!(
        lines.iter().any(|line| line.starts_with("postgres: answers, with the outbox and the views")),
        "{lines:#?}"
    );
}

#[tokio::test]
async fn check_names_columns_of_the_wrong_type_and_says_what_to_write() {
    let database = prismas_database(r#""receivedAt""#).await;
    let timestamp =
        r#"received_at is timestamp without time zone, must be timestamptz: "receivedAt" at time zone 'UTC'"#;
    finds(&on(&database.url), FAULT, &["postgres: dashboard.recent_payments: ", timestamp]).await;

    database
        .run(
            r#"drop view dashboard.metrics;
               create view dashboard.metrics as select gen_random_uuid() as tenant_id, 1::float8 as total_outstanding,
                   1::money as total_arrears, 1 as accounts_in_arrears, 1::numeric as payments_today, '{}'::text as invoices_by_status"#,
        )
        .await;
    for line in [
        r#"dashboard.metrics: tenant_id is uuid, must be text: "tenantId"::text"#,
        r#"total_outstanding is double precision, must be numeric(12,2): "totalOutstanding"::numeric(12,2)"#,
        "total_arrears is money, must be numeric(12,2)",
        "amount_received_today is missing, must be numeric(12,2)",
        r#"invoices_by_status is text, must be jsonb: "invoicesByStatus"::jsonb"#,
    ] {
        finds(&on(&database.url), FAULT, &[line]).await;
    }
    let (_, lines) = check(&on(&database.url)).await;
    assert!(!lines.iter().any(|line| line.contains("accounts_in_arrears") || line.contains("payments_today")));
}

#[tokio::test]
async fn check_names_each_right_that_is_missing_and_its_grant() {
    let database = PostgresServer::shared().await.database().await;
    let (login, url) = database.login("dashboards").await;
    let rights = [
        ("select", "dashboard.outbox"),
        ("insert", "dashboard.outbox"),
        ("update", "dashboard.outbox"),
        ("delete", "dashboard.outbox"),
        ("select", "dashboard.relay"),
        ("update", "dashboard.relay"),
        ("select", "dashboard.metrics"),
        ("select", "dashboard.recent_payments"),
    ];
    for (right, object) in rights {
        let grant = format!("write: grant {right} on {object} to {login}");
        finds(&on(&url), FAULT, &["postgres: ", &right.to_uppercase(), object, &grant]).await;
    }
    // What the lines say is what was missing.
    for (right, object) in rights {
        database.run(&format!("grant {right} on {object} to {login}")).await;
    }
    let (code, lines) = check(&on(&url)).await;
    assert_eq!(code, 0, "{lines:#?}");
    database.run("revoke usage on schema dashboard from public").await;
    finds(&on(&url), FAULT, &[&format!("write: grant usage on schema dashboard to {login}")]).await;
}

#[tokio::test]
async fn check_names_tables_that_no_index_serves_for_one_tenant() {
    let database = prismas_database(RIGHT).await;
    let setup = on(&database.url);
    database.run(r#"drop index "Payment_centreId""#).await;
    for view in ["metrics", "recent_payments"] {
        let words = [&format!("dashboard.{view} "), r#"write: create index on public."Payment" ("centreId")"#];
        finds(&setup, FAULT, &words.map(|word: &str| word)).await;
    }
    // An index that is good for the order alone reads the payments of all tenants.
    database.run(r#"create index on "Payment" ("receivedAt")"#).await;
    finds(&setup, FAULT, &["dashboard.recent_payments ", r#"("centreId")"#]).await;
    // What the line says is what was missing.
    database.run(r#"create index on public."Payment" ("centreId")"#).await;
    let (code, lines) = check(&setup).await;
    assert_eq!(code, 0, "{lines:#?}");

    // By way of another table, and of a uuid as text.
    database
        .run(
            r#"create table "Account" (id uuid primary key, "centreId" uuid not null);
               create table "Debt" ("accountId" uuid not null, amount numeric(12,2) not null);
               drop view dashboard.metrics;
               create view dashboard.metrics as select "centreId"::text as tenant_id, sum(amount) as total_outstanding,
                   sum(amount) as total_arrears, count(*) as accounts_in_arrears, count(*) as payments_today,
                   sum(amount) as amount_received_today, '{}'::jsonb as invoices_by_status
                   from "Account" join "Debt" on "accountId" = "Account".id group by 1"#,
        )
        .await;
    finds(&setup, FAULT, &["dashboard.metrics ", r#"create index on public."Account" (("centreId"::text))"#]).await;
    finds(&setup, FAULT, &["dashboard.metrics ", r#"create index on public."Debt" ("accountId")"#]).await;
    database
        .run(r#"create index on public."Account" (("centreId"::text)); create index on public."Debt" ("accountId")"#)
        .await;
    let (code, lines) = check(&setup).await;
    assert_eq!(code, 0, "{lines:#?}");
}

#[tokio::test]
async fn check_names_who_has_a_port() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let by = format!("(pid {})", std::process::id());
    for variable in ["LISTEN", "INTERNAL_LISTEN"] {
        let setup = Setup::new().memory().env(variable, &taken);
        finds(&setup, FAULT, &[&format!("{variable}={taken}: in use by "), &by, "write another port"]).await;
        let (status, log) = Gateway::run(&["serve"], setup.environment()).await;
        assert!(status.code() == Some(2) && log.text().contains(&by), "{}", log.text());
    }
}

#[tokio::test]
async fn check_names_what_a_password_must_be_written_as() {
    for (variable, url, instead) in [
        ("DATABASE_URL", "postgres://u:hunter2/x@127.0.0.1:5432/d", "%2F"),
        ("DATABASE_URL", "postgres://u:12/hunter2@127.0.0.1:5432/d", "%2F"),
        ("DATABASE_URL", "postgres://u:hunter2#x@127.0.0.1:5432/d", "%23"),
        ("REDIS_URL", "redis://:hunter2?x@127.0.0.1:6379", "%3F"),
        ("REDIS_URL", "redis://:hunter2/x@127.0.0.1:6379", "%2F"),
        ("REDIS_URL", "redis-sentinel://u:1/hunter2@127.0.0.1:6379?sentinelServiceName=s", "%2F"),
    ] {
        let setup = Setup::new().memory().env(variable, url);
        finds(&setup, FAULT, &[&format!("{variable}: "), "password", &format!("write {instead}")]).await;
    }
}

#[tokio::test]
async fn check_names_a_port_that_speaks_no_tls() {
    let database = PostgresServer::shared().await.database().await;
    let url = format!("{}?sslmode=require", database.url);
    finds(&on(&url), UNREACHABLE, &["postgres: cannot be used", "does not support TLS", "sslmode=disable"]).await;

    let redis = RedisServer::start().await;
    redis.command(&["CONFIG", "SET", "requirepass", "hunter2"]).await;
    let url = redis.url().replace("redis://", "rediss://:hunter2@");
    let setup = Setup::new().env("REDIS_URL", &url);
    finds(&setup, UNREACHABLE, &["redis: cannot be used", "speaks no TLS", "write redis in place of rediss"]).await;

    let directory = scratch(&format!("redis-tls-{}", free_port()));
    let (certificate, tls) = (self_signed(&directory), free_port().to_string());
    let (certificate, key) = (certificate.to_str().unwrap(), directory.join("certificate.key"));
    let arguments = ["--tls-port", &tls, "--tls-cert-file", certificate, "--tls-key-file", key.to_str().unwrap()];
    let _redis = RedisServer::start_with(&[&arguments[..], &["--tls-auth-clients", "no"]].concat()).await;
    let setup = Setup::new().env("REDIS_URL", &format!("redis://127.0.0.1:{tls}"));
    finds(&setup, UNREACHABLE, &["redis: cannot be used", "if it speaks TLS", "write rediss in place of redis"]).await;
}

#[tokio::test]
async fn check_names_passwords_that_are_refused() {
    let redis = RedisServer::start().await;
    redis.command(&["CONFIG", "SET", "requirepass", "right"]).await;
    let with = |password: &str| Setup::new().env("REDIS_URL", &redis.url().replace("//", &format!("//{password}")));
    finds(&with(":hunter2@"), UNREACHABLE, &["redis: cannot be used", "WRONGPASS", "write the user and the password"])
        .await;
    finds(&with(""), UNREACHABLE, &["redis: cannot be used", "NOAUTH", "write the password"]).await;
}

#[tokio::test]
async fn check_names_numbers_that_do_not_fit_each_other() {
    let setup = |drain: &str| Setup::new().memory().env("DRAIN_SECONDS", drain).env("RECOVERY_SECONDS", "20");
    finds(&setup("21"), FAULT, &["DRAIN_SECONDS=21", "RECOVERY_SECONDS=20", "write "]).await;
    let (code, lines) = check(&setup("20")).await;
    assert_eq!(code, 0, "{lines:#?}");
}

#[tokio::test]
async fn other_names_of_database_url_stop_the_start_where_ours_is_not_given() {
    let database = PostgresServer::shared().await.database().await;
    for other in ["DB_URL", "POSTGRES_URL"] {
        let setup = Setup::new().memory().env(other, "postgres://u:hunter2@h/d");
        finds(&setup, FAULT, &[&format!("{other}: "), "write DATABASE_URL"]).await;
        let (status, log) = Gateway::run(&["serve"], setup.environment()).await;
        assert!(status.code() == Some(2) && log.lines().len() == 1, "{}", log.text());
        let (code, lines) = check(&setup.env("DATABASE_URL", &database.url)).await;
        assert_eq!(code, 0, "{lines:#?}");
    }
}

#[tokio::test]
async fn a_log_level_that_is_none_stops_the_start_with_the_list() {
    for log in ["verbose", "warning", "info,verbose", "gateway", "gateway=verbose"] {
        let (status, said) = Gateway::run(&["serve"], Setup::new().memory().env("LOG", log).environment()).await;
        let text = said.text();
        assert!(status.code() == Some(2) && said.lines().len() == 1, "{log}: {text}");
        assert!(text.contains("LOG") && text.contains("error, warn, info, debug"), "{log}: {text}");
    }
    for log in ["off", "WARN", "info,gateway::hub=debug", "gateway=trace"] {
        let (code, lines) = check(&Setup::new().memory().env("LOG", log)).await;
        assert_eq!(code, 0, "{log}: {lines:#?}");
    }
}

/// Answers as PostgreSQL would that has no TLS and asks for the password in clear text; what the client said, until it leaves.
async fn overheard(listener: &TcpListener) -> Vec<u8> {
    const NO_TLS: &[u8] = b"N";
    const CLEARTEXT_PASSWORD: &[u8] = &[b'R', 0, 0, 0, 8, 0, 0, 0, 3];
    let (mut client, _) = listener.accept().await.unwrap();
    let (mut heard, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(count @ 1..) = client.read(&mut buffer).await {
        let is_request = count == 8 && heard.is_empty();
        heard.extend_from_slice(&buffer[..count]);
        if client.write_all(if is_request { NO_TLS } else { CLEARTEXT_PASSWORD }).await.is_err() {
            break;
        }
        if String::from_utf8_lossy(&heard).contains("hunter2") {
            break;
        }
    }
    heard
}

#[tokio::test]
async fn b68_the_password_goes_to_no_stranger_unless_that_is_written_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Resolves to this machine, and is not written like it.
    let url = format!("postgres://gateway:hunter2@127.1:{}/crechebooks", listener.local_addr().unwrap().port());
    for (url, told) in [
        (url.clone(), false),
        (format!("{url}?sslmode=verify-ca"), false),
        (format!("{url}?sslmode=require"), false),
        (format!("{url}?sslmode=prefer"), true),
        (format!("{url}?sslmode=disable"), true),
    ] {
        let heard = async {
            let mut heard = Vec::new();
            // A lying server may be asked more than once.
            while let Ok(more) = tokio::time::timeout(Duration::from_secs(2), overheard(&listener)).await {
                heard.extend(more);
            }
            heard
        };
        let setup = on(&url);
        let ((code, lines), heard) = tokio::join!(check(&setup), heard);
        assert_eq!(code, UNREACHABLE, "{lines:#?}");
        assert_eq!(String::from_utf8_lossy(&heard).contains("hunter2"), told, "{url}");
        let warned = lines
            .iter()
            .filter(|line| line.contains("DATABASE_URL: sslmode=") && line.contains("write sslmode=verify-full"));
        assert_eq!(warned.count(), usize::from(url.contains("sslmode")), "{url}: {lines:#?}");
    }
}

#[tokio::test]
async fn b68_a_weaker_way_that_is_written_down_is_named_at_the_start_once() {
    for (variable, url, words) in [
        (
            "DATABASE_URL",
            "postgres://gateway:hunter2@127.1:1/d?sslmode=prefer",
            ["sslmode=prefer", "sslmode=verify-full"],
        ),
        (
            "DATABASE_URL",
            "postgres://gateway:hunter2@127.1:1/d?sslmode=require",
            ["sslmode=require", "sslmode=verify-full"],
        ),
        ("REDIS_URL", "redis://gateway:hunter2@127.1:1", ["clear text", "write rediss"]),
        ("REDIS_URL", "redis-cluster://:hunter2@127.1:1", ["clear text", "write rediss"]),
        (
            "REDIS_URL",
            "redis-sentinel://127.1:1?sentinelServiceName=s&sentinelPassword=hunter2",
            ["clear text", "write rediss"],
        ),
    ] {
        let setup = Setup::new().memory().env(variable, url);
        let named = |lines: Vec<String>| {
            assert!(!lines.iter().any(|line| line.contains("hunter2")), "{lines:#?}");
            lines.iter().filter(|line| line.contains(variable) && words.iter().all(|word| line.contains(word))).count()
        };
        let gateway = Gateway::start(setup.environment()).await;
        eventually("the start names it", Duration::from_secs(5), async || {
            (named(gateway.log().lines()) == 1).then_some(())
        })
        .await;
        let level = gateway.log().lines().into_iter().find(|line| line.contains(words[1])).unwrap();
        assert!(level.contains("\"WARN\""), "{level}");
        drop(gateway);
        let (code, lines) = check(&setup).await;
        assert_eq!((code, named(lines)), (UNREACHABLE, 1), "{url}");
    }
}

#[tokio::test]
async fn b68_the_authorities_are_those_of_the_system() {
    let server = PostgresServer::start().await;
    let database = server.database().await;
    let data = database.value::<String>("select current_setting('data_directory')").await;
    let certificate = self_signed(Path::new(&data));
    let key = Path::new(&data).join("certificate.key");
    let owner = std::fs::metadata(&data).unwrap();
    for file in [&certificate, &key] {
        std::os::unix::fs::chown(file, Some(owner.uid()), Some(owner.gid())).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    for setting in ["ssl_cert_file = 'certificate.pem'", "ssl_key_file = 'certificate.key'", "ssl = on"] {
        database.run(&format!("alter system set {setting}")).await;
    }
    database.run("select pg_reload_conf()").await;
    let encrypted =
        async || database.value::<bool>("select ssl from pg_stat_ssl where pid = pg_backend_pid()").await.then_some(());
    eventually("the server speaks TLS", Duration::from_secs(10), encrypted).await;

    let url = format!("{}?sslmode=verify-full", database.url);
    finds(&on(&url), UNREACHABLE, &["postgres: cannot be used", "certificate", "SSL_CERT_FILE"]).await;
    let certificate = certificate.to_str().unwrap();
    for setup in [on(&url).env("SSL_CERT_FILE", certificate), on(&format!("{url}&sslrootcert={certificate}"))] {
        let (code, lines) = within("a check", Duration::from_secs(20), check(&setup)).await;
        assert_eq!(code, 0, "{lines:#?}");
    }
}
