//! The internal port, and the plain HTTP of the public one.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use publisher::TenantId;
use serde_json::json;

use crate::harness::events::payment_json;
use crate::harness::http::{self, Response};
use crate::harness::ledger::Cursor;
use crate::harness::process::scratch;
use crate::harness::{
    Bring, Dashboard, Gateway, PUBLISH_API_KEY, PostgresServer, Setup, Stack, Token, books, eventually, payment, tenant,
};

/// Every metric of the table in gateway/README.md that a gateway has from the start; the relay's are another process'.
const METRICS: [&str; 24] = [
    "gateway_connections",
    "gateway_connections_max",
    "gateway_handshakes_total",
    "gateway_joins_total",
    "gateway_disconnects_total",
    "gateway_connection_seconds",
    "gateway_tenants",
    "gateway_events_received_total",
    "gateway_deliveries_total",
    "gateway_delivery_latency_seconds",
    "gateway_slow_consumers_total",
    "gateway_redis_up",
    "gateway_redis_reconnects_total",
    "gateway_subscriptions_pending",
    "gateway_gaps_total",
    "gateway_recoveries_total",
    "gateway_heartbeat_timeouts_total",
    "gateway_probe_failures_total",
    "gateway_unauthenticated",
    "gateway_tasks",
    "gateway_draining",
    "gateway_build_info",
    "publisher_events_total",
    "publisher_publish_seconds",
];

/// Labels that could ever carry a tenant, a user or a client's text.
const FORBIDDEN_LABELS: [&str; 4] = ["tenant=", "sub=", "user=", "id="];

async fn publish(stack: &Stack, room: &TenantId) {
    let path = format!("/v1/tenants/{room}/events");
    http::post(stack.gateway().internal, &path, &payment_json()).await.expect(202);
}

