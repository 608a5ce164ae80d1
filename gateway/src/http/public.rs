//! The public face: the socket, the snapshot, the page and the description of the protocol.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ORIGIN, REFERRER_POLICY, RETRY_AFTER,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use memory_serve::CacheControl;
use publisher::TenantId;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::set_header::SetResponseHeaderLayer;

use super::address::ClientAddress;
use super::bearer;
use super::handshake::{self, Handshakes};
use super::problem::{Problem, only_get};
use crate::config::Origins;
use crate::engine::{Engine, Position, Request as EngineRequest};
use crate::session::access::Access;
use crate::session::audit::Audit;
use crate::session::context::Context;
use crate::snapshots::Snapshots;
use crate::socket::protocol::SnapshotData;
use crate::tokens::{Claims, TokenError};

/// How long a snapshot may wait for the engine.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);

/// What the page may do: load its own files, and connect back to where it came from.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Abilities of the browser that the page needs none of.
const PERMISSIONS: &str = "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), hid=(), magnetometer=(), microphone=(), midi=(), payment=(), serial=(), usb=()";

/// How long a browser may rely on the answer to a preflight: a page that polls asks for each second poll otherwise.
const PREFLIGHT_LIFE: Duration = Duration::from_secs(600);

/// What the public port serves from.
pub struct Public {
    pub context: Arc<Context>,
    pub origins: Origins,
    pub audit: Audit,
    pub access: Access,
    /// `None` without real time: then no stream has a position.
    pub engine: Option<Engine>,
    pub snapshots: Option<Snapshots>,
}

/// What `GET /dashboard/snapshot` needs.
struct SnapshotSource {
    access: Access,
    engine: Option<Engine>,
    snapshots: Option<Snapshots>,
}

/// The routes of the public port.
pub fn routes(public: Public) -> Router {
    let Public { context, origins, audit, access, engine, snapshots } = public;
    let cors = readable_by(origins.clone());
    let handshakes = Arc::new(Handshakes { context, origins, audit });
    let source = Arc::new(SnapshotSource { access, engine, snapshots });
    let header =
        |name: HeaderName, value| SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value));
    Router::new()
        .route("/dashboard", any(handshake::upgrade).with_state(handshakes))
        .route("/dashboard/snapshot", get(snapshot).fallback(only_get).layer(cors).with_state(source))
        .route("/asyncapi.json", get(asyncapi).fallback(only_get))
        .merge(page())
        .layer(header(REFERRER_POLICY, "no-referrer"))
        .layer(header(CONTENT_SECURITY_POLICY, PAGE_POLICY))
        .layer(header(HeaderName::from_static("cross-origin-opener-policy"), "same-origin"))
        .layer(header(HeaderName::from_static("cross-origin-resource-policy"), "same-origin"))
        .layer(header(HeaderName::from_static("permissions-policy"), PERMISSIONS))
        .layer(CatchPanicLayer::new())
}

/// Lets pages of the allowed origins read the answer, refusals included. No credentials are allowed: the token is the page's own.
fn readable_by(allowed: Origins) -> CorsLayer {
    let origin = match allowed.are_all() {
        true => AllowOrigin::any(),
        false => AllowOrigin::predicate(move |origin, _| origin.to_str().is_ok_and(|origin| allowed.allows(origin))),
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET])
        .allow_headers([AUTHORIZATION])
        .expose_headers([RETRY_AFTER])
        .max_age(PREFLIGHT_LIFE)
        .vary([ORIGIN])
}

/// The page's files, embedded and compressed at build time. Those with their hash in the name are kept by browsers for ever.
fn page() -> Router {
    memory_serve::load!().html_cache_control(CacheControl::NoCache).cache_control(CacheControl::Long).into_router()
}

async fn asyncapi() -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-cache")];
    (headers, include_str!("../asyncapi.json")).into_response()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotQuery {
    tenant_id: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Snapshot<'a> {
    tenant_id: TenantId,
    epoch: Option<String>,
    seq: Option<u64>,
    #[serde(flatten)]
    snapshot: SnapshotData<'a>,
}

/// `GET /dashboard/snapshot`: where a tenant's stream stands, for a page that can't or may not hold a socket.
async fn snapshot(State(source): State<Arc<SnapshotSource>>, request: Request) -> Result<Response, Problem> {
    let query = Query::<SnapshotQuery>::try_from_uri(request.uri());
    let Query(query) = query.map_err(|_| Problem::bad_request("bad_request", "tenantId must be given at most once"))?;
    let from = ClientAddress::of(request.extensions()).map(|client| client.0);
    let claims = authenticate(&source.access, request.headers(), from).await?;
    let tenant = the_tenant(&claims, query.tenant_id)?;
    let refuse_revoked = || match source.access.is_revoked(&tenant, &claims, from) {
        true => Err(Problem::unauthorized("the token was revoked")),
        false => Ok(()),
    };
    refuse_revoked()?;
    let placed = match &source.snapshots {
        Some(snapshots) => snapshots.placed(&tenant, head(source.engine.as_ref(), &tenant)).await,
        None => head(source.engine.as_ref(), &tenant).await.map(|head| Arc::new((head, None))),
    };
    let placed = placed.ok_or_else(|| {
        Problem::unavailable("redis", "the events' store can't be reached").retry_after(Duration::from_secs(1))
    })?;
    // The answer may have waited for Redis, and with it for a kick.
    refuse_revoked()?;
    let (head, snapshot) = &*placed;
    let snapshot = Snapshot {
        tenant_id: tenant,
        epoch: head.as_ref().map(|head| head.epoch.to_string()),
        seq: head.as_ref().map(|head| head.seq),
        snapshot: snapshot.as_deref().into(),
    };
    Ok(([(CACHE_CONTROL, "no-store")], Json(snapshot)).into_response())
}

/// The position of the tenant's stream; `None` when the engine gives none in time. With real time off there is no stream to go on with,
/// and the engine is not asked: its server may be why real time was switched off.
async fn head(engine: Option<&Engine>, tenant: &TenantId) -> Option<Option<Position>> {
    let Some(engine) = engine else { return Some(None) };
    let (reply, position) = oneshot::channel();
    engine.request(EngineRequest::Head { tenant: tenant.clone(), reply });
    timeout(HEAD_TIMEOUT, position).await.ok().and_then(Result::ok).map(Some)
}

async fn authenticate(access: &Access, headers: &HeaderMap, from: Option<IpAddr>) -> Result<Claims, Problem> {
    let token = bearer::from_headers(headers)?;
    access.verify(token, from).await.map_err(|error| match error {
        TokenError::UnusableTenantClaim(_) => {
            Problem::forbidden("unusable_claim", "the token names no tenant that can be used")
        }
        TokenError::Invalid(_) | TokenError::Expired => {
            Problem::unauthorized("the token is missing, invalid or expired")
        }
        TokenError::NoKeys => {
            Problem::unavailable("keys", "tokens can't be checked yet").retry_after(Duration::from_secs(1))
        }
    })
}

/// The tenant that is asked for, or the only one there is.
fn the_tenant(claims: &Claims, asked: Option<String>) -> Result<TenantId, Problem> {
    match (asked, &claims.tenants[..]) {
        (Some(asked), _) => {
            let asked = TenantId::try_from(asked).ok().filter(|tenant| claims.grants(tenant));
            asked.ok_or_else(|| Problem::forbidden("wrong_tenant", "the token does not name this tenant"))
        }
        (None, [tenant]) => Ok(tenant.clone()),
        (None, several) => Err(Problem::tenant_required(several.to_vec())),
    }
}
