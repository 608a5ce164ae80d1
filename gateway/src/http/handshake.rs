//! `GET /dashboard`: the opening handshake of a WebSocket (RFC 6455 §4.2), and which requests are refused before the upgrade.
//!
//! A refused token is an exception: it is refused on the socket, since browsers can't read the status of a failed handshake.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{
    CONNECTION, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::net::TcpStream;
use tracing::debug;

use super::address::ClientAddress;
use super::bearer::{self, BearerError};
use super::offer::{Offer, SUBPROTOCOL};
use super::problem::Problem;
use super::stream::WatchedStream;
use crate::config::Origins;
use crate::session::audit::Audit;
use crate::session::context::Context;
use crate::session::newcomer::{Full, Newcomer};
use crate::socket::dialect::Dialect;

/// RFC 6455 §1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a handshake needs.
pub struct Handshakes {
    pub context: Arc<Context>,
    pub origins: Origins,
    pub audit: Audit,
}

pub async fn upgrade(State(handshakes): State<Arc<Handshakes>>, request: Request) -> Response {
    let metrics = &handshakes.context.metrics;
    match accept(&handshakes, request).await {
        Ok(response) => {
            metrics.handshake("accepted");
            response
        }
        Err(problem) => {
            metrics.handshake(match (problem.status, problem.code) {
                (StatusCode::FORBIDDEN, _) => "forbidden",
                (_, "full") => "full",
                (_, "draining") => "draining",
                _ => "refused",
            });
            problem.into_response()
        }
    }
}

async fn accept(handshakes: &Handshakes, mut request: Request) -> Result<Response, Problem> {
    let upgraded = hyper::upgrade::on(&mut request);
    if request.method() != Method::GET {
        return Err(Problem::method_not_allowed("GET"));
    }
    let from = ClientAddress::of(request.extensions()).map(|client| client.0);
    let headers = request.headers();
    let accept = check_upgrade(request.version(), headers)?;
    check_origin(handshakes, headers, from)?;
    let offer = Offer::parse(headers)?;
    let token = match (bearer::from_headers(headers), offer.token) {
        (Ok(header), Some(offered)) if header != offered => {
            return Err(Problem::bad_request(
                "bad_handshake",
                "two different tokens: send one, by header or by subprotocol",
            ));
        }
        (Ok(token), _) | (Err(BearerError::Missing), Some(token)) => Some(token),
        (Err(BearerError::Missing), None) => None,
        (Err(error), _) => return Err(error.into()),
    };

    let context = &handshakes.context;
    if context.shutdown.is_draining() {
        return Err(Problem::draining());
    }
    let newcomer = Newcomer::admit(context, token, offer.choice, from).await.map_err(|Full| Problem::full())?;
    newcomer.serve(context.clone(), Dialect::Native, raw_stream(upgraded));

    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if offer.ours {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(response)
}

/// The connection itself, out of hyper's hands, with what was read from it beyond the handshake.
async fn raw_stream(upgraded: OnUpgrade) -> Option<(TcpStream, Bytes)> {
    let upgraded = upgraded.await.inspect_err(|error| debug!(%error, "upgrade failed")).ok()?;
    let parts = upgraded.downcast::<TokioIo<WatchedStream>>().ok()?;
    // Registered anew, and copied: hyper's task, which the old registration would wake, and hyper's buffer would otherwise live as
    // long as the socket. They are a third of what it costs.
    let stream = TcpStream::from_std(parts.io.into_inner().into_inner().into_std().ok()?).ok()?;
    Some((stream, Bytes::copy_from_slice(&parts.read_buf)))
}

/// Checks the request of RFC 6455 §4.2.1; returns the answer to its key.
fn check_upgrade(version: Version, headers: &HeaderMap) -> Result<HeaderValue, Problem> {
    let upgrade_required = |detail| {
        Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", detail)
            .with_header(UPGRADE, "websocket")
            .with_header(CONNECTION, "Upgrade")
            .with_header(SEC_WEBSOCKET_VERSION, "13")
    };
    if version != Version::HTTP_11 {
        return Err(upgrade_required("WebSockets need HTTP/1.1"));
    }
    if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket") {
        return Err(upgrade_required("this is a WebSocket: send Connection: Upgrade and Upgrade: websocket"));
    }
    if only(headers, &SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(upgrade_required("Sec-WebSocket-Version must be 13"));
    }
    let key = only(headers, &SEC_WEBSOCKET_KEY).unwrap_or_default();
    if BASE64.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
        return Err(Problem::bad_request("bad_handshake", "Sec-WebSocket-Key must be 16 bytes in base64, once"));
    }
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    let accept = HeaderValue::try_from(BASE64.encode(digest));
    accept.map_err(|_| Problem::bad_request("bad_handshake", "Sec-WebSocket-Key must be base64"))
}

fn check_origin(handshakes: &Handshakes, headers: &HeaderMap, from: Option<IpAddr>) -> Result<(), Problem> {
    if !headers.contains_key(ORIGIN) {
        return Ok(()); // not a browser
    }
    match only(headers, &ORIGIN) {
        Some(origin) if handshakes.origins.allows(origin) => Ok(()),
        refused => {
            handshakes.audit.origin_refused(refused.unwrap_or_default(), from);
            Err(Problem::forbidden("origin", "pages of this origin may not connect"))
        }
    }
}

/// Whether a comma-separated header holds a token, in any case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// A header that must not be repeated.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).into_iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}
