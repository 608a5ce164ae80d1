//! Errors over HTTP: `application/problem+json` (RFC 9457), with a `code` of ours for programs.

use std::time::Duration;

use axum::Json;
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use publisher::TenantId;
use serde_json::json;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// The reason, for programs; one of few.
    pub code: &'static str,
    /// The reason, for people. Never holds a token.
    pub detail: String,
    /// When it makes sense to try again.
    pub retry_after: Option<Duration>,
    /// What the caller can choose among.
    pub tenants: Option<Vec<TenantId>>,
    headers: Vec<(HeaderName, &'static str)>,
}

impl Problem {
    /// A refusal without a time to come back.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None, tenants: None, headers: Vec::new() }
    }

    /// Asks the caller to come back after `pause`.
    #[must_use]
    pub fn retry_after(self, pause: Duration) -> Self {
        Self { retry_after: Some(pause), ..self }
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// 400: the request makes no sense.
    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 400: a choice among these is missing.
    pub fn tenant_required(tenants: Vec<TenantId>) -> Self {
        let detail = "tenantId is needed: the token names several tenants";
        Self { tenants: Some(tenants), ..Self::bad_request("tenant_required", detail) }
    }

    /// 401: the caller has to show a token or a key.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// 403: the caller is known, and not allowed.
    pub fn forbidden(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    /// 404: nothing is here.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here")
    }

    /// 405: not like this, but with `allowed`.
    pub fn method_not_allowed(allowed: &'static str) -> Self {
        let detail = format!("only {allowed} is allowed here");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail).with_header(ALLOW, allowed)
    }

    /// 415: only JSON is read.
    pub fn unsupported_media_type() -> Self {
        let detail = "Content-Type must be application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
    }

    /// 422: well-formed, and one field breaks a rule; `detail` names it.
    pub fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_event", detail)
    }

    /// 429: the tenant has had its events for this second.
    pub fn throttled(pause: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "throttled", "the tenant's event rate is used up").retry_after(pause)
    }

    /// 503: temporarily unavailable.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
    }

    /// 503: this instance is leaving; another one takes the socket.
    pub fn draining() -> Self {
        Self::unavailable("draining", "this instance is restarting").retry_after(Duration::from_secs(1))
    }

    /// 503: every socket is taken.
    pub fn full() -> Self {
        Self::unavailable("full", "all connections of this instance are taken").retry_after(Duration::from_secs(1))
    }
}

/// Answers a request of another method than GET, for a route that has no other.
pub async fn only_get() -> Problem {
    Problem::method_not_allowed("GET")
}

/// Answers a request of another method than POST, for a route that has no other.
pub async fn only_post() -> Problem {
    Problem::method_not_allowed("POST")
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let status = self.status.as_u16();
        let mut body =
            json!({"type": "about:blank", "title": title, "status": status, "code": self.code, "detail": self.detail});
        if let Some(tenants) = self.tenants {
            body["tenants"] = json!(tenants);
        }
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.extend(self.headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(pause) = self.retry_after {
            // Whole seconds, rounded up: earlier would be too early.
            let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http_body_util::BodyExt;

    use super::*;

    async fn answer(problem: Problem) -> (Response<()>, serde_json::Value) {
        let (parts, body) = problem.into_response().into_parts();
        let body = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
        (Response::from_parts(parts, ()), body)
    }

    #[tokio::test]
    async fn b30_full_says_when_to_come_back() {
        let (response, body) = answer(Problem::full()).await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["retry-after"], "1");
        let detail = "all connections of this instance are taken";
        let expected = json!({"type": "about:blank", "title": "Service Unavailable", "status": 503, "code": "full", "detail": detail});
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn a_pause_is_rounded_up_to_whole_seconds() {
        for (millis, header) in [(1, "1"), (1000, "1"), (1001, "2"), (0, "1")] {
            let (response, _) = answer(Problem::throttled(Duration::from_millis(millis))).await;
            assert_eq!(response.headers()["retry-after"], header, "{millis} ms");
        }
    }

    #[tokio::test]
    async fn unauthorized_names_the_scheme() {
        let (response, _) = answer(Problem::unauthorized("a token is needed")).await;
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }
}
