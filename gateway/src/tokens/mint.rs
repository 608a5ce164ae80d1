//! Signs tokens for the demo and for trials; those of production come from CrecheBooks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use publisher::TenantId;
use serde_json::{Map, Value};

use crate::config::{ConfigError, JwtSettings, KeySource};

/// A token for `tenants` that this configuration accepts for `ttl`; needs its `JWT_SECRET`.
pub fn mint(
    jwt: &JwtSettings,
    tenants: &[TenantId],
    subject: Option<&str>,
    ttl: Duration,
) -> Result<String, ConfigError> {
    let Some(KeySource::Secret(secret)) = &jwt.keys else {
        return Err(ConfigError::new(
            "JWT_SECRET",
            "needed to sign a token; the private half of a public key is not ours to have",
        ));
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let tenants = match tenants {
        [one] => Value::from(one.as_str()),
        several => several.iter().map(TenantId::as_str).collect(),
    };
    let claims: Map<String, Value> = [
        ("sub", subject.map(Value::from)),
        ("iss", jwt.claims.issuer.as_deref().map(Value::from)),
        ("aud", jwt.claims.audience.as_deref().map(Value::from)),
        ("iat", Some(now.into())),
        ("exp", Some(now.saturating_add(ttl.as_secs()).into())),
        (&jwt.claims.tenant_claim, Some(tenants)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect();
    // The first secret is the current one.
    let key = EncodingKey::from_secret(secret.keys().next().unwrap_or_default().as_bytes());
    let token = encode(&Header::new(Algorithm::HS256), &claims, &key);
    Ok(token.expect("HS256 signs any claims with any key"))
}
