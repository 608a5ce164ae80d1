//! Rules for every request on both ports, whatever its path: what a load balancer and a server could understand differently is refused
//! (request smuggling), and so are tokens in the URL.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Method, Version};

use super::bearer;
use super::heads::Ambiguous;
use super::problem::Problem;

/// Lets a request through that breaks no rule.
pub async fn strict(request: Request, next: Next) -> Response {
    match broken(&request) {
        Some(rule) => Problem::bad_request("bad_request", rule).with_header(CONNECTION, "close").into_response(),
        None => next.run(request).await,
    }
}

/// The rule that the request breaks.
fn broken(request: &Request) -> Option<&'static str> {
    let headers = request.headers();
    match headers.get_all(HOST).into_iter().count() {
        1 => {}
        // HTTP/1.0 has no Host; simple health checks speak it.
        0 if request.version() == Version::HTTP_10 => {}
        _ => return Some("Host must be sent once"),
    }
    if request.uri().authority().is_some() {
        return Some("the request target must be a path");
    }
    if request.extensions().get::<Ambiguous>().is_some_and(Ambiguous::get) {
        return Some("Content-Length and Transfer-Encoding exclude each other");
    }
    let body =
        headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    if request.method() == Method::GET && body {
        return Some("a GET has no body");
    }
    let token = request.uri().query().is_some_and(bearer::in_query);
    token.then_some("a token must not be in the URL: use Authorization: Bearer")
}
