//! Backlogs: condensed whatever a tenant's figures and rows are like, and never at another tenant's cost.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use publisher::TenantId;

use crate::harness::books::{self, emit, emit_all, fates};
use crate::harness::ledger::Message;
use crate::harness::{
    Dashboard, Database, Gateway, PostgresServer, Setup, Stack, Token, eventually, oracle, tenant, within,
};

/// The figures that are null together.
const FIGURES: [&str; 6] = [
    "totalOutstanding",
    "totalArrears",
    "accountsInArrears",
    "paymentsToday",
    "amountReceivedToday",
    "invoicesByStatus",
];

const STATUS: &str = r#"{"invoiceId":"i","invoiceNumber":"INV-1","previousStatus":"PENDING","newStatus":"PAID"}"#;

fn has_null_figures(event: &Message) -> bool {
    let nulls = FIGURES.iter().filter(|field| event.data[**field].is_null()).count();
    assert!(nulls == 0 || nulls == FIGURES.len(), "{}", event.raw);
    assert!(event.data["asOf"].is_string(), "{}", event.raw);
    nulls > 0
}

/// So many status changes in one transaction.
async fn flood(database: &Database, tenant: &TenantId, rows: u32) {
    database
        .run(&format!(
            "select count(dashboard.emit('{tenant}', 'invoice_status_changed', '{STATUS}')) from generate_series(1, {rows})"
        ))
        .await;
}

/// Events of a kind that this one stands for, itself included.
fn stands_for(event: &Message, kind: &str) -> i64 {
    match &*event.kind {
        "metrics_updated" => event.data["condensed"][kind].as_i64().unwrap_or_default(),
        other => i64::from(other == kind),
    }
}

/// Reads until so many events of a kind were shown, singly or condensed; returns the events.
async fn until_shown(dashboard: &mut Dashboard, kind: &str, wanted: i64, limit: Duration) -> Vec<Message> {
    let mut events: Vec<Message> = Vec::new();
    let shown = |events: &[Message]| events.iter().map(|event| stands_for(event, kind)).sum::<i64>();
    within(&format!("{wanted} of {kind}"), limit, async {
        while shown(&events) < wanted {
            events.push(dashboard.until_event().await);
        }
    })
    .await;
    assert_eq!(shown(&events), wanted, "of {kind}");
    events
}

async fn fates_become(database: &Database, tenant: &TenantId, wanted: &[(&str, i64)]) {
    let wanted: BTreeMap<String, i64> = wanted.iter().map(|(fate, rows)| ((*fate).to_owned(), *rows)).collect();
    let mut last = BTreeMap::new();
    let begun = Instant::now();
    while last != wanted {
        assert!(begun.elapsed() < Duration::from_secs(20), "{last:?} instead of {wanted:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        last = fates(database, tenant).await;
    }
}

/// After 5,000 changes of a tenant without figures comes a payment: all are on the dashboard within seconds, as null figures with
/// counts.
async fn f63_flood(stack: &Stack, database: &Database) {
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    flood(database, &acorn, 5000).await;
    let begun = Instant::now();
    emit(&mut database.client().await, &acorn, 1).await;
    let events = until_shown(&mut dashboard, "invoice_status_changed", 5000, Duration::from_secs(30)).await;
    let condensed: Vec<_> = events.iter().filter(|event| event.kind == "metrics_updated").collect();
    assert!(!condensed.is_empty() && condensed.iter().all(|event| has_null_figures(event)));
    if events.iter().all(|event| stands_for(event, "payment_received") == 0) {
        until_shown(&mut dashboard, "payment_received", 1, Duration::from_secs(10)).await;
    }
    println!("a payment behind 5,000 rows came after {:?}", begun.elapsed());
    eventually("every row has its fate", Duration::from_secs(10), async || {
        (!fates(database, &acorn).await.contains_key("pending")).then_some(())
    })
    .await;
    oracle::assert_rate(stack.redis(), &stack.prefix, &acorn, 10).await;
    dashboard.close().await;
}

#[tokio::test]
async fn f63_a_flood_of_a_tenant_that_the_view_does_not_know_is_condensed() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    f63_flood(&stack, &database).await;
    stack.finish().await;
}

