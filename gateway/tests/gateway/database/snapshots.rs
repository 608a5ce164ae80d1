//! What a dashboard starts from: on join, on resync and over HTTP, consistent with the stream that follows it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use publisher::TenantId;
use serde_json::{Value, json};

use crate::harness::books::{open_books, pay, record};
use crate::harness::ledger::Message;
use crate::harness::{
    Dashboard, Database, Incoming, Oracle, PostgresServer, Setup, Stack, Token, eventually, http, payment, tenant,
    tenants, within,
};

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
    let lines = stack.gateway().log().lines();
    for view in ["dashboard.metrics", "dashboard.recent_payments"] {
        let said = lines.iter().filter(|line| line.contains("is missing") && line.contains(view)).count();
        assert_eq!(said, 1, "{view} in {lines:#?}");
    }
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
async fn f31_a_join_in_the_middle_of_a_stream_has_every_payment_once_in_state() {
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
    assert_eq!((&snapshot["seq"], payment_ids(&snapshot["payments"])), (&Value::Null, vec!["p-1".to_owned()]));
    assert_eq!(snapshot["metrics"]["paymentsToday"], 1);
    let other = tenant();
    let foreign = format!("/dashboard/snapshot?tenantId={other}");
    let bearer = format!("Bearer {}", token(&acorn));
    http::get_with(stack.addr(), &foreign, &[("authorization", &bearer)]).await.expect(403);
    stack.finish().await;
}

