//! What an unverified token says: for the log of refused tokens, and for `gateway token --explain`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use publisher::internals::sanitised;
use serde_json::Value;

/// Longer than any valid token: a client must not make the gateway hash megabytes.
pub const LONGEST_TOKEN: usize = 16 * 1024;

/// Where a refused token may come from: shortened, without control characters, and without its user.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
    /// `kid`.
    pub kid: String,
}

impl Hints {
    /// Reads them from a token; a missing one is empty.
    pub fn of(token: &str) -> Self {
        let (header, claims) = parts(token);
        Self { issuer: shown(&claims["iss"]), audience: shown(&claims["aud"]), kid: shown(&header["kid"]) }
    }
}

/// Header and claims, `null` where they can't be read.
pub(super) fn parts(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').filter(|_| token.len() <= LONGEST_TOKEN).map(|part| {
        URL_SAFE_NO_PAD.decode(part).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
    });
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => sanitised(text),
        other => sanitised(&other.to_string()),
    }
}
