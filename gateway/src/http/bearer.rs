//! `Authorization: Bearer …` (RFC 6750 §2.1), and the refusal of tokens in the URL.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::problem::Problem;

/// Query parameters that people put tokens into. URLs end up in logs, histories and referrers.
const TOKEN_PARAMETERS: [&str; 8] =
    ["token", "access_token", "id_token", "jwt", "bearer", "auth", "authorization", "api_key"];

/// Why there is no bearer token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BearerError {
    /// The header isn't there.
    #[error("send Authorization: Bearer <token>")]
    Missing,
    /// Another scheme, or no token behind it.
    #[error("Authorization must be Bearer <token>")]
    Malformed,
    /// The header is there more than once.
    #[error("Authorization must be sent once")]
    Repeated,
}

impl From<BearerError> for Problem {
    fn from(error: BearerError) -> Self {
        match error {
            BearerError::Missing | BearerError::Malformed => Self::unauthorized(error.to_string()),
            BearerError::Repeated => Self::bad_request("bad_request", error.to_string()),
        }
    }
}

/// The bearer token of a request.
///
/// # Errors
/// [`BearerError`]; it never holds the header's value.
pub fn from_headers(headers: &HeaderMap) -> Result<&str, BearerError> {
    let mut values = headers.get_all(AUTHORIZATION).into_iter();
    let value = values.next().ok_or(BearerError::Missing)?;
    if values.next().is_some() {
        return Err(BearerError::Repeated);
    }
    let (scheme, token) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(BearerError::Malformed)?;
    let token = token.trim();
    let good = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ');
    good.then_some(token).ok_or(BearerError::Malformed)
}

/// Whether the query holds a token: as a parameter of a usual name, or as any value that looks like a JWT.
pub fn in_query(query: &str) -> bool {
    form_urlencoded::parse(query.as_bytes()).any(|(name, value)| {
        TOKEN_PARAMETERS.iter().any(|parameter| name.eq_ignore_ascii_case(parameter)) || value.starts_with("eyJ")
    })
}