#[tokio::test]
async fn f63_a_flood_without_the_views_is_condensed() {
    let database = PostgresServer::shared().await.database().await;
    database.run("drop view dashboard.metrics; drop view dashboard.recent_payments").await;
    let stack = Setup::new().database(&database).start().await;
    f63_flood(&stack, &database).await;
    stack.finish().await;
}

#[tokio::test]
async fn f63_a_large_flood_is_condensed_in_portions_that_commit() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let (acorn, calm) = (tenant(), tenant());
    let (mut flooded, mut other) = (stack.dashboard(&acorn).await, stack.dashboard(&calm).await);
    let done = Cell::new(false);
    let shown = async {
        let events = until_shown(&mut flooded, "invoice_status_changed", 35_000, Duration::from_secs(90)).await;
        done.set(true);
        events
    };
    // Meanwhile another tenant's payments go on.
    let watching = async {
        let mut longest = 0.0_f64;
        for number in 0.. {
            let open = "select coalesce(max(extract(epoch from clock_timestamp() - xact_start)), 0)::float8 from pg_stat_activity
                where datname = current_database() and application_name = 'crechebooks-relay' and state <> 'idle'";
            longest = longest.max(database.value::<f64>(open).await);
            let id = emit(&mut database.client().await, &calm, number).await;
            assert_eq!(other.until_event().await.id, Some(id));
            if done.get() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        longest
    };
    // Without the checks of `emit`, which would take most of the test's time.
    let flood = format!(
        "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at)
         select gen_random_uuid(), '{acorn}', 'invoice_status_changed', '{STATUS}', now() from generate_series(1, 35000)"
    );
    let ((), longest, events) = futures::join!(database.run(&flood), watching, shown);
    let counts: Vec<i64> = events.iter().map(|event| stands_for(event, "invoice_status_changed")).collect();
    println!("portions {counts:?}, the longest transaction {longest} s");
    assert!(counts.iter().all(|count| *count <= 5_000), "{counts:?}");
    // A debug build on a busy machine; the next leader's term waits for it.
    assert!(longest < 8.0, "a transaction of the relay was open for {longest} s");
    flooded.close().await;
    other.close().await;
    stack.finish().await;
}

