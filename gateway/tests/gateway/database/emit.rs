//! `dashboard.emit`: what it takes, what it refuses, and what its caller may do besides (B54, B59).

use publisher::DashboardEvent;
use sqlx::postgres::{PgListener, PgNotification};
use sqlx::{Connection, PgConnection, Row};

use crate::harness::{PostgresServer, tenant};

const PAYMENT: &str =
    r#"{"paymentId":"p-1","amount":1500.00,"parentName":"Thandi Mokoena","childName":"Lwazi","invoiceNumber":"INV-1"}"#;
const STATUS: &str = r#"{"invoiceId":"i-1","invoiceNumber":"INV-1","previousStatus":"PENDING","newStatus":"PAID"}"#;
const ARREARS: &str = r#"{"parentId":"x-1","parentName":"Pieter Botha","totalArrears":4200.5,"daysOverdue":31}"#;
const METRICS: &str = r#"{"totalOutstanding":-5.00,"totalArrears":0,"accountsInArrears":0,"paymentsToday":2,"amountReceivedToday":10.1,"invoicesByStatus":{"PENDING":3},"asOf":"2026-11-23T08:15:00+02:00"}"#;

const GOOD: [(&str, &str); 4] = [
    ("payment_received", PAYMENT),
    ("invoice_status_changed", STATUS),
    ("arrears_alert", ARREARS),
    ("metrics_updated", METRICS),
];

async fn emit(client: &mut PgConnection, tenant: &str, kind: &str, data: &str) -> Result<String, String> {
    let emitted = sqlx::query_scalar("select dashboard.emit($1, $2, $3::jsonb)::text")
        .bind(tenant)
        .bind(kind)
        .bind(data)
        .fetch_one(client)
        .await;
    emitted.map_err(|error| match error {
        sqlx::Error::Database(error) => format!("{} {}", error.code().unwrap_or_default(), error.message()),
        other => panic!("{other}"),
    })
}

#[tokio::test]
async fn every_type_is_taken_and_gets_an_id_that_sorts_by_time() {
    let database = PostgresServer::shared().await.database().await;
    let mut client = database.client().await;
    let mut ids = Vec::new();
    for (kind, data) in GOOD {
        let id = emit(&mut client, "acorn", kind, data).await.unwrap();
        assert_eq!(uuid_version(&id), 7, "{id}");
        ids.push(id);
    }
    let rows = sqlx::query("select event_id, type, data::text as data from dashboard.outbox order by id");
    for ((row, id), (kind, _)) in rows.fetch_all(&mut client).await.unwrap().iter().zip(&ids).zip(GOOD) {
        assert_eq!((row.get::<&str, _>("event_id"), row.get::<&str, _>("type")), (id.as_str(), kind));
    }
    let first = &ids[0];
    let first = format!("where event_id = '{first}'");
    let amount = format!("select data ->> 'amount' from dashboard.outbox {first}");
    assert_eq!(database.value::<String>(&amount).await, "1500.00");
    let millis = format!(
        "select abs(('x' || left(replace(event_id, '-', ''), 12))::bit(48)::bigint - extract(epoch from now()) * 1000) < 60000
         from dashboard.outbox {first}"
    );
    assert!(database.value::<bool>(&millis).await, "the id does not begin with the time");
}

fn uuid_version(id: &str) -> u32 {
    id.as_bytes().get(14).and_then(|digit| char::from(*digit).to_digit(16)).unwrap_or_default()
}

/// One field of a good payload replaced.
fn with(data: &str, field: &str, value: &str) -> String {
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(data).unwrap();
    fields.remove(field);
    let rest = serde_json::to_string(&fields).unwrap();
    format!("{},\"{field}\":{value}}}", rest.trim_end_matches('}').trim_end_matches('}'))
}

fn without(data: &str, field: &str) -> String {
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(data).unwrap();
    fields.remove(field).expect("the field is there");
    serde_json::to_string(&fields).unwrap()
}

fn quoted(characters: &str, times: usize) -> String {
    format!("\"{}\"", characters.repeat(times))
}

