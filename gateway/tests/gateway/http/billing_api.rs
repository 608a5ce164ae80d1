//! The reference API node: from `POST /payments` to the dashboards, and what it refuses.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::billing_api::BillingApi;
use crate::harness::{Dashboard, Database, PostgresServer, Setup, Stack, eventually};

const CENTRE: &str = "acorn-montessori";
/// A family is three days behind by the centre's date, which is a day ahead of UTC's in the late evening.
const BEHIND: &str = "update billing.invoices set due_on = today - 3, issued_on = today - 30
    from (select (now() at time zone 'Africa/Johannesburg')::date as today) centre where id = 'inv-001'";

async fn start() -> (Database, BillingApi, Stack, Dashboard) {
    let database = PostgresServer::shared().await.database().await;
    let api = BillingApi::start(&database).await;
    let stack = Setup::new().database(&database).start().await;
    // The sweep at its start has alerted of the families that are behind.
    eventually("the first sweep is told", Duration::from_secs(10), async || {
        let told = "select count(*) from dashboard.outbox where fate = 'published' and type = 'arrears_alert'";
        (database.value::<i64>(told).await == SEEDED).then_some(())
    })
    .await;
    let dashboard = stack.dashboard(&CENTRE.parse().unwrap()).await;
    (database, api, stack, dashboard)
}

/// Families that are behind in the seed: one in six of 24.
const SEEDED: i64 = 4;

fn payment(invoice: &str, amount: f64) -> Value {
    json!({ "tenantId": CENTRE, "invoiceId": invoice, "amount": amount })
}

/// The next event that isn't figures.
async fn next_fact(dashboard: &mut Dashboard) -> crate::harness::ledger::Message {
    loop {
        let event = dashboard.until_event().await;
        if event.kind != "metrics_updated" {
            return event;
        }
    }
}

/// Events since the first sweep.
async fn rows(database: &Database) -> i64 {
    database.value::<i64>("select count(*) from dashboard.outbox").await - SEEDED
}

