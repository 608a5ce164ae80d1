//! `gateway token --explain`: what a token says, and which rule it breaks.

use std::fmt::Write;
use std::time::UNIX_EPOCH;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::TokenError;
use super::parts::{parts, shown};
use super::verifier::Tokens;
use crate::config::{ClaimRules, JwtSettings};

/// Describes a token: its claims, and whether this configuration accepts it or which rule it breaks.
pub async fn explain(tokens: &Tokens, jwt: &JwtSettings, token: &str) -> (String, Result<(), TokenError>) {
    let (header, claims) = parts(token);
    let mut text = String::new();
    for (of, names) in
        [(&header, &["alg", "kid", "typ"][..]), (&claims, &["iss", "aud", "sub", &jwt.claims.tenant_claim])]
    {
        for name in names {
            let _ = writeln!(text, "{name}: {}", shown(&of[name]));
        }
    }
    for name in ["iat", "nbf", "exp"] {
        let _ = writeln!(text, "{name}: {}{}", shown(&claims[name]), moment(&claims[name]));
    }
    let result = tokens.verify(token).await;
    match &result {
        Ok(granted) => {
            let tenants: Vec<_> = granted.tenants.iter().map(|tenant| tenant.as_str()).collect();
            let until = OffsetDateTime::from(granted.expires_at).format(&Rfc3339).unwrap_or_default();
            let seconds = granted.expires_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let _ = write!(
                text,
                "accepted: for {}, until {until} ({seconds}); a kick may have revoked it",
                tenants.join(", ")
            );
        }
        Err(error) => {
            let _ = write!(text, "refused: {error}{}", hint(error, &jwt.claims));
        }
    }
    (text, result.map(drop))
}

/// A NumericDate as readable text.
fn moment(claim: &Value) -> String {
    let at = claim.as_f64().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds as i64).ok());
    at.and_then(|at| at.format(&Rfc3339).ok()).map_or(String::new(), |at| format!(" ({at})"))
}

/// The setting that a refusal is about.
fn hint(error: &TokenError, rules: &ClaimRules) -> String {
    let or_none = |value: &Option<String>| value.clone().unwrap_or_default();
    match error {
        TokenError::Invalid("wrong issuer") => format!("; JWT_ISSUER is {}", or_none(&rules.issuer)),
        TokenError::Invalid("wrong audience") => format!("; JWT_AUDIENCE is {}", or_none(&rules.audience)),
        TokenError::Invalid("no usable exp") => "; exp is required, in seconds of Unix time".to_owned(),
        TokenError::Invalid("expires too far ahead") => {
            format!("; JWT_MAX_LIFETIME_SECONDS is {}", rules.max_lifetime.as_secs())
        }
        TokenError::Invalid("wrong signature") => {
            "; another key signed it than JWT_SECRET, JWT_PUBLIC_KEY_FILE or JWT_JWKS has".to_owned()
        }
        TokenError::Invalid("unknown key") => "; JWT_JWKS has no key of that kid".to_owned(),
        TokenError::Invalid("wrong type") => "; typ may be absent, JWT, at+jwt or application/at+jwt".to_owned(),
        TokenError::UnusableTenantClaim(_) => format!("; JWT_TENANT_CLAIM is {}", rules.tenant_claim),
        TokenError::NoKeys => "; JWT_JWKS could not be read".to_owned(),
        TokenError::Invalid(_) | TokenError::Expired => String::new(),
    }
}