/// Payloads at the rules' edges: the type, the payload, and the field that is refused (none: it is taken).
fn edges() -> Vec<(&'static str, String, Option<&'static str>)> {
    let mut edges = Vec::new();
    let mut edge = |kind, data: String, refused| edges.push((kind, data, refused));
    for (value, good) in [
        ("0", true),
        ("1500", true),
        ("1500.5", true),
        ("9999999999.99", true),
        ("-0", true),
        ("0.001", false),
        ("1500.000", false),
        ("-1", false),
        ("-0.01", false),
        ("1e400", false),
        ("10000000000", false),
        ("12345678901234567.89", false),
        ("\"1500.00\"", false),
        ("null", false),
        ("true", false),
        ("[1]", false),
        ("{}", false),
    ] {
        edge("payment_received", with(PAYMENT, "amount", value), (!good).then_some("data.amount"));
    }
    for (kind, data, field, longest) in [
        ("payment_received", PAYMENT, "paymentId", 128),
        ("payment_received", PAYMENT, "parentName", 200),
        ("payment_received", PAYMENT, "childName", 200),
        ("payment_received", PAYMENT, "invoiceNumber", 128),
        ("invoice_status_changed", STATUS, "invoiceId", 128),
        ("invoice_status_changed", STATUS, "invoiceNumber", 128),
        ("invoice_status_changed", STATUS, "previousStatus", 64),
        ("invoice_status_changed", STATUS, "newStatus", 64),
        ("arrears_alert", ARREARS, "parentId", 128),
        ("arrears_alert", ARREARS, "parentName", 200),
    ] {
        let path: &'static str = Box::leak(format!("data.{field}").into_boxed_str());
        edge(kind, with(data, field, &quoted("é", longest)), None);
        edge(kind, with(data, field, &quoted("👶", longest)), None);
        edge(kind, with(data, field, &quoted("\\u2028", longest)), None);
        edge(kind, with(data, field, &quoted("é", longest + 1)), Some(path));
        edge(kind, with(data, field, "\"\""), Some(path));
        edge(kind, with(data, field, "7"), Some(path));
        edge(kind, with(data, field, "null"), Some(path));
        edge(kind, without(data, field), Some(path));
    }
    for (value, good) in
        [("0", true), ("4294967295", true), ("4294967296", false), ("-1", false), ("1.5", false), ("\"3\"", false)]
    {
        edge("arrears_alert", with(ARREARS, "daysOverdue", value), (!good).then_some("data.daysOverdue"));
    }
    edge("arrears_alert", with(ARREARS, "totalArrears", "-1"), Some("data.totalArrears"));
    for (field, value, good) in [
        ("totalOutstanding", "-9999999999.99", true),
        ("totalArrears", "0.001", false),
        ("accountsInArrears", "9007199254740991", true),
        ("accountsInArrears", "9007199254740992", false),
        ("paymentsToday", "-1", false),
        ("amountReceivedToday", "\"1\"", false),
        ("invoicesByStatus", "{}", true),
        ("invoicesByStatus", "[]", false),
        ("invoicesByStatus", "{\"PAID\":1.5}", false),
        ("invoicesByStatus", "{\"\":1}", false),
        ("asOf", "\"2026-02-28T23:59:59.123456789Z\"", true),
        ("asOf", "\"2026-02-30T00:00:00Z\"", false),
        ("asOf", "\"2026-02-28\"", false),
        ("asOf", "\"today\"", false),
        ("asOf", "\"infinity\"", false),
        ("asOf", "1764000000", false),
        ("condensed", "{\"payment_received\":12}", true),
        ("condensed", "{\"payments\":12}", false),
    ] {
        let path: &'static str = Box::leak(format!("data.{field}").into_boxed_str());
        edge("metrics_updated", with(METRICS, field, value), (!good).then_some(path));
    }
    // MetricsRefresh are null together, and only with `condensed` (F63).
    let figures = [
        "totalOutstanding",
        "totalArrears",
        "accountsInArrears",
        "paymentsToday",
        "amountReceivedToday",
        "invoicesByStatus",
    ];
    let without_figures = figures.iter().fold(METRICS.to_owned(), |data, field| with(&data, field, "null"));
    let condensed = |data: &str| with(data, "condensed", "{\"payment_received\":12}");
    edge("metrics_updated", condensed(&without_figures), None);
    edge("metrics_updated", without_figures.clone(), Some("data.totalOutstanding"));
    edge("metrics_updated", with(&without_figures, "condensed", "{\"payments\":12}"), Some("data.condensed"));
    edge("metrics_updated", with(&condensed(&without_figures), "asOf", "null"), Some("data.asOf"));
    for field in figures {
        let path: &'static str = Box::leak(format!("data.{field}").into_boxed_str());
        edge("metrics_updated", condensed(&with(METRICS, field, "null")), Some(path));
        edge("metrics_updated", condensed(&without(&without_figures, field)), Some("data."));
    }
    for (kind, data) in GOOD {
        edge(kind, with(data, "surprise", "1"), Some("data.surprise"));
        edge(kind, "[]".into(), Some("data"));
        edge(kind, "\"x\"".into(), Some("data"));
    }
    edge("payment_received", STATUS.into(), Some("data."));
    let many: String = (0..900).map(|n| format!("\"STATUS-{n:08}\":1,")).collect();
    edge(
        "metrics_updated",
        with(METRICS, "invoicesByStatus", &format!("{{{}}}", many.trim_end_matches(','))),
        Some("data"),
    );
    edges
}