#[tokio::test]
async fn a_payment_shows_with_its_status_and_the_figures_of_the_books() {
    let (database, api, stack, mut dashboard) = start().await;
    let before = api.get(&format!("/tenants/{CENTRE}/metrics")).await;
    // Invoice 1 is this month's of family 1, of R1850.
    let receipt = api.post("/payments", None, &payment("inv-001", 850.0)).await.expect(201).json();
    assert_eq!((&receipt["balance"], &receipt["invoiceStatus"]), (&json!(1000.0), &json!("PENDING")));
    let part = next_fact(&mut dashboard).await;
    assert_eq!((&*part.kind, &part.data["paymentId"]), ("payment_received", &receipt["paymentId"]));
    assert!(part.raw.contains(r#""amount":850.00,"parentName":"Thandi Mokoena","childName":"Lwazi""#), "{}", part.raw);

    let receipt = api.post("/payments", None, &payment("inv-001", 1000.0)).await.expect(201).json();
    assert_eq!((&receipt["balance"], &receipt["invoiceStatus"]), (&json!(0.0), &json!("PAID")));
    assert_eq!(next_fact(&mut dashboard).await.kind, "payment_received");
    let settled = next_fact(&mut dashboard).await;
    assert_eq!(settled.kind, "invoice_status_changed");
    assert_eq!((&settled.data["previousStatus"], &settled.data["newStatus"]), (&json!("PENDING"), &json!("PAID")));

    let mut after = api.get(&format!("/tenants/{CENTRE}/metrics")).await;
    let owed = |metrics: &Value| metrics["totalOutstanding"].as_f64().unwrap();
    assert_eq!(owed(&before) - owed(&after), 1850.0);
    loop {
        let mut figures = dashboard.until("metrics_updated").await.data;
        // They differ in nothing but the moment they are of.
        for metrics in [&mut figures, &mut after] {
            metrics.as_object_mut().unwrap().remove("asOf");
        }
        if figures == after {
            break;
        }
    }
    assert_eq!(rows(&database).await, 3);
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn what_is_refused_leaves_nothing_behind() {
    let (database, api, stack, dashboard) = start().await;
    for (body, status, said) in [
        (payment("inv-001", 1850.01), 422, "amount: exceeds the 1850.00"),
        (payment("inv-001", 0.0), 422, "amount: must be more than 0"),
        (payment("inv-001", 0.001), 400, "two decimals"),
        (payment("inv-999", 10.0), 404, "invoice: not found"),
        (payment("inv-049", 10.0), 409, "is PAID"),
        (json!({ "tenantId": "other", "invoiceId": "inv-001", "amount": 1 }), 404, "invoice: not found"),
        (json!({ "tenantId": "a b", "invoiceId": "inv-001", "amount": 1 }), 400, "tenantId"),
        (json!({ "tenantId": CENTRE, "amount": 1 }), 400, "invoiceId"),
    ] {
        let refusal = api.post("/payments", None, &body).await.expect(status);
        assert!(refusal.body.contains(said), "{body}: {}", refusal.body);
    }
    for (status, expected) in [("PAID", 422), ("DRAFT", 422), ("nonsense", 422)] {
        let body = json!({ "tenantId": CENTRE, "status": status });
        api.post("/invoices/inv-001/status", None, &body).await.expect(expected);
    }
    let body = json!({ "tenantId": CENTRE, "status": "PENDING" });
    api.post("/invoices/inv-049/status", None, &body).await.expect(409);
    assert_eq!(rows(&database).await, 0);
    let paid: i64 = database.value("select count(*) from billing.payments where received_at >= current_date").await;
    assert_eq!(paid, 0);
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn a_retry_with_the_same_key_pays_once() {
    let (database, api, stack, mut dashboard) = start().await;
    let body = payment("inv-002", 100.0);
    let answers = (0..5).map(|_| api.post("/payments", Some("eft-1"), &body));
    let answers = futures::future::join_all(answers).await;
    let first = answers[0].json();
    assert!(answers.iter().all(|answer| answer.json()["paymentId"] == first["paymentId"]));
    assert_eq!(rows(&database).await, 1);
    assert_eq!(next_fact(&mut dashboard).await.data["paymentId"], first["paymentId"]);
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f72_a_retry_is_given_the_first_answer_and_a_key_belongs_to_one_payment() {
    let (database, api, stack, dashboard) = start().await;
    let body = payment("inv-002", 100.0);
    let first = api.post("/payments", Some("eft-1"), &body).await.expect(201).json();
    // Another payment, and the last one: the invoice is paid now.
    api.post("/payments", Some("eft-2"), &payment("inv-002", 50.0)).await.expect(201);
    let rest: f64 =
        database.value("select (amount - amount_paid)::float8 from billing.invoices where id = 'inv-002'").await;
    api.post("/payments", None, &payment("inv-002", rest)).await.expect(201);
    let again = api.post("/payments", Some("eft-1"), &body).await.expect(200).json();
    assert_eq!(again, first);

    for other in [payment("inv-002", 100.01), payment("inv-003", 100.0), payment("inv-999", 100.0)] {
        let refusal = api.post("/payments", Some("eft-1"), &other).await.expect(422);
        assert!(refusal.body.contains("Idempotency-Key"), "{}", refusal.body);
    }
    // At once, on two invoices: one of them is paid.
    let (third, fourth) = (payment("inv-003", 10.0), payment("inv-004", 10.0));
    let (one, two) =
        futures::join!(api.post("/payments", Some("eft-3"), &third), api.post("/payments", Some("eft-3"), &fourth));
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 422], "{} {}", one.body, two.body);
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn f72_a_bad_time_zone_is_refused_and_one_of_before_fails_no_other_sweep() {
    let (database, api, stack, dashboard) = start().await;
    let centre = "insert into billing.tenants (id, name, time_zone) values ('a-broken', 'Broken', 'Mars/Olympus')";
    let refused = sqlx::raw_sql(centre).execute(&mut database.client().await).await.unwrap_err().to_string();
    assert!(refused.contains("Mars/Olympus"), "{refused}");
    let before = "alter table billing.tenants drop constraint tenants_time_zone_is_known";
    let family = "insert into billing.parents (tenant_id, id, name) values ('a-broken', 'par-1', 'X')";
    database.run(&format!("{before}; {centre}; {family}")).await;
    database.run(BEHIND).await;
    let swept = api.post("/arrears/sweep", None, &json!({})).await.expect(200).json();
    assert_eq!((&swept["alerts"], &swept["failed"]), (&json!(1), &json!(["a-broken"])));
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn a_status_is_told_when_it_changes_and_only_then() {
    let (database, api, stack, mut dashboard) = start().await;
    for _ in 0..2 {
        let body = json!({ "tenantId": CENTRE, "status": "OVERDUE" });
        let changed = api.post("/invoices/inv-003/status", None, &body).await.expect(200).json();
        assert_eq!(changed["status"], "OVERDUE");
    }
    let event = next_fact(&mut dashboard).await;
    assert_eq!((&event.data["previousStatus"], &event.data["newStatus"]), (&json!("PENDING"), &json!("OVERDUE")));
    assert_eq!(rows(&database).await, 1);
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn an_account_is_alerted_once_for_each_crossing() {
    let (database, api, stack, mut dashboard) = start().await;
    let sweep =
        async || api.post("/arrears/sweep", None, &json!({})).await.expect(200).json()["alerts"].as_i64().unwrap();
    assert_eq!(sweep().await, 0, "once for each crossing, not for each sweep");

    // A family falls behind: alerted. It pays, falls behind again: alerted again. Two sweeps at once: alerted once.
    database.run(BEHIND).await;
    let (one, other) = futures::join!(sweep(), sweep());
    assert_eq!(one + other, 1);
    let alert = next_fact(&mut dashboard).await;
    assert_eq!(alert.kind, "arrears_alert");
    assert!(alert.raw.contains(r#""totalArrears":1850.00,"daysOverdue":3"#), "{}", alert.raw);
    api.post("/payments", None, &payment("inv-001", 1800.0)).await.expect(201);
    assert_eq!(sweep().await, 0);
    database.run("update billing.invoices set amount_paid = 0 where id = 'inv-001'").await;
    assert_eq!(sweep().await, 1);
    dashboard.close().await;
    stack.finish().await;
}
