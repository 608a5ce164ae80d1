//! The internal face: metrics, health, publishing for callers that aren't Rust, kicks. Never behind the load balancer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, FromRequestParts, Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use publisher::internals::sanitised;
use publisher::{DashboardEvent, EventId, MAX_EVENT_BYTES, Outcome, PublishError, TenantId};
use serde::Serialize;
use serde_json::json;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;
use tracing::info;

use super::address::ClientAddress;
use super::bearer::{self, BearerError};
use super::problem::{Problem, only_get, only_post};
use super::server::is_json;
use crate::config::Secret;
use crate::engine::{Engine, KickError, Kicked};
use crate::hub::Hub;
use crate::metrics::API_KEY_REFUSALS;
use crate::session::access::Access;
use crate::session::audit::{self, Audit};
use crate::session::slots::Slots;
use crate::shutdown::Shutdown;
use crate::tokens::LONGEST_SUBJECT;

/// The gateway is not ready once delivery has not been proved for this long.
const PROOF_LIMIT: Duration = Duration::from_secs(10);
/// How long a request may take, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What the internal port serves from.
pub struct Internal {
    pub access: Access,
    pub audit: Audit,
    pub engine: Engine,
    pub hub: Hub,
    pub slots: Slots,
    pub shutdown: Shutdown,
    /// `PUBLISH_API_KEY`.
    pub api_keys: Option<Secret>,
    /// `REALTIME_DASHBOARD`.
    pub realtime: bool,
}

type Shared = Arc<Internal>;

/// The routes of the internal port.
pub fn routes(internal: Internal, metrics: PrometheusHandle) -> Router {
    let internal = Arc::new(internal);
    let for_callers = Router::new()
        .route("/v1/tenants", get(tenants).fallback(only_get))
        .route("/v1/tenants/{tenant}/events", post(publish).fallback(only_post))
        .route("/v1/tenants/{tenant}/disconnect", post(disconnect_tenant).fallback(only_post))
        .route("/v1/users/{sub}/disconnect", post(disconnect_user).fallback(only_post))
        .layer(DefaultBodyLimit::max(MAX_EVENT_BYTES))
        .layer(middleware::from_fn_with_state(internal.clone(), require_key));
    Router::new()
        .route("/metrics", get(move || async move { metrics.render() }).fallback(only_get))
        .route("/healthz", get(|| async { Json(json!({"status": "alive"})) }).fallback(only_get))
        .route("/readyz", get(ready).fallback(only_get))
        .route("/openapi.json", get(openapi).fallback(only_get))
        .merge(for_callers)
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_TIMEOUT))
        .layer(CatchPanicLayer::new())
        .with_state(internal)
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], include_str!("../openapi.json")).into_response()
}

/// 200 while new sockets are welcome, their tokens can be checked, and what is published is proved to arrive.
async fn ready(State(internal): State<Shared>) -> Response {
    // With real time off nothing is delivered that would need a proof, and pages need the snapshots.
    let proved = !internal.realtime || internal.engine.last_proof().is_some_and(|at| at.elapsed() < PROOF_LIMIT);
    let reason = match () {
        () if internal.shutdown.is_draining() => "draining",
        () if !internal.access.has_keys() => "keys",
        () if internal.slots.full() => "full",
        () if !proved => "redis",
        () => return Json(json!({"status": "ready"})).into_response(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "unavailable", "reason": reason}))).into_response()
}

async fn require_key(State(internal): State<Shared>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let Some(keys) = &internal.api_keys else {
        return Err(Problem::forbidden("no_api_key", "PUBLISH_API_KEY is not configured, so this is switched off"));
    };
    let from = ClientAddress::of(request.extensions()).map(|client| client.0);
    let [missing, malformed, wrong] = API_KEY_REFUSALS;
    let given = bearer::from_headers(request.headers()).map_err(|error| {
        let is_missing = error == BearerError::Missing;
        internal.audit.api_key_refused(if is_missing { missing } else { malformed }, from);
        match is_missing {
            true => Problem::unauthorized("send Authorization: Bearer <PUBLISH_API_KEY>"),
            false => error.into(),
        }
    })?;
    let Some(number) = keys.which(given.as_bytes()) else {
        internal.audit.api_key_refused(wrong, from);
        return Err(Problem::unauthorized("the API key is not the right one"));
    };
    request.extensions_mut().insert(Caller { key: number, from });
    Ok(next.run(request).await)
}

