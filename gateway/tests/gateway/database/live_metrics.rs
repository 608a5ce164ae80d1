//! `metrics_updated` reaches the dashboards soon after a change, is right, comes not too often, and never costs a payment its place.

use std::time::{Duration, Instant};

use publisher::TenantId;

use crate::harness::books::{open_books, record};
use crate::harness::ledger::Message;
use crate::harness::{Dashboard, PostgresServer, Setup, Stack, Token, Traffic, eventually, tenant, tenants};

async fn on(stack: &Stack, gateway: usize, tenant: &TenantId) -> Dashboard {
    let token = Token::of(tenant.as_str()).sign();
    Dashboard::joined(stack.gateways[gateway].public, tenant.as_str(), &token).await
}

/// Reads figures until they show so many payments; when each came.
async fn figures_until(dashboard: &mut Dashboard, payments: u64) -> (Vec<Instant>, Message) {
    let mut came = Vec::new();
    loop {
        let figures = dashboard.until("metrics_updated").await;
        came.push(Instant::now());
        if figures.data["paymentsToday"] == payments {
            return (came, figures);
        }
    }
}

#[tokio::test]
async fn figures_follow_a_change_within_a_second_and_equal_the_books() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    let stack = Setup::new().database(&database).start().await;
    let mut dashboard = stack.dashboard(&acorn).await;
    for number in 1..=3 {
        let begun = Instant::now();
        record(&database, &acorn, number).await;
        assert_eq!(dashboard.until_event().await.kind, "payment_received");
        let (_, figures) = figures_until(&mut dashboard, u64::from(number)).await;
        // A second after the change, or after the figures before it; and what a busy machine needs.
        assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
        let outstanding = 100_000 - 10 * number;
        assert!(figures.raw.contains(&format!(r#""totalOutstanding":{outstanding}.00,"#)), "{}", figures.raw);
        assert!(figures.raw.contains(&format!(r#""amountReceivedToday":{}.00,"#, 10 * number)), "{}", figures.raw);
    }
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn figures_of_two_gateways_come_once_a_second_and_make_no_payment_wait() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    let stack = Setup::new().gateways(2).database(&database).start().await;
    let (mut here, mut there) = (on(&stack, 0, &acorn).await, on(&stack, 1, &acorn).await);
    let begun = Instant::now();
    let recording = async {
        for number in 1..=30 {
            record(&database, &acorn, number).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        begun.elapsed()
    };
    let (took, (came, _), _) = futures::join!(recording, figures_until(&mut here, 30), figures_until(&mut there, 30));
    let most = took.as_secs() as usize + 3;
    assert!(came.len() >= 3 && came.len() <= most, "{} figures in {took:?}", came.len());
    for pair in came.windows(2) {
        // One a second by Redis' clock; the way here may shorten it.
        assert!(pair[1] - pair[0] > Duration::from_millis(700), "{:?}", pair[1] - pair[0]);
    }
    here.close().await;
    there.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn a_tenant_at_its_limit_gets_its_payments_first() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    let stack = Setup::new().database(&database).start().await;
    let mut dashboard = stack.dashboard(&acorn).await;
    for number in 1..=30 {
        record(&database, &acorn, number).await;
    }
    let mut payments = 0;
    while payments < 30 {
        let event = dashboard.until_event().await;
        if event.kind == "payment_received" {
            payments += 1;
        } else {
            // Only while tokens are left over: then the next payments are not at the limit.
            assert!(!(7..20).contains(&payments), "figures after {payments} payments");
        }
    }
    figures_until(&mut dashboard, 30).await;
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn nothing_is_computed_for_a_tenant_that_nobody_watches() {
    let database = PostgresServer::shared().await.database().await;
    let (watched, unwatched) = (tenant(), tenant());
    open_books(&database, &watched).await;
    open_books(&database, &unwatched).await;
    let stack = Setup::new().database(&database).start().await;
    let left = stack.dashboard(&unwatched).await;
    left.close().await;
    stack.gateway().metric_becomes("gateway_tenants", &[], 0.0).await;
    let mut dashboard = stack.dashboard(&watched).await;
    record(&database, &unwatched, 1).await;
    record(&database, &watched, 1).await;
    // By now the other one's would have come as well.
    figures_until(&mut dashboard, 1).await;
    let state = stack.redis().command(&["HGET", &stack.state_key(&unwatched), "seq"]).await;
    assert_eq!(state.texts(), ["1"], "the payment, and no figures");
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn figures_come_by_themselves_when_postgres_is_back() {
    let mut server = PostgresServer::start().await;
    let database = server.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    record(&database, &acorn, 1).await;
    server.stop().await;
    let stack = Setup::new().database(&database).start().await;
    let mut dashboard = Dashboard::open(stack.addr()).await;
    let joined = dashboard.join(acorn.as_str(), &Token::of(acorn.as_str()).sign()).await;
    assert!(joined.data["metrics"].is_null());
    server.restart().await;
    figures_until(&mut dashboard, 1).await;
    dashboard.close().await;
    stack.finish().await;
}

/// Eight payments a second leave no three tokens free, ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f71_a_tenant_near_its_limit_gets_figures_all_the_same() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    let mut stack = Setup::new().database(&database).start().await;
    let mut dashboard = stack.dashboard(&acorn).await;
    let publisher = stack.publisher().await;
    let traffic = Traffic::start(&publisher, std::slice::from_ref(&acorn), 8);
    let begun = Instant::now();
    let mut came = vec![begun];
    while begun.elapsed() < Duration::from_secs(70) {
        let event = dashboard.until_event().await;
        if event.kind == "metrics_updated" {
            came.push(Instant::now());
        }
    }
    let receipts = traffic.stop().await;
    came.push(Instant::now());
    let waits: Vec<_> = came.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("{} payments; figures after {waits:?}", receipts.len());
    assert!(receipts.len() > 400, "{} payments in 70 s are no load", receipts.len());
    assert!(waits.iter().all(|wait| *wait < Duration::from_secs(30)), "{waits:?}");
    dashboard.close().await;
    stack.finish().await;
}

/// Nothing happens, and still the figures are never older than half a minute.
#[tokio::test]
async fn figures_come_every_thirty_seconds() {
    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    let stack = Setup::new().database(&database).start().await;
    let mut dashboard = stack.dashboard(&acorn).await;
    eventually("figures without a change", Duration::from_secs(45), async || {
        match tokio::time::timeout(Duration::from_secs(1), dashboard.next_unbounded()).await {
            Ok(crate::harness::Incoming::Message(message)) if message.kind == "metrics_updated" => Some(()),
            _ => None,
        }
    })
    .await;
    dashboard.close().await;
    stack.finish().await;
}

/// Each tenant has a timer of its own, and none may stop another's.
#[tokio::test]
async fn every_one_of_many_tenants_gets_the_figures_of_its_last_change() {
    let database = PostgresServer::shared().await.database().await;
    let stack = Setup::new().database(&database).start().await;
    let centres = tenants(12);
    let mut dashboards = Vec::new();
    for centre in &centres {
        open_books(&database, centre).await;
        dashboards.push(stack.dashboard(centre).await);
    }
    const PAYMENTS: u32 = 6;
    for number in 1..=PAYMENTS {
        for centre in &centres {
            record(&database, centre, number).await;
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let last = dashboards.iter_mut().map(|dashboard| figures_until(dashboard, PAYMENTS.into()));
    futures::future::join_all(last).await;
    for dashboard in dashboards {
        dashboard.close().await;
    }
    stack.finish().await;
}
