//! From a billing transaction to the socket, through the outbox.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use publisher::outbox;
use sqlx::Connection;

use crate::harness::books::{self, emit, emit_all, fates};
use crate::harness::{Gateway, PostgresServer, Setup, eventually, oracle, payment, tenant, tenants};

#[tokio::test]
async fn what_psql_emits_arrives_with_its_id_and_its_cents() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    let statement = format!(
        "select dashboard.emit('{acorn}', 'payment_received', '{}')",
        books::payment_data(7).replace("7.50", "1500.00")
    );
    let psql = Command::new("psql").args([&database.url, "-XAtc", &statement]).stdin(Stdio::null()).output().unwrap();
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
    let event = dashboard.next_event().await;
    assert_eq!(event.id.as_deref(), Some(String::from_utf8_lossy(&psql.stdout).trim()));
    assert!(event.raw.contains(r#""amount":1500.00,"#), "{}", event.raw);
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn a_rollback_emits_nothing() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    let mut client = database.client().await;
    let mut transaction = client.begin().await.unwrap();
    emit(&mut transaction, &acorn, 1).await;
    transaction.rollback().await.unwrap();
    // What was rolled back would come before this.
    let marker = emit(&mut client, &acorn, 2).await;
    assert_eq!(dashboard.next_event().await.id, Some(marker));
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn what_rust_records_keeps_its_id_and_is_shown_once_though_published_directly_too() {
    let database = PostgresServer::shared().await.database().await;
    let mut stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    let event = payment();
    let mut client = database.client().await;
    let mut transaction = client.begin().await.unwrap();
    outbox::record(&mut transaction, &acorn, &event).await.unwrap();
    stack.publish(&acorn, &event).await;
    transaction.commit().await.unwrap();
    let shown = dashboard.next_event().await;
    assert_eq!(shown.id.as_deref(), Some(event.id.as_str()));
    assert_eq!(shown.timestamp, serde_json::to_value(&event).unwrap()["timestamp"].as_str().unwrap());
    let marker = emit(&mut client, &acorn, 2).await;
    assert_eq!(dashboard.next_event().await.id, Some(marker));

    let mut broken = payment();
    if let publisher::EventData::PaymentReceived(payment) = &mut broken.data {
        payment.parent_name.clear();
    }
    let refused = outbox::record(&mut client, &acorn, &broken).await.unwrap_err().to_string();
    assert!(refused.contains("data.parentName"), "{refused}");
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f36_who_commits_late_with_an_early_id_is_not_skipped() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    let (mut early, mut late) = (database.client().await, database.client().await);
    let mut first = early.begin().await.unwrap();
    let slow = emit(&mut first, &acorn, 1).await;
    let quick = emit(&mut late, &acorn, 2).await;
    assert_eq!(dashboard.next_event().await.id, Some(quick));
    first.commit().await.unwrap();
    assert_eq!(dashboard.next_event().await.id, Some(slow));
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn a_tenant_at_its_limit_waits_in_order_and_holds_up_nobody() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let (busy, quiet) = (tenant(), tenant());
    let (mut of_busy, mut of_quiet) = (stack.dashboard(&busy).await, stack.dashboard(&quiet).await);
    let ids = emit_all(&database, &busy, 0..30).await;
    assert_eq!(of_busy.next_event().await.id.as_ref(), ids.first());
    let id = emit(&mut database.client().await, &quiet, 1).await;
    assert_eq!(of_quiet.next_event().await.id, Some(id));
    assert!(fates(&database, &busy).await.contains_key("pending"), "the busy tenant still waits");
    for id in &ids[1..] {
        assert_eq!(of_busy.next_event().await.id.as_ref(), Some(id));
    }
    oracle::assert_rate(stack.redis(), &stack.prefix, &busy, 10).await;
    of_busy.close().await;
    of_quiet.close().await;
    stack.finish().await;
}

/// A month's end: 5000 status changes of one centre, while a payment of another comes every 100 ms.
async fn flood(in_one_transaction: bool) {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let (acorn, other) = (tenant(), tenant());
    books::open_books(&database, &acorn).await;
    let (mut flooded, mut calm) = (stack.dashboard(&acorn).await, stack.dashboard(&other).await);

    let (url, name) = (database.url.clone(), acorn.clone());
    let flooding = tokio::spawn(async move {
        let mut client = sqlx::PgConnection::connect(&url).await.unwrap();
        let data = r#"{"invoiceId":"i","invoiceNumber":"INV-1","previousStatus":"PENDING","newStatus":"PAID"}"#;
        let emit = "select count(dashboard.emit($1, 'invoice_status_changed', $2::jsonb)) from generate_series(1, $3)";
        let portions: Vec<i32> = if in_one_transaction { vec![5000] } else { vec![50; 100] };
        for portion in portions {
            sqlx::query(emit).bind(name.as_str()).bind(data).bind(portion).execute(&mut client).await.unwrap();
        }
    });
    let mut client = database.client().await;
    for number in 0..20 {
        let id = emit(&mut client, &other, number).await;
        let committed = Instant::now();
        assert_eq!(calm.next_event().await.id, Some(id));
        // The promise holds while another tenant floods.
        assert!(committed.elapsed() < Duration::from_millis(500), "{:?}", committed.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    flooding.await.unwrap();

    // Single changes, and changes that figures stand for: together all of them, and none twice.
    let mut shown = 0;
    while shown < 5000 {
        let event = flooded.next_event().await;
        shown += match &*event.kind {
            "invoice_status_changed" => 1,
            _ => event.data["condensed"]["invoice_status_changed"].as_i64().unwrap_or_default(),
        };
        if event.kind == "metrics_updated" {
            assert_eq!(event.data["totalOutstanding"], 100_000.0, "{}", event.raw);
        }
    }
    assert_eq!(shown, 5000);
    eventually("every row has its fate", Duration::from_secs(5), async || {
        (!fates(&database, &acorn).await.contains_key("pending")).then_some(())
    })
    .await;
    let folded: i64 = database
        .value("select count(*) from dashboard.outbox where fate = 'condensed' and type <> 'metrics_updated'")
        .await;
    assert!(folded > 4000, "{folded} rows were condensed");
    stack.gateway().metric_becomes("relay_condensed_total", &[], folded as f64).await;
    oracle::assert_rate(stack.redis(), &stack.prefix, &acorn, 10).await;
    flooded.close().await;
    calm.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn a_flood_in_one_transaction_becomes_one_event_with_the_right_figures() {
    flood(true).await;
}

#[tokio::test]
async fn a_flood_that_trickles_in_is_condensed_as_it_comes() {
    flood(false).await;
}

#[tokio::test]
async fn after_a_flood_the_figures_are_right_within_a_second() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    books::open_books(&database, &acorn).await;
    let mut dashboard = stack.dashboard(&acorn).await;
    let data = books::payment_data(1);
    let flood = format!(
        "with paid as (update billing.invoices set amount_paid = 5000 where tenant_id = '{acorn}')
         select count(dashboard.emit('{acorn}', 'payment_received', '{data}')) from generate_series(1, 5000)"
    );
    database.run(&flood).await;
    let committed = Instant::now();
    let event = dashboard.until("metrics_updated").await;
    let took = committed.elapsed();
    assert_eq!(event.data["condensed"]["payment_received"], 5000);
    assert_eq!(event.data["totalOutstanding"], 95_000.0);
    // The promise, and as much again for a busy machine.
    assert!(took < Duration::from_secs(2), "{took:?}");
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn a_row_that_breaks_a_rule_is_passed_over_and_holds_up_nothing() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    database
        .run(&format!(
            "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at)
             values ('e-1', '{acorn}', 'payment_received', '{{\"amount\":-1}}', now()),
                    ('e 2', '{acorn}', 'nonsense', '{{}}', now())"
        ))
        .await;
    let id = emit(&mut database.client().await, &acorn, 1).await;
    assert_eq!(dashboard.next_event().await.id, Some(id));
    eventually("the rows have their fates", Duration::from_secs(5), async || {
        let fates = fates(&database, &acorn).await;
        (fates.get("refused") == Some(&2) && fates.get("published") == Some(&1)).then_some(())
    })
    .await;
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn relayed_rows_are_pruned_after_a_day() {
    let database = PostgresServer::shared().await.database().await;
    database
        .run(
            "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at, relayed_at, fate)
             select 'e-' || n, 'acorn', 'payment_received', '{}', now(), now() - n * interval '1 hour', 'published'
             from generate_series(1, 12000) n",
        )
        .await;
    let stack = Setup::new().database(&database).start().await;
    eventually("only the last day is left", Duration::from_secs(10), async || {
        (database.value::<i64>("select count(*) from dashboard.outbox").await == 23).then_some(())
    })
    .await;
    stack.finish().await;
}

#[tokio::test]
async fn the_memory_engine_relays_too() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().memory().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    let ids = emit_all(&database, &acorn, 0..12).await;
    for id in &ids {
        assert_eq!(dashboard.next_event().await.id.as_ref(), Some(id));
    }
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn many_tenants_each_keep_their_order() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().gateways(2).database(&database).start().await;
    let centres = tenants(20);
    let mut dashboards = Vec::new();
    for centre in &centres {
        dashboards.push(stack.dashboard(centre).await);
    }
    let mut client = database.client().await;
    let mut expected = vec![Vec::new(); centres.len()];
    for number in 0..8 {
        let mut transaction = client.begin().await.unwrap();
        for (centre, expected) in centres.iter().zip(&mut expected) {
            expected.push(emit(&mut transaction, centre, number).await);
        }
        transaction.commit().await.unwrap();
    }
    for (dashboard, expected) in dashboards.iter_mut().zip(expected) {
        for id in expected {
            assert_eq!(dashboard.next_event().await.id, Some(id));
        }
    }
    for dashboard in dashboards {
        dashboard.close().await;
    }
    stack.finish().await;
}

/// What migrations/README.md says to do.
#[tokio::test]
async fn f68_two_phase_commit_works_without_the_trigger() {
    let mut server = PostgresServer::start().await;
    let database = server.database().await;
    database.run("alter system set max_prepared_transactions = 10").await;
    server.stop().await;
    server.restart().await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    let mut client = database.client().await;
    let prepare = async |client: &mut sqlx::PgConnection, number| {
        sqlx::raw_sql("begin").execute(&mut *client).await.unwrap();
        let id = emit(&mut *client, &acorn, number).await;
        sqlx::raw_sql("prepare transaction 'two-phase'").execute(client).await.map(|_| id)
    };
    let refused = prepare(&mut client, 1).await.unwrap_err().to_string();
    let documented = "cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY";
    assert!(refused.contains(documented), "{refused}");
    let remedy = "alter table dashboard.outbox disable trigger wake";
    let advice = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations/README.md")).unwrap();
    let advice = advice.split("\n\n").find(|paragraph| paragraph.contains(documented)).expect("the error's words");
    assert!(advice.contains(remedy), "{advice}");

    database.run(remedy).await;
    let id = prepare(&mut client, 2).await.unwrap();
    sqlx::raw_sql("commit prepared 'two-phase'").execute(&mut client).await.unwrap();
    assert_eq!(dashboard.next_event().await.id, Some(id));
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn b60_a_database_that_cannot_be_worked_with_stops_the_start_in_one_line() {
    let server = PostgresServer::shared().await;
    let empty = server.empty_database().await;
    let nowhere = empty.url.replace(&empty.name, "nowhere");
    for (url, said) in [(&empty.url, "gateway migrate"), (&nowhere, "does not exist")] {
        let setup = Setup::new().memory().env("DATABASE_URL", url);
        let (status, log) = Gateway::run(&["serve"], setup.environment()).await;
        assert_eq!(status.code(), Some(2), "{}", log.text());
        assert!(log.text().contains("DATABASE_URL: ") && log.text().contains(said), "{}", log.text());
    }
    let database = server.database().await;
    let setup = Setup::new().memory().database(&database);
    let (status, log) = Gateway::run(&["check"], setup.environment()).await;
    assert!(
        status.success() && log.text().contains("postgres: answers, with the outbox and the views"),
        "{}",
        log.text()
    );
}
