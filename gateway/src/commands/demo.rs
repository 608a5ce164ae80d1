//! `gateway demo`: a gateway without any set-up, with a small simulated centre; or, with `--billing-api`, the centre of a reference
//! billing API.
//!
//! Events go the same way as in production: through the engine's publish path, its limit and its log, to real sockets. The demo also does
//! what a real centre's own system does: it hands out tokens, and takes payments.

mod books;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use publisher::{DashboardEvent, EventData, Money, TenantId};
use reqwest::Url;
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;
use tower_http::timeout::TimeoutLayer;
use tracing::warn;

use self::books::Books;
use super::instance::Instance;
use crate::config::{DemoOptions, JwtSettings, KeySource, Settings};
use crate::engine::Engine;
use crate::http::is_json;
use crate::http::problem::Problem;
use crate::logging;
use crate::tokens;

/// The demo's centre, here and in the reference billing API.
const TENANT: &str = "acorn-montessori";
/// How long a token of the demo lasts; the page asks for a new one before that.
const TOKEN_LIFE: Duration = Duration::from_secs(900);
/// Invoices that the page offers for payment.
const OFFERED: usize = 20;
/// How long the billing API may take.
const BILLING_LIMIT: Duration = Duration::from_secs(5);
/// How long a request may take, its body included.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Runs the demo until a signal.
///
/// # Errors
/// What keeps the gateway from starting.
pub async fn run(mut settings: Settings, options: DemoOptions) -> anyhow::Result<()> {
    // A key of its own, whatever the environment has: the demo hands a token to every browser that asks.
    let secret = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
    let secret = secret.parse().map_err(|rule: String| anyhow::anyhow!("the demo's secret {rule}"))?;
    settings.jwt.keys = Some(KeySource::Secret(secret));
    logging::install(&settings.log)?;
    let jwt = settings.jwt.clone();
    let tenant: TenantId = TENANT.parse()?;
    let instance;
    let till = match options.billing_api {
        Some(url) => {
            instance = Instance::start(&settings, None).await?;
            let client = reqwest::Client::builder().timeout(BILLING_LIMIT).build().context("--billing-api")?;
            Till::Billing { client, url }
        }
        None => {
            let books = Arc::new(Mutex::new(Books::open()));
            let read = books.clone();
            let read = move |_: &TenantId| read.lock().unwrap_or_else(PoisonError::into_inner).snapshot();
            instance = Instance::start(&settings, Some(Arc::new(read))).await?;
            let till = Till::Simulated { books, engine: instance.engine.clone() };
            instance.shutdown.spawn(till.clone().living(tenant.clone()));
            till
        }
    };

    let mut address = instance.address()?;
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    logging::output(&format!("The demo is running. Open http://{address}/ and watch payments arrive; Ctrl-C ends it."));
    let demo = Demo { jwt, tenant, till };
    let routes = Router::new()
        .route("/demo/token", get(token))
        .route("/demo/invoices", get(invoices))
        .route("/demo/payments", post(pay))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_LIMIT))
        .layer(middleware::from_fn(own_page))
        .with_state(Arc::new(demo));
    instance.serve(routes).await
}

struct Demo {
    jwt: JwtSettings,
    tenant: TenantId,
    till: Till,
}

/// Where payments are recorded.
#[derive(Clone)]
enum Till {
    Simulated { books: Arc<Mutex<Books>>, engine: Engine },
    Billing { client: reqwest::Client, url: Url },
}

/// What the page's form sends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payment {
    invoice_id: String,
    amount: Money,
}

/// Lets only the demo's own page in: other sites must not read its tokens, by a name of theirs that leads here (DNS rebinding), nor record
/// payments.
async fn own_page(request: Request, next: Next) -> Result<Response, Problem> {
    let headers = request.headers();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_address(host) {
        return Err(Problem::forbidden("host", "the demo answers to its address or to localhost, not to a name"));
    }
    let origin = headers.get(ORIGIN).map(HeaderValue::as_bytes);
    if origin.is_some_and(|origin| origin != format!("http://{host}").as_bytes()) {
        return Err(Problem::forbidden("origin", "only the demo's own page may ask this"));
    }
    if request.method() == Method::POST && !is_json(headers) {
        return Err(Problem::unsupported_media_type());
    }
    Ok(next.run(request).await)
}

