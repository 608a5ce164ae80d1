//! The API's errors, and how each is answered.

use axum::{
    Json,
    extract::rejection::JsonRejection,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use publisher::outbox::RecordError;
use serde_json::json;
use tracing::error;

/// Why a request was not carried out. Its transaction was rolled back.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request can't be read.
    #[error("{0}")]
    Malformed(String),
    /// The centre has no such invoice or tenant.
    #[error("{0}: not found")]
    NotFound(&'static str),
    /// A field breaks a rule.
    #[error("{field}: {rule}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What it must be.
        rule: String,
    },
    /// The invoice's state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// The database failed, or there is a bug. The text goes to the log, not to the caller.
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        Self::Internal(error.into())
    }
}

impl From<RecordError> for ApiError {
    fn from(error: RecordError) -> Self {
        Self::Internal(error.into())
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::Malformed(rejection.body_text())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let detail = match &self {
            Self::Internal(cause) => {
                error!(%cause, "a request failed");
                "the request failed, and nothing of it was done; try again".to_owned()
            }
            other => other.to_string(),
        };
        let problem = json!({ "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail });
        (status, [(CONTENT_TYPE, "application/problem+json")], Json(problem).into_response().into_body())
            .into_response()
    }
}