/// The holder of a key.
#[derive(Clone, Copy)]
struct Caller {
    /// Which of PUBLISH_API_KEY, from 1.
    key: usize,
    from: Option<IpAddr>,
}

/// A tenant id in the path.
struct TenantPath(TenantId);

impl<S: Send + Sync> FromRequestParts<S> for TenantPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let bad = |rule: &str| Problem::bad_request("invalid_tenant", format!("tenant: {rule}"));
        let Path(raw) =
            Path::<String>::from_request_parts(parts, state).await.map_err(|_| bad("must be one path segment"))?;
        TenantId::try_from(raw).map(Self).map_err(|error| bad(&error.to_string()))
    }
}

#[derive(Serialize)]
struct Accepted {
    seq: u64,
    id: EventId,
}

async fn publish(
    State(internal): State<Shared>,
    TenantPath(tenant): TenantPath,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    if !is_json(&headers) {
        return Err(Problem::unsupported_media_type());
    }
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("an event has at most {MAX_EVENT_BYTES} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
        }
        _ => Problem::bad_request("bad_request", "the body could not be read"),
    })?;
    let event = DashboardEvent::from_json(&body).map_err(|error| Problem::unprocessable(error.to_string()))?;
    match internal.engine.publish(&tenant, &event).await {
        Ok(Outcome::Published { seq, .. } | Outcome::Duplicate { seq }) => {
            Ok((StatusCode::ACCEPTED, Json(Accepted { seq, id: event.id })).into_response())
        }
        Ok(Outcome::Throttled { retry_after }) => Err(Problem::throttled(retry_after)),
        Ok(outcome) => Err(Problem::unavailable("unavailable", format!("unknown outcome: {outcome:?}"))),
        Err(PublishError::Invalid(error)) => Err(Problem::unprocessable(error.to_string())),
        Err(error) => {
            let problem = Problem::unavailable("unavailable", error.to_string());
            Err(problem.retry_after(Duration::from_secs(1)))
        }
    }
}

async fn disconnect_tenant(
    State(internal): State<Shared>,
    Extension(caller): Extension<Caller>,
    TenantPath(tenant): TenantPath,
) -> Result<Response, Problem> {
    kick(&internal, caller, Kicked::Tenant(tenant)).await
}

async fn disconnect_user(
    State(internal): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(sub): Path<String>,
) -> Result<Response, Problem> {
    if sub.len() > LONGEST_SUBJECT {
        let rule = format!("sub: must be at most {LONGEST_SUBJECT} bytes, no token has a longer one");
        return Err(Problem::bad_request("invalid_user", rule));
    }
    kick(&internal, caller, Kicked::User(sub.into())).await
}

async fn kick(internal: &Internal, Caller { key, from }: Caller, who: Kicked) -> Result<Response, Problem> {
    let shown = sanitised(&who.to_string());
    let kick = internal.engine.kick(who).await.map_err(|error| {
        let code = match error {
            KickError::Unavailable => "unavailable",
            KickError::Full => "too_many_kicks",
        };
        Problem::unavailable(code, error.to_string()).retry_after(Duration::from_secs(1))
    })?;
    // Here it is in force before the answer.
    let now = kick.at;
    internal.hub.kick(vec![kick], now).await;
    info!(who = shown, key, address = audit::shown(from), "kick taken");
    Ok(StatusCode::ACCEPTED.into_response())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connected {
    tenant_id: TenantId,
    connections: usize,
}

async fn tenants(State(internal): State<Shared>) -> Response {
    let tenants = internal.hub.tenants().await.into_iter();
    let tenants: Vec<_> = tenants.map(|(tenant_id, connections)| Connected { tenant_id, connections }).collect();
    Json(json!({"tenants": tenants})).into_response()
}

#[cfg(test)]
mod tests;