/// Every read of the views by `failing`, `slow` or `lacking` fails in its own way, and is counted.
async fn break_views(database: &Database, failing: &TenantId, slow: &TenantId, lacking: &TenantId) {
    database
        .run(&format!(
            "create sequence public.failed;
             create function public.trouble(tenant text) returns numeric language plpgsql volatile as $$
             begin
                 if tenant = '{failing}' then
                     perform nextval('public.failed');
                     return 1 / 0;
                 elsif tenant = '{slow}' then
                     perform pg_sleep(30);
                 elsif tenant = '{lacking}' then
                     execute 'select 1 from nowhere.invoices';
                 end if;
                 return 0;
             end $$;
             alter view dashboard.metrics rename to metrics_well;
             create view dashboard.metrics as
                 select tenant_id, total_outstanding + public.trouble(tenant_id) as total_outstanding, total_arrears,
                     accounts_in_arrears, payments_today, amount_received_today, invoices_by_status
                 from dashboard.metrics_well"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f47_a_view_that_fails_or_is_slow_for_one_tenant_costs_the_others_nothing() {
    let database = PostgresServer::shared().await.database().await;
    let (failing, slow, lacking) = (tenant(), tenant(), tenant());
    let others = tenants(50);
    for centre in [&failing, &slow, &lacking].into_iter().chain(&others) {
        open_books(&database, centre).await;
        pay(&mut database.client().await, centre, 1, 10).await;
    }
    break_views(&database, &failing, &slow, &lacking).await;
    let stack = Setup::new().database(&database).start().await;
    let end = Instant::now() + Duration::from_secs(60);

    // Dashboards of the three come and go all the time.
    let in_trouble = [&failing, &slow, &lacking].map(|centre| async {
        while Instant::now() < end {
            let (dashboard, joined) = join(&stack, centre).await;
            assert!(joined.data["metrics"].is_null(), "{}", joined.raw);
            dashboard.close().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    let well = async {
        let mut joins = 0;
        while Instant::now() < end {
            let joined = futures::future::join_all(others.iter().map(|centre| async {
                let (dashboard, joined) = join(&stack, centre).await;
                dashboard.close().await;
                joined
            }))
            .await;
            for joined in joined {
                joins += 1;
                assert!(joined.data["metrics"].is_object(), "join {joins}: {}", joined.raw);
                assert_eq!(payment_ids(&joined.data["payments"]), ["p-1"]);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        joins
    };
    let (joins, _) = futures::join!(well, futures::future::join_all(in_trouble));
    let failed: i64 = database.value("select last_value from public.failed").await;
    println!("{joins} joins of others; the failing view was asked {failed} times in 60 s");
    // After 0, 1, 3, 7, 15, 31 s.
    assert!((4..=8).contains(&failed), "asked {failed} times");
    // The payments of a tenant whose figures fail are shown.
    let (dashboard, joined) = join(&stack, &failing).await;
    assert_eq!(payment_ids(&joined.data["payments"]), ["p-1"]);
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f62_a_row_that_cannot_be_shown_is_left_out_and_named_once() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    pay(&mut database.client().await, &acorn, 1, 10).await;
    pay(&mut database.client().await, &acorn, 2, 10).await;
    database
        .run(&format!(
            "alter view dashboard.recent_payments rename to payments_well;
             create view dashboard.recent_payments as
                 select tenant_id, payment_id, amount::numeric, parent_name, child_name, invoice_number, received_at
                 from dashboard.payments_well
                 union all values
                     ('{acorn}', 'nameless', 5.00, null, 'Lwazi', 'INV-1', now()),
                     ('{acorn}', 'endless', 5.00, 'Thandi', 'Lwazi', 'INV-1', 'infinity'),
                     ('{acorn}', 'late', 5.00, 'Thandi', 'Lwazi', 'INV-1', '20000-01-01'),
                     ('{acorn}', 'split', 5.001, 'Thandi', 'Lwazi', 'INV-1', now()),
                     ('{acorn}', 'nothing', 'NaN', 'Thandi', 'Lwazi', 'INV-1', now()),
                     ('{acorn}', null, 5.00, 'Thandi', 'Lwazi', 'INV-1', now())"
        ))
        .await;
    let stack = Setup::new().database(&database).start().await;
    for _ in 0..3 {
        let (dashboard, joined) = join(&stack, &acorn).await;
        assert_eq!(joined.data["metrics"]["paymentsToday"], 2);
        assert_eq!(payment_ids(&joined.data["payments"]), ["p-2", "p-1"]);
        dashboard.close().await;
    }
    let lines = stack.gateway().log().lines();
    for row in ["nameless", "endless", "late", "split", "nothing", "null"] {
        let named = lines.iter().filter(|line| line.contains("left out") && line.contains(&format!("\"{row}\"")));
        assert_eq!(named.count(), 1, "{row} in {lines:#?}");
    }
    stack.finish().await;
}

/// Two parts that fit into a snapshot's second one by one, and not together. The payments' view is read twice.
#[tokio::test]
async fn f47_two_slow_parts_take_turns() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    pay(&mut database.client().await, &acorn, 1, 10).await;
    database
        .run(
            "alter view dashboard.metrics rename to metrics_quick;
             create view dashboard.metrics as
                 select m.* from (select pg_sleep(0.7)) slept cross join dashboard.metrics_quick m;
             alter view dashboard.recent_payments rename to payments_quick;
             create view dashboard.recent_payments as
                 select p.* from (select pg_sleep(0.25)) slept cross join dashboard.payments_quick p",
        )
        .await;
    let stack = Setup::new().database(&database).start().await;
    let (mut dashboard, joined) = join(&stack, &acorn).await;
    let mut message = joined;
    let (mut figures, mut payments) = (false, false);
    within("both parts", Duration::from_secs(30), async {
        loop {
            figures |= message.data["metrics"].is_object();
            payments |= message.data["payments"].is_array();
            if figures && payments {
                break;
            }
            message = dashboard.until("resync").await;
        }
    })
    .await;
    dashboard.close().await;
    stack.finish().await;
}

/// Longer than a wait for an answer.
async fn until_resync(dashboard: &mut Dashboard) -> Message {
    loop {
        match dashboard.next().await {
            Incoming::Message(message) if message.kind == "resync" => return message,
            Incoming::Message(_) => {}
            Incoming::Closed(code) => panic!("closed with {code:?}"),
        }
    }
}

#[tokio::test]
async fn f49_one_missing_view_costs_its_own_part_alone() {
    let database = PostgresServer::shared().await.database().await;
    let (acorn, elm) = (tenant(), tenant());
    for centre in [&acorn, &elm] {
        open_books(&database, centre).await;
        pay(&mut database.client().await, centre, 1, 10).await;
    }
    database.run("alter view dashboard.recent_payments rename to payments_away").await;
    let stack = Setup::new().database(&database).start().await;
    let (mut first, joined) = join(&stack, &acorn).await;
    assert_eq!((&joined.data["metrics"]["paymentsToday"], &joined.data["payments"]), (&json!(1), &Value::Null));
    let (mut second, joined) = join(&stack, &elm).await;
    assert_eq!((&joined.data["metrics"]["paymentsToday"], &joined.data["payments"]), (&json!(1), &Value::Null));
    // Live figures go on.
    record(&database, &acorn, 2).await;
    let live = async { while first.until("metrics_updated").await.data["paymentsToday"] != 2 {} };
    within("live figures", Duration::from_secs(10), live).await;

    database.run("alter view dashboard.payments_away rename to recent_payments").await;
    let back = Instant::now();
    let both = futures::future::join(until_resync(&mut first), until_resync(&mut second));
    let (here, there) = within("the payments", Duration::from_secs(40), both).await;
    assert_eq!(payment_ids(&here.data["payments"]), ["p-2", "p-1"]);
    assert_eq!(payment_ids(&there.data["payments"]), ["p-1"]);
    assert!(here.data["metrics"].is_object() && there.data["metrics"].is_object(), "{} {}", here.raw, there.raw);
    println!("payments {:?} after their view", back.elapsed());
    let lines = stack.gateway().log().lines();
    let said = lines.iter().filter(|line| line.contains("is missing") && line.contains("dashboard.recent_payments"));
    assert_eq!(said.count(), 1, "{lines:#?}");
    first.close().await;
    second.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f62_rows_without_a_usable_time_take_no_place() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    for number in 1..=25 {
        pay(&mut database.client().await, &acorn, number, 10).await;
    }
    database
        .run(&format!(
            "alter view dashboard.recent_payments rename to payments_well;
             create view dashboard.recent_payments as
                 select * from dashboard.payments_well
                 union all
                 select '{acorn}', 'odd-' || n, 5.00, 'Thandi', 'Lwazi', 'INV-1', case when n > 12 then timestamptz 'infinity' end
                 from generate_series(1, 25) n"
        ))
        .await;
    let stack = Setup::new().database(&database).start().await;
    let (dashboard, joined) = join(&stack, &acorn).await;
    let newest: Vec<String> = (6..=25).rev().map(|number| format!("p-{number}")).collect();
    assert_eq!(payment_ids(&joined.data["payments"]), newest);
    let lines = stack.gateway().log().lines();
    let named = lines.iter().filter(|line| line.contains("left out")).count();
    assert!((1..=10).contains(&named), "{named} rows are named");
    dashboard.close().await;
    stack.finish().await;
}

/// A database that is away for a minute: dashboards that came meanwhile, or were resynced, get their snapshot when it is back, and those
/// that have one are left alone.
async fn away_for_a_minute(stop: fn(&mut PostgresServer), start: impl AsyncFnOnce(&mut PostgresServer)) {
    let mut server = PostgresServer::start().await;
    let database = server.database().await;
    let (acorn, elm, oak) = (tenant(), tenant(), tenant());
    for centre in [&acorn, &elm, &oak] {
        open_books(&database, centre).await;
        pay(&mut database.client().await, centre, 1, 10).await;
    }
    let mut stack = Setup::new().database(&database).start().await;
    let (mut early, joined) = join(&stack, &acorn).await;
    assert_eq!(payment_ids(&joined.data["payments"]), ["p-1"]);
    let (mut resynced, _) = join(&stack, &elm).await;
    let mut receipts = vec![stack.publish(&elm, &payment()).await];
    resynced.until("payment_received").await;
    // The snapshot of the first join is good for others for a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop(&mut server);
    let away = Instant::now();
    let (mut late, joined) = join(&stack, &acorn).await;
    assert_eq!((&joined.data["metrics"], &joined.data["payments"]), (&Value::Null, &Value::Null));
    let (mut only, joined) = join(&stack, &oak).await;
    assert_eq!(joined.data["payments"], Value::Null);
    stack.redis().command(&["DEL", &stack.state_key(&elm), &stack.log_key(&elm)]).await;
    receipts.push(stack.publish(&elm, &payment()).await);
    assert_eq!(resynced.until("resync").await.data["payments"], Value::Null);
    // A dashboard without a snapshot comes back while there is none, and has missed nothing.
    let (resumed, _) = join(&stack, &oak).await;
    let cursor = resumed.cursor();
    resumed.close().await;
    let mut resumed = Dashboard::open(stack.addr()).await;
    let joined = resumed.resume(oak.as_str(), &token(&oak), &cursor).await;
    assert_eq!(joined.data["recovered"], true, "{}", joined.raw);
    while away.elapsed() < Duration::from_secs(60) {
        receipts.push(stack.publish(&acorn, &payment()).await);
        for dashboard in [&mut early, &mut late, &mut only, &mut resynced, &mut resumed] {
            dashboard.ping().await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    start(&mut server).await;
    let back = Instant::now();
    for dashboard in [&mut late, &mut only, &mut resynced, &mut resumed] {
        let resync = dashboard.until("resync").await;
        assert_eq!(payment_ids(&resync.data["payments"]), ["p-1"], "{}", resync.raw);
        assert_eq!(resync.data["metrics"]["paymentsToday"], 1);
    }
    println!("four snapshots, {:?} after the database", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(15), "{:?}", back.elapsed());
    receipts.push(stack.publish(&acorn, &payment()).await);
    for dashboard in [&mut early, &mut late] {
        let last = &receipts.last().unwrap().id;
        while dashboard.until("payment_received").await.id.as_ref() != Some(last) {}
    }
    // Each of them had one, and no event came twice or was taken back.
    let (early, late, only) = (early.close().await, late.close().await, only.close().await);
    assert_eq!((early.resyncs(), late.resyncs(), only.resyncs()), (0, 1, 1));
    assert_eq!(resumed.close().await.resyncs(), 1);
    let mut oracle = Oracle::new(receipts);
    oracle.judge_to_the_end("early", &early);
    oracle.judge_to_the_end("late", &late);
    oracle.judge("resynced", &resynced.close().await);
    stack.finish().await;
}

#[tokio::test]
async fn f49_a_snapshot_comes_when_a_frozen_database_is_back() {
    away_for_a_minute(|server| server.freeze(), async |server| server.thaw()).await;
}

#[tokio::test]
async fn f49_a_snapshot_comes_when_a_killed_database_is_back() {
    away_for_a_minute(PostgresServer::kill9, async |server| server.restart().await).await;
}

#[tokio::test]
async fn f49_what_does_not_exist_is_not_asked_for_again() {
    let database = PostgresServer::shared().await.database().await;
    database
        .run(
            "create sequence public.reads;
             alter view dashboard.recent_payments rename to payments_uncounted;
             create view dashboard.recent_payments as
                 select p.* from (select nextval('public.reads')) counted left join dashboard.payments_uncounted p on true",
        )
        .await;
    let stack = Setup::new().database(&database).start().await;
    let (mut stranger, joined) = join(&stack, &tenant()).await;
    assert_eq!((&joined.data["metrics"], &joined.data["payments"]), (&Value::Null, &json!([])));
    assert!(stranger.is_silent_for(Duration::from_secs(8)).await);
    assert_eq!(database.value::<i64>("select last_value from public.reads").await, 1);
    stranger.close().await;

    database.run("drop view dashboard.metrics; drop view dashboard.recent_payments").await;
    let (mut dashboard, joined) = join(&stack, &tenant()).await;
    assert_eq!((&joined.data["metrics"], &joined.data["payments"]), (&Value::Null, &Value::Null));
    assert!(dashboard.is_silent_for(Duration::from_secs(8)).await);
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f70_restored_comes_with_the_resync_that_it_belongs_to() {
    let server = PostgresServer::start().await;
    let database = server.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    let mut stack = Setup::new().database(&database).start().await;
    let (mut dashboard, _) = join(&stack, &acorn).await;
    stack.publish(&acorn, &payment()).await;
    dashboard.until("payment_received").await;
    stack.redis_mut().kill9();
    dashboard.until("degraded").await;
    // A database that is slow to say no.
    server.freeze();
    stack.redis_mut().restart_empty().await;
    let (resync, came) = (dashboard.expect("resync").await, Instant::now());
    assert!(resync.data["payments"].is_null(), "{}", resync.raw);
    dashboard.expect("restored").await;
    assert!(came.elapsed() < Duration::from_millis(500), "{:?}", came.elapsed());
    server.thaw();
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f54_without_real_time_snapshots_need_no_redis() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    pay(&mut database.client().await, &acorn, 1, 10).await;
    let mut stack = Setup::new().env("REALTIME_DASHBOARD", "false").database(&database).start().await;
    stack.redis_mut().kill9();
    eventually("the gateway has noticed", Duration::from_secs(30), async || {
        (stack.gateway().metric("gateway_redis_up", &[]).await == 0.0).then_some(())
    })
    .await;
    // Longer than a proof of delivery counts.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let begun = Instant::now();
    let snapshot = get(&stack, &acorn).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!((&snapshot["epoch"], &snapshot["seq"]), (&Value::Null, &Value::Null));
    assert_eq!(payment_ids(&snapshot["payments"]), ["p-1"]);
    assert_eq!(snapshot["metrics"]["paymentsToday"], 1);
    http::get(stack.gateway().internal, "/readyz").await.expect(200);
    stack.finish().await;
}
