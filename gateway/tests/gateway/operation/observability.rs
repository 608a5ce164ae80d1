//! What operators look at and are called by: the dashboard and the alerts of `deploy/`, on a real Prometheus.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use publisher::TenantId;
use serde_json::Value;
use sqlx::PgConnection;
use tokio::task::JoinSet;
use tokio::time::{Interval, interval};
use tokio_util::sync::CancellationToken;

use super::documents;
use crate::harness::events::{metrics_json, payment_json};
use crate::harness::prometheus::Prometheus;
use crate::harness::{
    Bring, Dashboard, Database, Follower, PostgresServer, Setup, Stack, Token, Traffic, books, eventually, http,
    tenant, tenants,
};

const DASHBOARD: &str = include_str!("../../../../deploy/grafana/dashboard.json");
const ALERTS: &str = include_str!("../../../../deploy/prometheus/alerts.yml");
const ALERT_TESTS: &str = include_str!("../../../../deploy/prometheus/alerts_test.yml");
const RUNBOOK: &str = include_str!("../../../../deploy/README.md");

/// A busy machine starts and scrapes slowly.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_panel_is_empty_and_no_alert_fires_until_redis_is_killed() {
    let database = PostgresServer::shared().await.database().await;
    let mut stack = Setup::new().gateways(2).database(&database).start().await;
    let internal: Vec<_> = stack.gateways.iter().map(|gateway| gateway.internal).collect();
    let prometheus = Prometheus::start(&internal).await;
    let load = Load::start(&mut stack, &database).await;
    stack.redis().kill_subscribers().await;

    for (panel, expression) in expressions() {
        eventually(&format!("panel {panel:?} shows something: {expression}"), PATIENCE, async || {
            let values = prometheus.query(&expression).await;
            (!values.is_empty() && values.iter().all(|value| !value.is_nan())).then_some(())
        })
        .await;
    }
    every_rule_is_evaluated_and_silent(&prometheus).await;
    every_metric_is_documented_and_watched(&stack).await;
    load.stop().await;

    stack.redis_mut().kill9();
    eventually("both gateways raise the alarm", PATIENCE, async || {
        (prometheus.query(r#"ALERTS{alertname="GatewayRedisDown"}"#).await.len() == 2).then_some(())
    })
    .await;
    stack.finish().await;
}

/// All rules of the file were evaluated, and at one moment no alert is so much as pending.
async fn every_rule_is_evaluated_and_silent(prometheus: &Prometheus) {
    // On a machine that is busy with other tests events may be late; the pace is judged elsewhere.
    let excused = |rule: &Value| rule["name"].as_str().unwrap().starts_with("DeliveryLate");
    let begun = Instant::now();
    loop {
        let rules = prometheus.rules().await;
        for rule in &rules {
            assert_eq!(rule["lastError"].as_str().unwrap_or_default(), "", "{rule}");
            assert_ne!(rule["state"], "firing", "{rule}");
        }
        let loaded: HashSet<_> = rules.iter().map(|rule| rule["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(loaded, names("record").chain(names("alert")).collect());
        let at_rest = |rule: &Value| rule["health"] == "ok" && (rule["state"] != "pending" || excused(rule));
        let restless: Vec<_> = rules.iter().filter(|rule| !at_rest(rule)).collect();
        if restless.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "not at rest within {PATIENCE:?}: {restless:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the gateway's README lists is exported, what is exported is in the README, and all of it is on a panel or in an alert.
async fn every_metric_is_documented_and_watched(stack: &Stack) {
    let quoted =
        documents::section("Metrics").split('`').skip(1).step_by(2).map(|name| name.split('{').next().unwrap());
    let documented: HashSet<_> = quoted.filter(|name| name.contains('_')).collect();
    let scrape = stack.gateway().scrape().await;
    let exported: HashSet<_> = scrape.names().into_iter().collect();
    assert_eq!(documented, exported);

    let expressions: String = expressions().map(|(_, expression)| expression + "\n").collect();
    let separator = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let watched: HashSet<_> = expressions.split(separator).chain(ALERTS.split(separator)).collect();
    for name in exported {
        let histogram = format!("{name}_bucket");
        assert!(watched.contains(name) || watched.contains(&*histogram), "{name} is on no panel and in no alert");
    }
}

#[test]
fn the_dashboard_can_be_imported_and_read() {
    let dashboard = dashboard();
    assert!(dashboard["uid"].is_string() && dashboard["title"].is_string());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variable = |name: &str| variables.iter().find(|variable| variable["name"] == name).unwrap();
    assert_eq!(variable("datasource")["type"], "datasource");
    assert_eq!(variable("instance")["type"], "query");

    let mut ids = HashSet::new();
    let mut taken = HashSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().filter(|title| !title.is_empty()).unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "the id of {title:?} is another panel's too");
        let grid = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(grid("x") + grid("w") <= 24, "{title:?} is beyond the grid");
        for (x, y) in (0..grid("w")).flat_map(|x| (0..grid("h")).map(move |y| (x, y))) {
            assert!(taken.insert((grid("x") + x, grid("y") + y)), "{title:?} lies on another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        let defaults = &panel["fieldConfig"]["defaults"];
        assert!(panel["description"].is_string() && defaults["unit"].is_string(), "{title:?}");
        for source in targets(panel).map(|target| &target["datasource"]).chain([&panel["datasource"]]) {
            assert_eq!(source["uid"], "${datasource}", "{title:?}");
        }
        match panel["type"].as_str().unwrap() {
            "stat" | "gauge" => assert!(defaults["thresholds"]["steps"].is_array(), "{title:?} has no thresholds"),
            "timeseries" | "state-timeline" => {
                assert!(targets(panel).all(|target| target["legendFormat"] != ""), "{title:?} has no legend");
            }
            _ => {}
        }
    }
}

#[test]
fn every_alert_has_its_test_and_its_section_in_the_runbook() {
    let alerts: Vec<_> = names("alert").collect();
    let anchors: Vec<_> = ALERTS.lines().filter_map(|line| line.split_once("/deploy/README.md#")).collect();
    assert_eq!(anchors.len(), alerts.len());
    for (alert, (_, anchor)) in alerts.iter().zip(anchors) {
        assert_eq!(anchor, alert.to_lowercase());
        let tested = [format!(r#"alertname="{alert}""#), format!("alertname: {alert}\n")];
        assert!(tested.iter().any(|mention| ALERT_TESTS.contains(mention)), "{alert} has no test");
    }
    let section = RUNBOOK.split("\n## ").find(|section| section.starts_with("Alerts\n")).unwrap();
    let explained: Vec<_> = section.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(explained, alerts);
}

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).unwrap()
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().unwrap().iter()
}

fn targets(panel: &Value) -> impl Iterator<Item = &Value> {
    panel["targets"].as_array().into_iter().flatten()
}

/// Each query of the dashboard with its panel's title, its variables filled in as Grafana would.
fn expressions() -> impl Iterator<Item = (String, String)> {
    let dashboard = dashboard();
    let with_title = |panel: &Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let filled = |target: &Value| {
            let expression = target["expr"].as_str().unwrap().replace("$instance", ".*");
            let expression = expression.replace("$__rate_interval", "10s").replace("$__range", "1m");
            assert!(!expression.contains('$'), "an unknown variable in {expression}");
            (title.clone(), expression)
        };
        targets(panel).map(filled).collect::<Vec<_>>()
    };
    panels(&dashboard).flat_map(with_title).collect::<Vec<_>>().into_iter()
}

/// The names of the rules of a kind (`alert`, `record`) in `alerts.yml`, in order.
fn names(kind: &str) -> impl Iterator<Item = String> {
    let key = format!("- {kind}: ");
    ALERTS.lines().filter_map(move |line| line.trim_start().strip_prefix(&key).map(str::to_owned))
}

/// A little of everything that a day brings, over and over.
struct Load {
    stop: CancellationToken,
    traffic: Traffic,
    followers: Vec<Follower>,
    others: JoinSet<()>,
}

impl Load {
    /// Billing that uses the library, the outbox and the HTTP API; dashboards that stay, dashboards that come and go, and
    /// visitors who shouldn't have come.
    async fn start(stack: &mut Stack, database: &Database) -> Self {
        let rooms = tenants(4);
        let followers = Follower::start_all(&stack.addrs(), &rooms).await;
        let traffic = Traffic::start(&stack.publisher().await, &rooms, 4);
        let stop = CancellationToken::new();
        let mut others = JoinSet::new();
        others.spawn(emit(Pace::until(&stop), database.client().await, rooms[0].clone()));
        for gateway in &stack.gateways {
            intrude(gateway.public).await;
            others.spawn(post(Pace::until(&stop), gateway.internal, rooms[1].clone()));
            others.spawn(visit(Pace::until(&stop), gateway.public, rooms[2].clone()));
        }
        Self { stop, traffic, followers, others }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.others.join_all().await;
        self.traffic.stop().await;
        for follower in self.followers {
            follower.stop().await;
        }
    }
}

/// When to do it again, until it is time to stop.
struct Pace {
    stop: CancellationToken,
    ticks: Interval,
}

impl Pace {
    fn until(stop: &CancellationToken) -> Self {
        Self { stop: stop.clone(), ticks: interval(Duration::from_millis(400)) }
    }

    async fn again(&mut self) -> bool {
        self.stop.run_until_cancelled(self.ticks.tick()).await.is_some()
    }
}

async fn emit(mut pace: Pace, mut client: PgConnection, room: TenantId) {
    while pace.again().await {
        books::emit(&mut client, &room, 1).await;
    }
}

async fn post(mut pace: Pace, internal: SocketAddr, room: TenantId) {
    let path = format!("/v1/tenants/{room}/events");
    while pace.again().await {
        for event in [payment_json(), metrics_json()] {
            http::post(internal, &path, &event).await;
        }
    }
}

/// Joins, sees an event, goes, comes back where it was, and goes.
async fn visit(mut pace: Pace, public: SocketAddr, room: TenantId) {
    let token = Token::of(room.as_str()).sign();
    while pace.again().await {
        let mut dashboard = Dashboard::joined(public, room.as_str(), &token).await;
        dashboard.until_event().await;
        let cursor = dashboard.cursor();
        let ledger = dashboard.close().await;
        let mut back = Dashboard::open(public).await.continuing(ledger);
        back.resume(room.as_str(), &token, &cursor).await;
        back.close().await;
    }
}

/// No WebSocket handshake, and a token that is none.
async fn intrude(public: SocketAddr) {
    http::get(public, "/dashboard").await.expect(426);
    let mut dashboard = Dashboard::bring(public, Bring::Join, tenant().as_str(), "no token").await;
    assert_eq!(dashboard.close_code().await, 4401);
}
