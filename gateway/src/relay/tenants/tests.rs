//! When a backlog is condensed, and when it is published row by row.

use super::super::rows::Pending;
use super::*;

const CONFIG: RelayConfig = RelayConfig { condense_after: 50, events_per_second: 10 };

fn acorn() -> TenantId {
    "acorn".parse().expect("a tenant")
}

fn batch(backlog: usize, alerts: usize) -> Batch {
    let rows = (0..backlog.min(10) as i64).map(|id| Pending { id, event: None }).collect();
    Batch { tenant: acorn(), rows, backlog, alerts }
}

fn plan(tenants: &mut Tenants, backlog: usize) -> Plan {
    tenants.plan(&batch(backlog, 0), &Contact::new())
}

#[tokio::test(start_paused = true)]
async fn a_backlog_beyond_the_limit_is_condensed() {
    let mut tenants = Tenants::new(CONFIG);
    assert_eq!(plan(&mut tenants, 50), Plan::Publish);
    assert_eq!(plan(&mut tenants, 51), Plan::Condense(MetricsQuery::Run));
}

#[tokio::test(start_paused = true)]
async fn fewer_alerts_than_are_kept_are_never_condensed() {
    let mut tenants = Tenants::new(CONFIG);
    let contact = Contact::new();
    let kept = ALERTS_KEPT - 1;
    assert_eq!(tenants.plan(&batch(kept, kept), &contact), Plan::Publish);
    assert_eq!(tenants.plan(&batch(ALERTS_KEPT, kept), &contact), Plan::Condense(MetricsQuery::Run));
    assert_eq!(tenants.plan(&batch(ALERTS_KEPT, ALERTS_KEPT), &contact), Plan::Condense(MetricsQuery::Run));
}

#[tokio::test(start_paused = true)]
async fn a_busy_tenant_is_left_until_its_rows_are_marked() {
    let mut tenants = Tenants::new(CONFIG);
    tenants.publishing(&acorn());
    assert_eq!(plan(&mut tenants, 1), Plan::Leave);
    tenants.delivered(acorn());
    assert_eq!(plan(&mut tenants, 1), Plan::Leave);
    tenants.marked();
    assert_eq!(plan(&mut tenants, 1), Plan::Publish);
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_flood_is_condensed_until_the_tenant_has_caught_up() {
    let mut tenants = Tenants::new(CONFIG);
    tenants.condensed(&acorn());
    assert_eq!(plan(&mut tenants, 11), Plan::Condense(MetricsQuery::Run));
    assert_eq!(plan(&mut tenants, 10), Plan::Publish);
    assert_eq!(plan(&mut tenants, 11), Plan::Publish, "it has caught up");
    tenants.condensed(&acorn());
    tokio::time::advance(FLOOD_GOES_ON).await;
    assert_eq!(plan(&mut tenants, 11), Plan::Publish, "the flood is over");
}

#[tokio::test(start_paused = true)]
async fn a_backlog_that_was_not_condensed_goes_out_one_by_one_for_a_time() {
    let poll = Duration::from_millis(250);
    for (why, time) in
        [(NotCondensed::Refused, Duration::ZERO), (NotCondensed::Nothing, poll), (NotCondensed::Failed, ONE_BY_ONE)]
    {
        let mut tenants = Tenants::new(CONFIG);
        tenants.condensing(&acorn());
        tenants.not_condensed(&acorn(), why, poll);
        if let Some(before) = time.checked_sub(Duration::from_millis(1)) {
            tokio::time::advance(before).await;
            assert_eq!(plan(&mut tenants, 51), Plan::Publish, "{why:?}");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(plan(&mut tenants, 51), Plan::Condense(MetricsQuery::Run), "{why:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_that_were_missing_are_not_queried_for_five_seconds() {
    let mut tenants = Tenants::new(CONFIG);
    tenants.had_no_metrics(&acorn());
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(plan(&mut tenants, 51), Plan::Condense(MetricsQuery::Skip));
    tenants.had_no_metrics(&acorn());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(plan(&mut tenants, 51), Plan::Condense(MetricsQuery::Run), "a skipped query prolongs nothing");
}

#[tokio::test(start_paused = true)]
async fn a_parked_tenant_is_free_when_its_time_is_over() {
    let mut tenants = Tenants::new(CONFIG);
    assert_eq!(tenants.next_unpark(), None);
    tenants.park(acorn(), Duration::from_millis(100));
    assert_eq!(tenants.next_unpark(), Some(Instant::now() + Duration::from_millis(100)));
    assert!(!tenants.unpark() && tenants.is_busy(&acorn()));
    tokio::time::advance(Duration::from_millis(100)).await;
    assert!(tenants.unpark() && !tenants.is_busy(&acorn()));
}
