//! What a dashboard starts from: on join, on resync and over HTTP, consistent with the stream that follows it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use publisher::TenantId;
use serde_json::{Value, json};

use super::harness::books::{open_books, pay, record};
use super::harness::ledger::Message;
use super::harness::{Dashboard, PostgresServer, Setup, Stack, Token, eventually, http, payment, tenant};

fn token(tenant: &TenantId) -> String {
    Token::of(tenant.as_str()).sign()
}

async fn join(stack: &Stack, tenant: &TenantId) -> (Dashboard, Message) {
    let mut dashboard = Dashboard::open(stack.addr()).await;
    let joined = dashboard.join(tenant.as_str(), &token(tenant)).await;
    (dashboard, joined)
}

async fn get(stack: &Stack, tenant: &TenantId) -> Value {
    let bearer = format!("Bearer {}", token(tenant));
    let answer = http::get_with(stack.addr(), "/dashboard/snapshot", &[("authorization", &bearer)]).await.expect(200);
    serde_json::from_str(&answer.body).unwrap()
}

fn payment_ids(payments: &Value) -> Vec<String> {
    let payments = payments.as_array().unwrap_or_else(|| panic!("no payments in {payments}"));
    payments.iter().map(|payment| payment["paymentId"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_join_brings_the_figures_and_the_newest_twenty_payments() {
    let database = PostgresServer::shared().await.database().await;
    let (acorn, other) = (tenant(), tenant());
    open_books(&database, &acorn).await;
    open_books(&database, &other).await;
    let mut client = database.client().await;
    for number in 1..=25 {
        pay(&mut client, &acorn, number, number).await;
    }
    database
        .run(&format!(
            "insert into billing.invoices (tenant_id, id, number, parent_id, child_id, amount, status, issued_on, due_on)
             values ('{acorn}', 'late', 'INV-2', 'par-1', 'chi-1', 850.50, 'OVERDUE', current_date - 40, current_date - 10);
             insert into billing.payments (tenant_id, id, invoice_id, amount, received_at)
             values ('{acorn}', 'old', 'inv-1', 5, now() - interval '2 days')"
        ))
        .await;
    let stack = Setup::new().database(&database).start().await;
    let (dashboard, joined) = join(&stack, &acorn).await;
    assert!(
        joined.raw.contains(r#""totalOutstanding":100525.50,"totalArrears":850.50,"accountsInArrears":1"#),
        "{}",
        joined.raw
    );
    assert!(joined.raw.contains(r#""paymentsToday":25,"amountReceivedToday":325.00"#), "{}", joined.raw);
    let metrics = &joined.data["metrics"];
    assert_eq!(metrics["invoicesByStatus"], json!({"PENDING": 1, "OVERDUE": 1}));
    assert!(metrics["asOf"].is_string() && metrics.get("condensed").is_none(), "{metrics}");
    let newest: Vec<String> = (6..=25).rev().map(|number| format!("p-{number}")).collect();
    assert_eq!(payment_ids(&joined.data["payments"]), newest);
    let first = &joined.data["payments"][0];
    assert_eq!(first["parentName"], "Thandi Mokoena");
    assert!(joined.raw.contains(r#""amount":25.00,"#) && first["receivedAt"].is_string(), "{}", joined.raw);

    let (elsewhere, foreign) = join(&stack, &other).await;
    assert_eq!(foreign.data["payments"], json!([]));
    let snapshot = get(&stack, &acorn).await;
    assert_eq!(snapshot["payments"], joined.data["payments"]);
    assert_eq!((&snapshot["seq"], &snapshot["epoch"]), (&joined.data["seq"], &joined.data["epoch"]));
    let stranger = tenant();
    let (nobody, unknown) = join(&stack, &stranger).await;
    assert_eq!((&unknown.data["metrics"], &unknown.data["payments"]), (&Value::Null, &json!([])));
    for dashboard in [dashboard, elsewhere, nobody] {
        dashboard.close().await;
    }
    stack.finish().await;
}

#[tokio::test]
async fn today_begins_at_midnight_of_the_centre() {
    let database = PostgresServer::shared().await.database().await;
    for (zone, centre) in [("Pacific/Kiritimati", tenant()), ("Pacific/Pago_Pago", tenant())] {
        open_books(&database, &centre).await;
        database
            .run(&format!(
                "update billing.tenants set time_zone = '{zone}' where id = '{centre}';
                 insert into billing.payments (tenant_id, id, invoice_id, amount, received_at)
                 select '{centre}', 'p' || n, 'inv-1', 10 ^ n,
                     ((now() at time zone '{zone}')::date)::timestamp at time zone '{zone}' - (1 - n) * interval '1 second'
                 from generate_series(0, 1) n"
            ))
            .await;
        let today = format!("select amount_received_today::float8 from dashboard.metrics where tenant_id = '{centre}'");
        assert_eq!(database.value::<f64>(&today).await, 10.0, "{zone}");
    }
}

#[tokio::test]
async fn without_views_snapshots_are_null_and_it_is_said_once() {
    let database = PostgresServer::shared().await.database().await;
    database.run("drop view dashboard.metrics; drop view dashboard.recent_payments").await;
    let stack = Setup::new().database(&database).start().await;
    for _ in 0..3 {
        let (dashboard, joined) = join(&stack, &tenant()).await;
        assert_eq!((&joined.data["metrics"], &joined.data["payments"]), (&Value::Null, &Value::Null));
        dashboard.close().await;
    }
    let said = stack.gateway().log().lines().into_iter().filter(|line| line.contains("snapshots are null")).count();
    assert!((1..=2).contains(&said), "{said} lines");
    stack.finish().await;
}

#[tokio::test]
async fn a_storm_of_joins_costs_a_query_or_two() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    // Each read of the view takes a number.
    database
        .run(
            "create sequence public.reads;
             alter view dashboard.metrics rename to metrics_uncounted;
             create view dashboard.metrics as
                 select m.* from dashboard.metrics_uncounted m cross join lateral (select nextval('public.reads')) counted",
        )
        .await;
    let stack = Setup::new().database(&database).start().await;
    let joins = (0..200).map(|_| join(&stack, &acorn));
    let dashboards = futures::future::join_all(joins).await;
    assert!(dashboards.iter().all(|(_, joined)| joined.data["metrics"].is_object()));
    let reads: i64 = database.value("select case when is_called then last_value else 0 end from public.reads").await;
    // One for each second that the storm lasts on a slow machine.
    assert!((1..=5).contains(&reads), "{reads} reads for 200 joins");
    futures::future::join_all(dashboards.into_iter().map(|(dashboard, _)| dashboard.close())).await;
    stack.finish().await;
}

#[tokio::test]
async fn f31_whoever_joins_in_the_middle_of_a_stream_has_every_payment_once_in_state() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    let stack = Setup::new().database(&database).start().await;
    let recording = async {
        let mut recorded = Vec::new();
        for number in 0..18 {
            recorded.push(record(&database, &acorn, number).await);
            tokio::time::sleep(Duration::from_millis(110)).await;
        }
        recorded
    };
    let joining = async {
        let mut joined = Vec::new();
        for _ in 0..40 {
            joined.push(join(&stack, &acorn).await);
            tokio::time::sleep(Duration::from_millis(45)).await;
        }
        joined
    };
    let (recorded, joined) = futures::future::join(recording, joining).await;
    let last = recorded.last().unwrap();
    for (mut dashboard, joined) in joined {
        let mut seq = joined.data["seq"].as_u64().unwrap();
        let mut state: HashSet<String> = payment_ids(&joined.data["payments"]).into_iter().collect();
        while !state.contains(last) {
            let event = dashboard.next_event().await;
            seq += 1;
            assert_eq!(event.seq, Some(seq), "a gap after a snapshot");
            state.extend(event.data["paymentId"].as_str().map(str::to_owned));
        }
        assert!(recorded.iter().all(|id| state.contains(id)), "missing in state: {state:?}");
        dashboard.close().await;
    }
    stack.finish().await;
}

#[tokio::test]
async fn a_resync_brings_a_snapshot() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    let stack = Setup::new().database(&database).start().await;
    let (mut dashboard, _) = join(&stack, &acorn).await;
    record(&database, &acorn, 1).await;
    dashboard.until("payment_received").await;
    // Redis forgets the tenant: a new epoch.
    stack.redis().command(&["DEL", &stack.state_key(&acorn), &stack.log_key(&acorn)]).await;
    record(&database, &acorn, 2).await;
    let resync = dashboard.until("resync").await;
    assert_eq!(payment_ids(&resync.data["payments"]), ["p-2", "p-1"]);
    assert_eq!(resync.data["metrics"]["paymentsToday"], 2);
    let seq = resync.data["seq"].as_u64().unwrap();
    record(&database, &acorn, 3).await;
    assert_eq!(dashboard.until_event().await.seq, Some(seq + 1));
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f33_a_database_that_is_frozen_or_gone_costs_a_join_two_seconds_at_most() {
    let mut server = PostgresServer::start().await;
    let database = server.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    let mut stack = Setup::new().database(&database).start().await;
    let (mut first, joined) = join(&stack, &acorn).await;
    assert!(joined.data["metrics"].is_object());
    for frozen in [true, false] {
        match frozen {
            true => server.freeze(),
            false => server.kill9(),
        }
        // A centre that nobody has asked for in the last second, whose snapshot would still be good.
        for centre in [tenant(), tenant()] {
            let begun = Instant::now();
            let (dashboard, joined) = join(&stack, &centre).await;
            assert_eq!((&joined.data["metrics"], &joined.data["payments"]), (&Value::Null, &Value::Null));
            assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
            dashboard.close().await;
        }
        let receipt = stack.publish(&acorn, &payment()).await;
        assert_eq!(first.until("payment_received").await.id, Some(receipt.id));
        http::get(stack.gateway().internal, "/readyz").await.expect(200);
        match frozen {
            true => server.thaw(),
            false => server.restart().await,
        }
        eventually("snapshots are back", Duration::from_secs(10), async || {
            let (dashboard, joined) = join(&stack, &acorn).await;
            dashboard.close().await;
            joined.data["metrics"].is_object().then_some(())
        })
        .await;
    }
    first.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn the_snapshot_is_served_with_real_time_off_too() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    let stack = Setup::new().env("REALTIME_DASHBOARD", "false").database(&database).start().await;
    record(&database, &acorn, 1).await;
    let id = format!("select count(*) from dashboard.outbox where tenant_id = '{acorn}' and fate = 'published'");
    eventually("the payment is published", Duration::from_secs(10), async || {
        (database.value::<i64>(&id).await == 1).then_some(())
    })
    .await;
    let snapshot = get(&stack, &acorn).await;
    assert_eq!((&snapshot["seq"], payment_ids(&snapshot["payments"])), (&json!(1), vec!["p-1".to_owned()]));
    assert_eq!(snapshot["metrics"]["paymentsToday"], 1);
    let other = tenant();
    let foreign = format!("/dashboard/snapshot?tenantId={other}");
    let bearer = format!("Bearer {}", token(&acorn));
    http::get_with(stack.addr(), &foreign, &[("authorization", &bearer)]).await.expect(403);
    stack.finish().await;
}
