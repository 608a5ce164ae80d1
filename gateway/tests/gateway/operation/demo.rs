//! `gateway demo` (B74): it hands out tokens and takes payments, from its own page alone.

use serde_json::json;

use crate::harness::billing_api::BillingApi;
use crate::harness::http::{self, Response};
use crate::harness::{Dashboard, Gateway, PostgresServer, Setup, Token};

const CENTRE: &str = "acorn-montessori";

async fn snapshot(demo: &Gateway, token: &str) -> Response {
    let authorization = format!("Bearer {token}");
    http::get_with(demo.public, "/dashboard/snapshot", &[("Authorization", authorization.as_str())]).await
}

async fn token(demo: &Gateway) -> String {
    http::get(demo.public, "/demo/token").await.expect(200).json()["token"].as_str().unwrap().to_owned()
}

/// A request as a browser on another site, or under another name, would send it; and the page's own.
async fn is_for_its_own_page_alone(demo: &Gateway, invoice: &str) {
    let addr = demo.public;
    let own = format!("http://{addr}");
    let body = json!({ "invoiceId": invoice, "amount": 1 }).to_string();
    let json = ("Content-Type", "application/json");
    for headers in [
        &[][..],
        &[("Content-Type", "text/plain")],
        &[("Content-Type", "text/plain"), ("Origin", &own)],
        &[("Content-Type", "application/x-www-form-urlencoded"), ("Origin", &own)],
    ] {
        http::request(addr, "POST", "/demo/payments", headers, &body).await.expect(415);
    }
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1", &own.replace("http:", "https:")] {
        http::request(addr, "POST", "/demo/payments", &[json, ("Origin", origin)], &body).await.expect(403);
        for path in ["/demo/token", "/demo/invoices"] {
            http::get_with(addr, path, &[("Origin", origin)]).await.expect(403);
        }
    }
    // A name that a DNS server has made lead here.
    for host in
        ["evil.example", &format!("evil.example:{}", addr.port()), "127.0.0.1.evil.example", "localhost.evil.example"]
    {
        for path in ["/demo/token", "/demo/invoices"] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            http::raw(addr, head.as_bytes()).await.unwrap().expect(403);
        }
        let head = format!(
            "POST /demo/payments HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        http::raw(addr, head.as_bytes()).await.unwrap().expect(403);
    }
    let local = format!("GET /demo/token HTTP/1.1\r\nHost: localhost:{}\r\n\r\n", addr.port());
    assert_eq!(http::raw(addr, local.as_bytes()).await.unwrap().status, 200);
}

#[tokio::test]
async fn b74_the_demo_signs_with_a_key_of_its_own() {
    // Beside a production's secret.
    let demo = Gateway::start_as(&["demo"], Setup::new().environment()).await;
    snapshot(&demo, &Token::of(CENTRE).sign()).await.expect(401);
    let own = token(&demo).await;
    snapshot(&demo, &own).await.expect(200);
    Dashboard::joined(demo.public, CENTRE, &own).await.close().await;
    let production = Setup::new().memory().lease().await;
    let authorization = format!("Bearer {own}");
    let headers = [("Authorization", authorization.as_str())];
    http::get_with(production.addr(), "/dashboard/snapshot", &headers).await.expect(401);
    production.finish().await;
}

#[tokio::test]
async fn b74_the_demo_is_for_its_own_page_alone() {
    let demo = Gateway::start_as(&["demo"], Setup::new().without("JWT_SECRET").environment()).await;
    let mut dashboard = Dashboard::joined(demo.public, CENTRE, &token(&demo).await).await;
    let invoices = http::get(demo.public, "/demo/invoices").await.expect(200).json();
    let invoice = invoices[0]["invoiceId"].as_str().unwrap().to_owned();
    is_for_its_own_page_alone(&demo, &invoice).await;

    let own = format!("http://{}", demo.public);
    let headers = [("Content-Type", "application/json; charset=utf-8"), ("Origin", own.as_str())];
    let body = json!({ "invoiceId": invoice, "amount": 1 }).to_string();
    assert_eq!(http::request(demo.public, "POST", "/demo/payments", &headers, &body).await.status, 201);
    dashboard.until("payment_received").await;
    dashboard.close().await;
}

#[tokio::test]
async fn b74_the_till_of_a_billing_api_is_for_its_own_page_alone() {
    let database = PostgresServer::shared().await.database().await;
    let api = BillingApi::start(&database).await;
    let billing = format!("http://{}", api.addr);
    let setup = Setup::new().database(&database);
    let demo = Gateway::start_as(&["demo", "--billing-api", &billing], setup.environment()).await;
    let paid =
        async || database.value::<i64>("select count(*) from billing.payments where received_at >= current_date").await;
    let before = paid().await;
    is_for_its_own_page_alone(&demo, "inv-001").await;
    assert_eq!(paid().await, before);

    let own = format!("http://{}", demo.public);
    let headers = [("Content-Type", "application/json"), ("Origin", own.as_str())];
    let body = json!({ "invoiceId": "inv-001", "amount": 1 }).to_string();
    assert_eq!(http::request(demo.public, "POST", "/demo/payments", &headers, &body).await.status, 201);
    assert_eq!(paid().await, before + 1);
}