/// A tenant whose figures can't be had, in this way; the reference constraint that would prevent it is dropped.
async fn f45_flood_with(database: &Database, acorn: &TenantId, break_figures: &str) {
    books::open_books(database, acorn).await;
    database.run("alter table billing.tenants drop constraint if exists tenants_time_zone_is_known").await;
    database.run(break_figures).await;
    let stack = Setup::new().database(database).start().await;
    let (mut dashboard, hazel) = (stack.dashboard(acorn).await, tenant());
    books::open_books(database, &hazel).await;
    let mut well = stack.dashboard(&hazel).await;
    flood(database, acorn, 200).await;
    flood(database, &hazel, 200).await;
    let events = until_shown(&mut dashboard, "invoice_status_changed", 200, Duration::from_secs(15)).await;
    let condensed = events.iter().filter(|event| !event.data["condensed"].is_null()).all(has_null_figures);
    assert!(condensed, "{events:?}");
    // The other tenant keeps its figures.
    let events = until_shown(&mut well, "invoice_status_changed", 200, Duration::from_secs(15)).await;
    assert!(events.iter().all(|event| event.kind != "metrics_updated" || !has_null_figures(event)));
    eventually("nothing waits", Duration::from_secs(20), async || {
        (!fates(database, acorn).await.contains_key("pending")).then_some(())
    })
    .await;
    dashboard.close().await;
    well.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f45_a_time_zone_that_is_none_leaves_no_backlog_stuck() {
    let (database, acorn) = (PostgresServer::shared().await.database().await, tenant());
    f45_flood_with(
        &database,
        &acorn,
        &format!("update billing.tenants set time_zone = 'Mars/Olympus' where id = '{acorn}'"),
    )
    .await;
}

#[tokio::test]
async fn f45_a_sum_that_overflows_leaves_no_backlog_stuck() {
    let (database, acorn) = (PostgresServer::shared().await.database().await, tenant());
    let many = format!(
        "insert into billing.invoices (tenant_id, id, number, parent_id, child_id, amount, status, issued_on, due_on)
         select '{acorn}', 'big-' || n, 'BIG-' || n, 'par-1', 'chi-1', 9999999999.99, 'PENDING', current_date, current_date
         from generate_series(1, 3) n"
    );
    f45_flood_with(&database, &acorn, &many).await;
}

#[tokio::test]
async fn f45_a_view_that_is_slow_for_a_tenant_leaves_no_backlog_stuck() {
    let (database, acorn) = (PostgresServer::shared().await.database().await, tenant());
    let slow = format!(
        "alter view dashboard.metrics rename to metrics_of_all;
         create view dashboard.metrics as select metrics_of_all.* from dashboard.metrics_of_all
         where tenant_id <> '{acorn}' or pg_sleep(60) is not null"
    );
    f45_flood_with(&database, &acorn, &slow).await;
}

/// Whatever is wrong with a row, past `emit`: it is refused by itself, and the rest of its tenant's backlog is condensed.
#[tokio::test]
async fn f45_rows_that_break_a_rule_are_refused_by_themselves_in_a_backlog_too() {
    let database = PostgresServer::shared().await.database().await;
    database.run("alter table dashboard.outbox drop constraint if exists outbox_moments").await;
    let acorn = tenant();
    let figures = r#""totalOutstanding":1,"totalArrears":1,"accountsInArrears":1,"paymentsToday":1,"amountReceivedToday":1,"invoicesByStatus":{},"asOf":"2026-11-23T08:15:00Z""#;
    let bad = [
        ("payment_received", r#"{"amount":-1}"#.to_owned(), "now()", "now()"),
        ("payment_received", "[1]".to_owned(), "now()", "now()"),
        ("metrics_updated", r#"{"condensed":7}"#.to_owned(), "now()", "now()"),
        ("metrics_updated", format!(r#"{{{figures},"condensed":{{"payment_received":"x"}}}}"#), "now()", "now()"),
        ("metrics_updated", format!(r#"{{{figures},"condensed":{{"payment_received":1e300}}}}"#), "now()", "now()"),
        ("invoice_status_changed", STATUS.to_owned(), "'infinity'", "now()"),
        ("invoice_status_changed", STATUS.to_owned(), "'20000-01-01 00:00Z'", "now()"),
        ("invoice_status_changed", STATUS.to_owned(), "now()", "'-infinity'"),
        ("invoice_status_changed", format!(r#"{{"invoiceId":"{}"}}"#, "x".repeat(200_000)), "now()", "now()"),
    ];
    flood(&database, &acorn, 40).await;
    for (kind, data, happened_at, recorded_at) in &bad {
        let insert = format!(
            "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at, recorded_at)
             values (gen_random_uuid(), '{acorn}', '{kind}', '{data}', {happened_at}, {recorded_at})"
        );
        database.run(&insert).await;
    }
    // Counts that overflow together.
    for _ in 0..2 {
        let data = format!(r#"{{{figures},"condensed":{{"arrears_alert":9007199254740991}}}}"#);
        database.run(&format!("select dashboard.emit('{acorn}', 'metrics_updated', '{data}')")).await;
    }
    flood(&database, &acorn, 40).await;
    let stack = Setup::new().database(&database).start().await;
    eventually("nothing waits", Duration::from_secs(20), async || {
        (!fates(&database, &acorn).await.contains_key("pending")).then_some(())
    })
    .await;
    let fates = fates(&database, &acorn).await;
    assert_eq!(fates.get("refused"), Some(&(bad.len() as i64)), "{fates:?}");
    assert_eq!(fates.values().sum::<i64>(), 80 + 2 + bad.len() as i64 + fates["published"].min(1), "{fates:?}");
    stack.finish().await;
}

/// The database refuses what condensing writes: rows go out one by one, and other tenants are condensed.
#[tokio::test]
async fn f45_a_backlog_that_cannot_be_condensed_goes_out_one_by_one() {
    let database = PostgresServer::shared().await.database().await;
    let (acorn, hazel) = (tenant(), tenant());
    database
        .run(&format!(
            "create function public.no() returns trigger language plpgsql as $$ begin raise exception 'not this'; end $$;
             create trigger no before insert on dashboard.outbox for each row
             when (new.tenant_id = '{acorn}' and new.type = 'metrics_updated') execute function public.no()"
        ))
        .await;
    let stack = Setup::new().database(&database).start().await;
    let (mut dashboard, mut well) = (stack.dashboard(&acorn).await, stack.dashboard(&hazel).await);
    let ids = emit_all(&database, &acorn, 0..80).await;
    flood(&database, &hazel, 200).await;
    until_shown(&mut well, "invoice_status_changed", 200, Duration::from_secs(15)).await;
    for id in &ids {
        assert_eq!(dashboard.until_event().await.id.as_ref(), Some(id));
    }
    fates_become(&database, &acorn, &[("published", 80)]).await;
    dashboard.close().await;
    well.close().await;
    stack.finish().await;
}

/// Written past `emit`, by a backfill or a restore: such a row is refused by itself, and the relay goes on.
#[tokio::test]
async fn f46_a_moment_that_cannot_be_shown_is_refused_and_panics_nobody() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    let insert = |happened_at: &str, recorded_at: &str| {
        format!(
            "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at, recorded_at)
             values (gen_random_uuid(), '{acorn}', 'invoice_status_changed', '{STATUS}', {happened_at}, {recorded_at})"
        )
    };
    let moments = [
        ("'20000-01-01 00:00Z'", "now()"),
        ("'294276-12-31 00:00Z'", "now()"),
        ("'infinity'", "now()"),
        ("'-infinity'", "now()"),
        ("'4713-01-01 00:00Z BC'", "now()"),
        ("now()", "'infinity'"),
        ("now()", "'-infinity'"),
        ("now()", "'20000-01-01 00:00Z'"),
    ];
    // The table refuses them,
    for (happened_at, recorded_at) in moments {
        let statement = sqlx::AssertSqlSafe(insert(happened_at, recorded_at));
        let refused = sqlx::raw_sql(statement).execute(&mut database.client().await).await;
        assert!(
            refused.is_err_and(|error| error.to_string().contains("outbox_moments")),
            "{happened_at} {recorded_at}"
        );
    }
    // but not those that a dump or an older schema has brought.
    let constraint: String =
        database.value("select pg_get_constraintdef(oid) from pg_constraint where conname = 'outbox_moments'").await;
    database.run("alter table dashboard.outbox drop constraint outbox_moments").await;
    for (happened_at, recorded_at) in moments {
        database.run(&insert(happened_at, recorded_at)).await;
    }
    let restored = format!("alter table dashboard.outbox add constraint outbox_moments {constraint}");
    assert!(restored.ends_with("NOT VALID"), "{restored}");
    database.run(&restored).await;

    let mut stack = Setup::new().gateways(2).database(&database).start().await;
    let mut dashboard = stack.dashboard(&acorn).await;
    let id = emit(&mut database.client().await, &acorn, 1).await;
    assert_eq!(dashboard.until_event().await.id, Some(id));
    fates_become(&database, &acorn, &[("published", 1), ("refused", moments.len() as i64)]).await;
    for gateway in &mut stack.gateways {
        gateway.assert_unharmed();
    }
    dashboard.close().await;
    stack.finish().await;
}

/// Rows of a type that only a later version knows wait for it; they hold up nothing, in their tenant and in others.
#[tokio::test]
async fn f48_rows_of_a_later_version_wait_for_a_newer_relay() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    let later = |tenant: &str, kind: &str, data: &str| {
        format!(
            "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at)
             values (gen_random_uuid(), '{tenant}', '{kind}', '{data}', now())"
        )
    };
    for kind in ["refund_issued", "refund_v2", "invoice.voided", "Refund-2:issued"] {
        database.run(&later(acorn.as_str(), kind, "{}")).await;
    }
    let condensed = r#"{"totalOutstanding":null,"totalArrears":null,"accountsInArrears":null,"paymentsToday":null,"amountReceivedToday":null,"invoicesByStatus":null,"asOf":"2026-11-23T08:15:00Z","condensed":{"refund_issued":3}}"#;
    database.run(&later(acorn.as_str(), "metrics_updated", condensed)).await;
    // Tenants with nothing but such rows, more than one fetch takes up.
    database
        .run(
            "insert into dashboard.outbox (event_id, tenant_id, type, data, happened_at)
             select gen_random_uuid(), 'a-' || n, 'refund_issued', '{}', now() from generate_series(1, 2500) n",
        )
        .await;
    let stack = Setup::new().database(&database).start().await;
    let mut dashboard = stack.dashboard(&acorn).await;
    let last: TenantId = format!("z-{acorn}").parse().unwrap();
    let mut at_the_end = stack.dashboard(&last).await;
    for number in 0..3 {
        let id = emit(&mut database.client().await, &acorn, number).await;
        assert_eq!(dashboard.until_event().await.id, Some(id));
        let id = emit(&mut database.client().await, &last, number).await;
        assert_eq!(at_the_end.until_event().await.id, Some(id));
    }
    // In a backlog they are not condensed.
    flood(&database, &acorn, 200).await;
    until_shown(&mut dashboard, "invoice_status_changed", 200, Duration::from_secs(15)).await;
    eventually("all others are done", Duration::from_secs(10), async || {
        (fates(&database, &acorn).await.get("pending") == Some(&5)).then_some(())
    })
    .await;
    assert_eq!(fates(&database, &acorn).await.get("refused"), None);
    // An operator can see them.
    stack.gateway().metric_becomes("relay_pending", &[], 2505.0).await;
    let named = stack.gateway().log().lines();
    let named: Vec<_> = named.iter().filter(|line| line.contains("wait for a newer relay")).collect();
    assert_eq!(named.len(), 1, "{named:?}");
    dashboard.close().await;
    at_the_end.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f50_when_a_flood_is_over_twenty_payments_arrive_one_by_one() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    flood(&database, &acorn, 200).await;
    until_shown(&mut dashboard, "invoice_status_changed", 200, Duration::from_secs(15)).await;
    eventually("every row has its fate", Duration::from_secs(10), async || {
        (!fates(&database, &acorn).await.contains_key("pending")).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    // Fewer than OUTBOX_CONDENSE_AFTER, and more than go out in one second.
    for id in emit_all(&database, &acorn, 0..20).await {
        let event = dashboard.until_event().await;
        assert_eq!(event.id, Some(id), "{}", event.raw);
    }
    dashboard.close().await;
    stack.finish().await;
}

/// An administrator's open transaction holds a row of a calm tenant and a row of a flooded one.
#[tokio::test]
async fn f45_rows_that_another_session_has_locked_hold_up_their_tenants_alone() {
    let database = PostgresServer::shared().await.database().await;
    // The dashboards' gateway has no relay, and doesn't expect pongs while the test reads one dashboard alone.
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "60").start().await;
    let (calm, flooded, other) = (tenant(), tenant(), tenant());
    let mut of_calm = stack.dashboard(&calm).await;
    let mut of_flooded = stack.dashboard(&flooded).await;
    let mut of_other = stack.dashboard(&other).await;
    let ids = emit_all(&database, &calm, 0..2).await;
    flood(&database, &flooded, 60).await;
    let mut administrator = database.client().await;
    let lock = "begin; select from dashboard.outbox where id in (select min(id) from dashboard.outbox group by tenant_id) for update";
    sqlx::raw_sql(lock).execute(&mut administrator).await.unwrap();

    let mut environment = Setup::new().database(&database).environment().to_vec();
    environment.push(("REDIS_URL".to_owned(), stack.redis().url()));
    environment.push(("REDIS_PREFIX".to_owned(), stack.prefix.clone()));
    stack.gateways.push(Gateway::start(&environment).await);
    for id in &ids {
        assert_eq!(of_calm.until_event().await.id.as_ref(), Some(id));
    }
    let locked = Instant::now();
    for number in 0.. {
        let id = emit(&mut database.client().await, &other, number).await;
        let event = within("an event of another tenant", Duration::from_secs(4), of_other.until_event()).await;
        assert_eq!(event.id, Some(id));
        if locked.elapsed() > Duration::from_secs(12) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(fates(&database, &calm).await, BTreeMap::from([("pending".to_owned(), 1), ("published".to_owned(), 1)]));
    assert_eq!(database.value::<i64>("select term from dashboard.relay").await, 1, "the first leader leads");

    sqlx::raw_sql("commit").execute(&mut administrator).await.unwrap();
    fates_become(&database, &calm, &[("published", 2)]).await;
    let id = emit(&mut database.client().await, &calm, 2).await;
    assert_eq!(of_calm.until_event().await.id, Some(id), "nothing is published twice");
    until_shown(&mut of_flooded, "invoice_status_changed", 60, Duration::from_secs(30)).await;
    for dashboard in [of_calm, of_flooded, of_other] {
        dashboard.close().await;
    }
    stack.finish().await;
}

/// The leader freezes in the transaction that condenses, which holds off the next leader's term.
#[tokio::test]
async fn f35_a_leader_that_freezes_while_it_condenses_is_succeeded() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    books::open_books(&database, &acorn).await;
    // Makes the transaction long enough to be met.
    database
        .run(&format!(
            "alter view dashboard.metrics rename to metrics_of_all;
             create view dashboard.metrics as select metrics_of_all.* from dashboard.metrics_of_all
             where tenant_id <> '{acorn}' or pg_sleep(0.7) is not null"
        ))
        .await;
    let mut stack = Setup::new().database(&database).start().await;
    stack.gateway().metric_becomes("relay_leader", &[], 1.0).await;
    stack.add_gateway().await;
    let (leader, successor) = (&stack.gateways[0], &stack.gateways[1]);
    let mut dashboard = Dashboard::joined(successor.public, acorn.as_str(), &Token::of(acorn.as_str()).sign()).await;
    // The databases of other tests come from the same template: their tables have the same numbers.
    let held = "select exists (select from pg_locks join pg_database on pg_database.oid = database
        where datname = current_database() and relation = 'dashboard.relay'::regclass and mode = 'RowShareLock')";
    let mut client = database.client().await;
    let mut is_held = async || sqlx::query_scalar::<_, bool>(held).fetch_one(&mut client).await.unwrap();
    let mut emitted = 0;
    let mut frozen;
    loop {
        flood(&database, &acorn, 6000).await;
        emitted += 6000;
        within("the leader condenses", Duration::from_secs(20), async {
            while !is_held().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        leader.freeze();
        frozen = Instant::now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        if is_held().await {
            break;
        }
        leader.thaw();
    }
    successor.metric_until("relay_leader", &[], Duration::from_secs(20), "is 1", |leads| leads == 1.0).await;
    println!("the successor leads {:?} after the freeze", frozen.elapsed());
    until_shown(&mut dashboard, "invoice_status_changed", emitted, Duration::from_secs(40)).await;
    println!("the backlog is gone {:?} after the freeze", frozen.elapsed());
    leader.thaw();
    leader.metric_becomes("relay_leader", &[], 0.0).await;
    dashboard.close().await;
    stack.finish().await;
}

fn alert(number: u32) -> String {
    format!(r#"{{"parentId":"par-{number}","parentName":"{}","totalArrears":600.00,"daysOverdue":3}}"#, books::PARENT)
}

async fn alerts(database: &Database, tenant: &TenantId, count: u32) {
    let mut client = database.client().await;
    let mut transaction = sqlx::Connection::begin(&mut client).await.unwrap();
    for number in 0..count {
        sqlx::query("select dashboard.emit($1, 'arrears_alert', $2::jsonb)")
            .bind(tenant.as_str())
            .bind(alert(number))
            .execute(&mut *transaction)
            .await
            .unwrap();
    }
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn f50_alerts_are_not_condensed_below_500_and_payments_do_not_wait_behind_them() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    alerts(&database, &acorn, 200).await;
    emit_all(&database, &acorn, 0..100).await;
    let begun = Instant::now();
    let mut events = until_shown(&mut dashboard, "payment_received", 100, Duration::from_secs(15)).await;
    println!("100 payments behind 200 alerts came after {:?}", begun.elapsed());
    let shown: i64 = events.iter().map(|event| stands_for(event, "arrears_alert")).sum();
    if shown < 200 {
        events.extend(until_shown(&mut dashboard, "arrears_alert", 200 - shown, Duration::from_secs(60)).await);
    }
    assert!(events.iter().all(|event| event.data["condensed"]["arrears_alert"].is_null()), "alerts were condensed");
    let parents: Vec<_> = events.iter().filter_map(|event| event.data["parentId"].as_str()).collect();
    let expected: Vec<_> = (0..200).map(|number| format!("par-{number}")).collect();
    assert_eq!(parents, expected);
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f50_from_500_alerts_on_they_are_condensed() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let acorn = tenant();
    let mut dashboard = stack.dashboard(&acorn).await;
    alerts(&database, &acorn, 600).await;
    let events = until_shown(&mut dashboard, "arrears_alert", 600, Duration::from_secs(20)).await;
    assert!(events.iter().any(|event| stands_for(event, "arrears_alert") >= 500), "{} events", events.len());
    dashboard.close().await;
    stack.finish().await;
}