#[tokio::test]
async fn metrics_have_every_documented_name_and_no_tenant() {
    let mut stack = Setup::new().lease().await;
    let room = tenant();
    let mut dashboard = stack.dashboard(&room).await;
    publish(&stack, &room).await;
    dashboard.next_event().await;
    let scrape = stack.gateway().scrape().await;
    let names = scrape.names();
    for name in METRICS {
        assert!(names.contains(&name), "{name} is missing among {names:?}");
    }
    for forbidden in FORBIDDEN_LABELS.iter().copied().chain([room.as_str()]) {
        assert!(!scrape.0.contains(forbidden), "{forbidden} in the metrics");
    }
    // Present from the start, or an alert on a rise from nothing would never fire.
    for outcome in ["filled", "resync"] {
        assert!(scrape.0.contains(&format!("gateway_gaps_total{{outcome=\"{outcome}\"}}")), "{outcome}");
    }
    assert!(scrape.value("gateway_deliveries_total", &["type=\"payment_received\""]) >= 1.0);
    assert_eq!(scrape.value("gateway_redis_up", &[]), 1.0);
    assert_eq!(scrape.value("gateway_subscriptions_pending", &[]), 0.0);
    assert_eq!(scrape.value("gateway_tenants", &[]), 1.0);
    assert_eq!(scrape.value("gateway_draining", &[]), 0.0);
    assert!(scrape.0.contains("gateway_delivery_latency_seconds_bucket{le=\"0.001\"}"), "1 ms is readable");
    assert!(scrape.0.contains("gateway_delivery_latency_seconds_bucket{le=\"1\"}"), "1 s is readable");

    let counted = |name: &str| scrape.value(name, &[]);
    let before = (
        counted("gateway_events_received_total"),
        counted("gateway_deliveries_total"),
        counted("gateway_delivery_latency_seconds_count"),
    );
    stack.publish(&room, &payment()).await;
    dashboard.next_event().await;
    stack.gateway().metric_becomes("gateway_deliveries_total", &[], before.1 + 1.0).await;
    let after = stack.gateway().scrape().await;
    assert_eq!(after.value("gateway_events_received_total", &[]), before.0 + 1.0);
    assert_eq!(after.value("gateway_delivery_latency_seconds_count", &[]), before.2 + 1.0);
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn handshakes_joins_and_disconnects_are_counted_by_bounded_labels() {
    let stack = Setup::new().start().await;
    let room = tenant();
    stack.dashboard(&room).await.close().await;
    let mut refused = Dashboard::bring(stack.addr(), Bring::Join, "t2", &Token::of("t1").sign()).await;
    assert_eq!(refused.close_code().await, 4403);
    stack.gateway().metric_becomes("gateway_disconnects_total", &[], 2.0).await;
    let scrape = stack.gateway().scrape().await;
    assert_eq!(scrape.value("gateway_handshakes_total", &[]), 2.0);
    assert_eq!(scrape.value("gateway_joins_total", &[]), 2.0);
    assert_eq!(scrape.value("gateway_connection_seconds_count", &[]), 2.0);
    stack.finish().await;
}

#[tokio::test]
async fn readiness_follows_redis_and_health_does_not() {
    let mut stack = Setup::new().start().await;
    let internal = stack.gateway().internal;
    let reason = async |status: u16| {
        let ready = http::get(internal, "/readyz").await;
        (ready.status == status).then_some(ready)
    };
    eventually("200 once delivery is proven", Duration::from_secs(5), async || reason(200).await).await;
    stack.redis_mut().kill9();
    http::get(internal, "/healthz").await.expect(200);
    // "When delivery has not been proven for 10 s": not at the first hiccup.
    let unready = eventually("503 without Redis", Duration::from_secs(16), async || reason(503).await).await;
    assert_eq!(unready.json()["reason"], "redis");
    http::get(internal, "/healthz").await.expect(200);
    assert_eq!(stack.gateway().metric("gateway_redis_up", &[]).await, 0.0);
    stack.redis_mut().restart().await;
    eventually("200 with Redis", Duration::from_secs(6), async || reason(200).await).await;
    stack.finish().await;
}

#[tokio::test]
async fn the_health_check_of_containers_tells_a_living_gateway_from_none() {
    let stack = Setup::new().memory().start().await;
    let healthcheck = async |port: u16| {
        let environment = [("INTERNAL_LISTEN".to_owned(), format!("0.0.0.0:{port}"))];
        Gateway::run(&["healthcheck"], &environment).await
    };
    let (alive, log) = healthcheck(stack.gateway().internal.port()).await;
    assert!(alive.success() && log.lines().is_empty(), "{}", log.text());
    // Bound and left: nobody listens there.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (dead, log) = healthcheck(nobody).await;
    assert!(!dead.success() && log.text().contains(&format!("no answer at 127.0.0.1:{nobody}")), "{}", log.text());
    stack.finish().await;
}

#[tokio::test]
async fn systemd_is_told_when_the_gateway_is_ready_and_when_it_stops() {
    let path = scratch("systemd").join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let told = || {
        let mut message = [0; 256];
        let length = systemd.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let stack = Setup::new().memory().env("NOTIFY_SOCKET", path.to_str().unwrap()).start().await;
    assert_eq!(told(), "READY=1\n");
    stack.gateway().terminate();
    assert_eq!(told(), "STOPPING=1\n");
}

#[tokio::test]
async fn gateway_starts_without_redis_degraded_and_heals() {
    let mut stack = Setup::new().start().await;
    stack.redis_mut().kill9();
    let begun = Instant::now();
    stack.add_gateway().await;
    assert!(begun.elapsed() < Duration::from_secs(3), "it waits for Redis to start");
    let room = tenant();
    let addr = stack.addrs()[1];
    let mut dashboard = Dashboard::open(addr).await;
    dashboard.send_join(room.as_str(), Some(&Token::of(room.as_str()).sign()), None).await;
    stack.redis_mut().restart().await;
    dashboard.until("joined").await;
    stack.publish(&room, &payment()).await;
    dashboard.until("payment_received").await;
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn connected_tenants_are_listed_with_counts() {
    let stack = Setup::new().lease().await;
    let (one, two) = (tenant(), tenant());
    let mut members = vec![stack.dashboard(&one).await, stack.dashboard(&two).await, stack.dashboard(&two).await];
    let authorization = format!("Bearer {PUBLISH_API_KEY}");
    let listed =
        http::get_with(stack.gateway().internal, "/v1/tenants", &[("Authorization", &authorization)]).await.expect(200);
    let list = listed.json();
    let text = list.to_string();
    for (tenant, count) in [(&one, 1), (&two, 2)] {
        assert!(text.contains(tenant.as_str()), "{text}");
        let rows = list.as_array().or_else(|| list["tenants"].as_array());
        let found = match rows {
            Some(rows) => rows.iter().any(|row| {
                row.to_string().contains(tenant.as_str())
                    && row.as_object().unwrap().values().any(|value| *value == json!(count))
            }),
            None => list[tenant.as_str()] == count || list["tenants"][tenant.as_str()] == count,
        };
        assert!(found, "{tenant} with {count} in {text}");
    }
    for member in members.drain(..) {
        member.close().await;
    }
    stack.finish().await;
}

#[tokio::test]
async fn the_ports_keep_apart_what_is_public_and_what_is_not() {
    let stack = Setup::new().lease().await;
    let (public, internal) = (stack.addr(), stack.gateway().internal);
    for path in ["/metrics", "/healthz", "/readyz", "/v1/tenants", "/openapi.json"] {
        let response = http::get(public, path).await;
        assert!(response.status == 404 || path == "/openapi.json", "{path} on the public port: {response:?}");
    }
    let published = http::post(public, "/v1/tenants/t1/events", &payment_json()).await;
    assert!(matches!(published.status, 404 | 405), "{published:?}");
    http::get(internal, "/nothing").await.expect(404);
    http::get(public, "/nothing").await.expect(404);
    stack.finish().await;
}

#[tokio::test]
async fn documents_describe_every_message_and_path() {
    let stack = Setup::new().lease().await;
    let asyncapi = http::get(stack.addr(), "/asyncapi.json").await.expect(200);
    assert!(asyncapi.json()["asyncapi"].as_str().unwrap().starts_with('3'));
    for word in [
        "joined",
        "left",
        "resync",
        "heartbeat",
        "token_expiring",
        "degraded",
        "restored",
        "disabled",
        "error",
        "payment_received",
        "invoice_status_changed",
        "arrears_alert",
        "metrics_updated",
    ] {
        assert!(asyncapi.body.contains(word), "{word}");
    }
    for code in [1001, 1002, 1003, 1007, 1009, 1012, 1013, 4400, 4401, 4403, 4408, 4409, 4413, 4429, 4503] {
        assert!(asyncapi.body.contains(&code.to_string()), "{code}");
    }
    let openapi = http::get(stack.gateway().internal, "/openapi.json").await.expect(200);
    assert!(openapi.json()["openapi"].as_str().unwrap().starts_with("3.1"));
    for path in [
        "/metrics",
        "/healthz",
        "/readyz",
        "/v1/tenants/{tenant}/events",
        "/v1/tenants/{tenant}/disconnect",
        "/v1/users/{sub}/disconnect",
        "/v1/tenants",
        "/dashboard/snapshot",
    ] {
        assert!(openapi.json()["paths"][path].is_object(), "{path}");
    }
    stack.finish().await;
}

#[tokio::test]
async fn the_page_may_load_its_own_files_only_and_browsers_keep_them() {
    let stack = Setup::new().lease().await;
    let page = http::get(stack.addr(), "/").await.expect(200);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options").unwrap(), "nosniff");
    // A new build is seen at once, and an old one is not sent twice.
    assert_eq!(page.header("cache-control").unwrap(), "no-cache");
    let tag = page.header("etag").unwrap();
    http::get_with(stack.addr(), "/", &[("If-None-Match", tag)]).await.expect(304);
    // Built with the page, it names its files; their names change with what is in them.
    for file in page.body.split('"').filter(|file| file.starts_with("/assets/")) {
        let file = http::get(stack.addr(), file).await.expect(200);
        assert!(file.header("cache-control").unwrap().contains("immutable"));
        assert_eq!(file.header("content-security-policy").unwrap(), policy);
    }
    // No demo: no token, and no error either.
    http::get(stack.addr(), "/demo/token").await.expect(204);
    http::get(stack.addr(), "/demo/invoices").await.expect(404);
    stack.finish().await;
}

#[tokio::test]
async fn snapshot_tells_the_position() {
    let mut stack = Setup::new().lease().await;
    let (room, other) = (tenant(), tenant());
    stack.publish(&room, &payment()).await;
    stack.publish(&room, &payment()).await;
    let snapshot = async |query: &str, token: &str| -> Response {
        let bearer = format!("Bearer {token}");
        http::get_with(stack.addr(), &format!("/dashboard/snapshot{query}"), &[("Authorization", &bearer)]).await
    };
    let one = Token::of(room.as_str()).sign();
    let several = Token::naming(json!([room.as_str(), other.as_str()])).sign();
    let answer = snapshot("", &one).await.expect(200).json();
    assert_eq!((&answer["tenantId"], &answer["seq"]), (&json!(room.as_str()), &json!(2)));
    assert!(answer["epoch"].is_string() && answer["metrics"].is_null() && answer["payments"].is_null(), "{answer}");
    assert_eq!(snapshot(&format!("?tenantId={room}"), &several).await.expect(200).json()["seq"], 2);
    assert_eq!(snapshot(&format!("?tenantId={other}"), &several).await.expect(200).json()["seq"], 0);
    // Several centres and no word which.
    let undecided = snapshot("", &several).await;
    assert!(matches!(undecided.status, 400 | 422), "{undecided:?}");
    snapshot(&format!("?tenantId={other}"), &one).await.expect(403);
    snapshot("", "nonsense").await.expect(401);
    snapshot("", &Token::of(room.as_str()).expiring_in(-60).sign()).await.expect(401);
    http::get(stack.addr(), "/dashboard/snapshot").await.expect(401);

    // A join that resumes from a snapshot's position misses nothing in between.
    let cursor = Cursor { epoch: answer["epoch"].as_str().unwrap().to_owned(), seq: 2 };
    stack.publish(&room, &payment()).await;
    let mut dashboard = Dashboard::open(stack.addr()).await;
    let joined = dashboard.resume(room.as_str(), &one, &cursor).await;
    assert_eq!(joined.data["recovered"], true);
    assert_eq!(dashboard.next_event().await.seq, Some(3));
    dashboard.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn the_most_talkative_log_tells_no_secret() {
    let database = PostgresServer::shared().await.database().await;
    let mut stack = Setup::new().database(&database).env("LOG", "trace").start().await;
    let room = tenant();
    books::open_books(&database, &room).await;
    books::record(&database, &room, 1).await;
    let token = Token::of(room.as_str()).sign();
    for way in Bring::ALL {
        let mut dashboard = Dashboard::bring(stack.addr(), way, room.as_str(), &token).await;
        dashboard.expect_joined(room.as_str()).await;
        stack.publish(&room, &payment()).await;
        dashboard.until("payment_received").await;
        dashboard.close().await;
        let mut refused = Dashboard::bring(stack.addr(), way, room.as_str(), &format!("{token}x")).await;
        refused.expect_refusal(4401).await;
    }
    let bearer = format!("Bearer {token}");
    http::get_with(stack.addr(), "/dashboard/snapshot", &[("Authorization", &bearer)]).await.expect(200);
    http::get(stack.addr(), &format!("/dashboard?token={token}")).await.expect(400);
    http::post(stack.gateway().internal, &format!("/v1/tenants/{room}/events"), &payment_json()).await.expect(202);
    assert!(stack.gateway().log().text().contains("TRACE"), "it says more than usual");
    // It is searched here, and again when the process is gone.
    stack.finish().await;
}
