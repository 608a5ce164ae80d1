//! Tokens like those of the CrecheBooks login.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde::Serialize;

/// Signs tokens with the gateway's HS256 secret.
#[derive(Clone)]
pub struct Mint {
    key: EncodingKey,
    expires_at: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Claims<'a> {
    sub: &'a str,
    tenant_id: &'a str,
    exp: u64,
}

impl Mint {
    /// Longer than any run: no token ends during one.
    const VALID_FOR: Duration = Duration::from_secs(24 * 3600);

    pub fn new(secret: &str) -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let expires_at = (unix + Self::VALID_FOR).as_secs();
        Self { key: EncodingKey::from_secret(secret.as_bytes()), expires_at }
    }

    /// A token whose key id no issuer has.
    pub fn of_unknown_key(&self, kid: &str) -> String {
        let part = |json: String| BASE64_URL_SAFE_NO_PAD.encode(json);
        let header = part(format!(r#"{{"alg":"RS256","typ":"JWT","kid":"{kid}"}}"#));
        let claims = part(format!(r#"{{"sub":"junk","tenantId":"junk","exp":{}}}"#, self.expires_at));
        format!("{header}.{claims}.{}", BASE64_URL_SAFE_NO_PAD.encode([7; 256]))
    }

    pub fn token(&self, user: &str, tenant: &str) -> anyhow::Result<String> {
        let claims = Claims { sub: user, tenant_id: tenant, exp: self.expires_at };
        encode(&Header::default(), &claims, &self.key).context("signing a token")
    }
}