#[tokio::test]
async fn b54_the_database_and_the_library_refuse_the_same_and_name_the_field() {
    let database = PostgresServer::shared().await.database().await;
    let mut client = database.client().await;
    let mut taken = 0;
    for (kind, data, refused) in edges() {
        let sql = emit(&mut client, "acorn", kind, &data).await;
        match refused {
            None => {
                sql.unwrap_or_else(|error| panic!("{data}: {error}"));
                taken += 1;
            }
            Some(field) => {
                let error = sql.expect_err(&data);
                assert!(error.starts_with(&format!("22023 {field}")), "{data}: {error}");
            }
        }
        let raw = format!(r#"{{"type":"{kind}","data":{data}}}"#);
        let library = DashboardEvent::from_json(raw.as_bytes());
        // jsonb has no negative zero, so that the database can't tell; and it counts the blanks that it writes itself.
        let only_by_one = data.contains(":-0}") || data.len() > 12_000;
        if !only_by_one {
            assert_eq!(library.is_ok(), refused.is_none(), "{data}: {library:?}");
        }
    }
    assert_eq!(database.value::<i64>("select count(*) from dashboard.outbox").await, taken);

    // The relay reads what the database took with the library: that must never fail.
    let rows =
        sqlx::query("select type, data::text as data from dashboard.outbox").fetch_all(&mut client).await.unwrap();
    for row in rows {
        let (kind, data): (&str, &str) = (row.get("type"), row.get("data"));
        let raw = format!(r#"{{"type":"{kind}","data":{data}}}"#);
        DashboardEvent::from_json(raw.as_bytes()).unwrap_or_else(|error| panic!("{data}: {error}"));
    }
}

#[tokio::test]
async fn b59_nulls_and_names_of_nobody_are_refused_by_name() {
    let database = PostgresServer::shared().await.database().await;
    let mut client = database.client().await;
    for (call, named) in [
        ("dashboard.emit(null, 'payment_received', '{}')", "tenant_id: must be"),
        ("dashboard.emit('', 'payment_received', '{}')", "tenant_id: must be"),
        ("dashboard.emit('a b', 'payment_received', '{}')", "tenant_id: must be"),
        ("dashboard.emit(E'acorn\\n', 'payment_received', '{}')", "tenant_id: must be"),
        ("dashboard.emit(repeat('x', 65), 'payment_received', '{}')", "tenant_id: must be"),
        ("dashboard.emit('acorn', null, '{}')", "type: must be one of"),
        ("dashboard.emit('acorn', 'payment', '{}')", "type: must be one of"),
        ("dashboard.emit('acorn', 'payment_received', null)", "data: must be an object"),
        ("dashboard.emit('acorn', 'payment_received', 'null')", "data: must be an object"),
        ("dashboard.record('-', 'acorn', 'payment_received', '{}', now())", "id: must be"),
        ("dashboard.record(null, 'acorn', 'payment_received', '{}', now())", "id: must be"),
        ("dashboard.record('x', 'acorn', 'payment_received', '{}', null)", "timestamp: must"),
        ("dashboard.record('x', 'acorn', 'payment_received', '{}', 'infinity')", "timestamp: must"),
    ] {
        let statement = sqlx::AssertSqlSafe(format!("select {call}"));
        let error = sqlx::raw_sql(statement).execute(&mut client).await.expect_err(call);
        let message = error.as_database_error().expect("the database's").message().to_owned();
        assert!(message.starts_with(named), "{call}: {message}");
    }
    assert_eq!(database.value::<i64>("select count(*) from dashboard.outbox").await, 0);
}

#[tokio::test]
async fn b59_a_refused_event_takes_its_transaction_along() {
    let database = PostgresServer::shared().await.database().await;
    let mut client = database.client().await;
    let mut transaction = client.begin().await.unwrap();
    emit(&mut transaction, "acorn", "payment_received", PAYMENT).await.unwrap();
    let error = emit(&mut transaction, "acorn", "payment_received", "{}").await.unwrap_err();
    assert!(error.starts_with("22023 data.paymentId: is missing"), "{error}");
    let error = emit(&mut transaction, "acorn", "payment_received", PAYMENT).await.unwrap_err();
    assert!(error.starts_with("25P02"), "in an aborted transaction: {error}");
    assert!(transaction.commit().await.is_ok(), "a commit of an aborted transaction rolls back");
    assert_eq!(database.value::<i64>("select count(*) from dashboard.outbox").await, 0);
}

#[tokio::test]
async fn an_emitter_needs_execute_on_emit_and_has_nothing_else() {
    let database = PostgresServer::shared().await.database().await;
    let role = format!("emitter_{}", tenant().as_str().replace('-', "_"));
    database
        .run(&format!(
            "create role {role}; grant execute on function dashboard.emit(text, text, jsonb) to {role};
             create role {role}_stranger"
        ))
        .await;
    let mut client = database.client().await;
    let be = |role: &str| sqlx::AssertSqlSafe(format!("set role {role}"));
    sqlx::raw_sql(be(&role)).execute(&mut client).await.unwrap();
    emit(&mut client, "acorn", "payment_received", PAYMENT).await.unwrap();
    for forbidden in [
        "select * from dashboard.outbox",
        "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at) values ('x', 'x', 'x', '{}', now())",
        "delete from dashboard.outbox",
        "update dashboard.relay set term = 7",
        "select dashboard.record('x', 'x', 'payment_received', '{}', now())",
        "select * from dashboard.metrics",
    ] {
        let error = sqlx::raw_sql(forbidden).execute(&mut client).await.expect_err(forbidden);
        assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("42501"), "{forbidden}");
    }
    sqlx::raw_sql(be(&format!("{role}_stranger"))).execute(&mut client).await.unwrap();
    let error = emit(&mut client, "acorn", "payment_received", PAYMENT).await.unwrap_err();
    assert!(error.starts_with("42501"), "{error}");
}

#[tokio::test]
async fn a_callers_own_functions_cannot_take_the_place_of_ours() {
    let database = PostgresServer::shared().await.database().await;
    let mut client = database.client().await;
    sqlx::raw_sql(
        "create function pg_temp.jsonb_typeof(jsonb) returns text language sql as $$ select 'object' $$;
         create table pg_temp.outbox (like dashboard.outbox);
         create schema evil;
         create function evil.char_length(text) returns int language sql as $$ select 1 $$;
         create function evil.scale(numeric) returns int language sql as $$ select 0 $$;
         set search_path = pg_temp, evil, pg_catalog, dashboard",
    )
    .execute(&mut client)
    .await
    .unwrap();
    let error = emit(&mut client, "acorn", "payment_received", &with(PAYMENT, "amount", "0.001")).await.unwrap_err();
    assert!(error.starts_with("22023 data.amount"), "{error}");
    emit(&mut client, "acorn", "payment_received", PAYMENT).await.unwrap();
    assert_eq!(database.value::<i64>("select count(*) from dashboard.outbox").await, 1);
}

#[tokio::test]
async fn one_transaction_wakes_the_relay_once_and_says_nothing() {
    let database = PostgresServer::shared().await.database().await;
    let mut listener = PgListener::connect(&database.url).await.unwrap();
    listener.listen("dashboard_outbox").await.unwrap();
    let mut client = database.client().await;
    let mut transaction = client.begin().await.unwrap();
    for _ in 0..3 {
        emit(&mut transaction, "acorn", "payment_received", PAYMENT).await.unwrap();
    }
    transaction.commit().await.unwrap();
    sqlx::raw_sql("notify dashboard_outbox, 'the marker'").execute(&mut client).await.unwrap();
    let mut payloads = Vec::new();
    while payloads.last().is_none_or(|payload| payload != "the marker") {
        payloads.push(listener.recv().await.map(|told: PgNotification| told.payload().to_owned()).unwrap());
    }
    assert_eq!(payloads, ["", "the marker"]);
}