/// Whether a Host is an IP address or `localhost`, with or without a port: no DNS server has a say in where it leads.
fn is_address(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() && !name.is_empty() => name,
        _ => host,
    };
    let v6 = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<Ipv4Addr>().is_ok()
        || v6.is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok())
}

async fn token(State(demo): State<Arc<Demo>>) -> Result<Response, Problem> {
    let token = tokens::mint(&demo.jwt, std::slice::from_ref(&demo.tenant), Some("demo"), TOKEN_LIFE);
    let token = token.map_err(|error| Problem::unavailable("token", error.to_string()))?;
    // `till`: payments can be recorded here.
    Ok(([(CACHE_CONTROL, "no-store")], Json(json!({ "token": token, "till": true }))).into_response())
}

async fn invoices(State(demo): State<Arc<Demo>>) -> Result<Response, Problem> {
    let mut open = match &demo.till {
        Till::Simulated { books, .. } => books.lock().unwrap_or_else(PoisonError::into_inner).open_invoices(),
        Till::Billing { client, url } => {
            let path = format!("/tenants/{}/invoices", demo.tenant);
            let answer = billing(client.get(joined(url, &path)?)).await?;
            serde_json::from_slice(&answer.2).map_err(|error| unreadable(&error))?
        }
    };
    open.retain(|invoice| invoice.balance > Money::ZERO);
    open.truncate(OFFERED);
    Ok(([(CACHE_CONTROL, "no-store")], Json(open)).into_response())
}

async fn pay(State(demo): State<Arc<Demo>>, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let Payment { invoice_id, amount } = serde_json::from_slice(&body)
        .map_err(|error| Problem::unprocessable(format!("invoiceId and amount are needed: {error}")))?;
    let key = headers.get(IDEMPOTENCY_KEY);
    match &demo.till {
        Till::Simulated { books, engine } => {
            let key = key.and_then(|key| key.to_str().ok());
            let events = books.lock().unwrap_or_else(PoisonError::into_inner).pay_once(key, &invoice_id, amount);
            let events = events.map_err(Problem::unprocessable)?;
            publish(engine, &demo.tenant, events).await;
            Ok((StatusCode::CREATED, Json(json!({ "invoiceId": invoice_id }))).into_response())
        }
        Till::Billing { client, url } => {
            let payment = json!({ "tenantId": demo.tenant, "invoiceId": invoice_id, "amount": amount });
            let mut request = client.post(joined(url, "/payments")?).header(CONTENT_TYPE, "application/json");
            request = request.body(payment.to_string());
            if let Some(key) = key {
                request = request.header(IDEMPOTENCY_KEY, key);
            }
            let (status, content_type, body) = billing(request).await?;
            Ok((status, [(CONTENT_TYPE, content_type)], body).into_response())
        }
    }
}

fn joined(url: &Url, path: &str) -> Result<Url, Problem> {
    url.join(path).map_err(|error| Problem::unavailable("billing", error.to_string()))
}

async fn billing(request: reqwest::RequestBuilder) -> Result<(StatusCode, HeaderValue, Bytes), Problem> {
    let away = |error: reqwest::Error| {
        warn!(%error, "the billing API gave no answer");
        Problem::unavailable("billing", "the billing API gave no answer")
    };
    let answer = request.send().await.map_err(away)?;
    let json = || HeaderValue::from_static("application/json");
    let (status, content_type) = (answer.status(), answer.headers().get(CONTENT_TYPE).cloned().unwrap_or_else(json));
    Ok((status, content_type, answer.bytes().await.map_err(away)?))
}

fn unreadable(error: &serde_json::Error) -> Problem {
    Problem::unavailable("billing", format!("the billing API's answer can't be read: {error}"))
}

impl Till {
    /// A centre's billing, sped up: a payment every few seconds, now and then an invoice that falls due.
    async fn living(self, tenant: TenantId) {
        let Self::Simulated { books, engine } = self else { return };
        loop {
            sleep(Duration::from_millis(rand::random_range(600..2500))).await;
            let events = books.lock().unwrap_or_else(PoisonError::into_inner).something_happens();
            publish(&engine, &tenant, events).await;
        }
    }
}

async fn publish(engine: &Engine, tenant: &TenantId, events: Vec<EventData>) {
    for data in events {
        // Throttled or down: the demo's books are right, and the next figures say so.
        if let Err(error) = engine.publish(tenant, &DashboardEvent::new(data)).await {
            warn!(%error, "the demo's event was not published");
        }
    }
}
