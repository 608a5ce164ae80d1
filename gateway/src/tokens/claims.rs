//! The claims of a signed token, and the rules that they must keep: time, issuer, audience, tenants.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use publisher::TenantId;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::error::TokenError;
use crate::config::ClaimRules;

/// How far the clocks of issuer and gateway may be apart.
pub const LEEWAY: Duration = Duration::from_secs(5);

/// The most tenants a token may name: an accountant's centres, not a database.
pub const MOST_TENANTS: usize = 256;

/// The longest timer that a caller needs; see [`Claims::remaining`].
pub const LONGEST_TIMER: Duration = Duration::from_secs(30 * 24 * 3600);

/// The longest `sub`: it is kept for every socket.
pub const LONGEST_SUBJECT: usize = 256;

/// What a verified token grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The user, if the token names one.
    pub subject: Option<Arc<str>>,
    /// The tenants that the token grants: at least one, each once, at most [`MOST_TENANTS`].
    pub tenants: Box<[TenantId]>,
    /// When it ends. Already past, by less than [`LEEWAY`], for a token that was accepted within it.
    pub expires_at: SystemTime,
    /// When it was issued, in seconds of Unix time; 0 without a usable `iat`, or with one further ahead than [`LEEWAY`]: such a
    /// token counts as older than any kick.
    pub issued_at: u64,
}

impl Claims {
    /// Whether the token names `tenant`.
    pub fn grants(&self, tenant: &TenantId) -> bool {
        self.tenants.contains(tenant)
    }

    /// The time until the token ends, [`LONGEST_TIMER`] at most, after which the caller looks again. Zero once it has ended.
    pub fn remaining(&self) -> Duration {
        self.expires_at.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST_TIMER)
    }
}

/// How long a kick is remembered: no token that it revokes lives longer, with clocks that differ by the leeway.
pub fn kick_lifetime(rules: &ClaimRules) -> Duration {
    rules.max_lifetime + 2 * LEEWAY
}

/// What the configuration demands of the claims.
pub(super) struct Rules {
    issuer: Option<String>,
    audience: Option<String>,
    tenant_claim: String,
    max_lifetime: Duration,
}

impl Rules {
    pub(super) fn new(rules: &ClaimRules) -> Self {
        Self {
            issuer: rules.issuer.clone(),
            audience: rules.audience.clone(),
            tenant_claim: rules.tenant_claim.clone(),
            max_lifetime: rules.max_lifetime,
        }
    }

    pub(super) fn check(&self, UniqueClaims(claims): UniqueClaims) -> Result<Claims, TokenError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let expires = seconds(claims.get("exp")).ok_or(TokenError::Invalid("no usable exp"))?;
        if expires + LEEWAY.as_secs_f64() <= now.as_secs_f64() {
            return Err(TokenError::Expired);
        }
        // A kick is remembered for as long as a token that it revokes can live: no token may outlive that.
        if expires > (now + self.max_lifetime + LEEWAY).as_secs_f64() {
            return Err(TokenError::Invalid("expires too far ahead"));
        }
        if let Some(not_before) = claims.get("nbf") {
            let not_before = seconds(Some(not_before)).ok_or(TokenError::Invalid("no usable nbf"))?;
            if not_before > now.as_secs_f64() + LEEWAY.as_secs_f64() {
                return Err(TokenError::Invalid("not valid yet"));
            }
        }
        if let Some(issuer) = &self.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err(TokenError::Invalid("wrong issuer"));
        }
        if let Some(audience) = &self.audience
            && !claims.get("aud").is_some_and(|aud| names(aud, audience))
        {
            return Err(TokenError::Invalid("wrong audience"));
        }
        Ok(Claims {
            subject: subject(claims.get("sub"))?,
            tenants: tenants(claims.get(&self.tenant_claim))?,
            expires_at: UNIX_EPOCH + Duration::from_secs_f64(expires),
            issued_at: seconds(claims.get("iat"))
                .filter(|issued| *issued <= (now + LEEWAY).as_secs_f64())
                .map_or(0, |issued| issued as u64),
        })
    }
}

/// A NumericDate (RFC 7519 §2): whole or not, never negative.
fn seconds(claim: Option<&Value>) -> Option<f64> {
    claim?.as_f64().filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
}

/// `aud` is one string or several; one of several is enough.
fn names(claim: &Value, wanted: &str) -> bool {
    match claim {
        Value::String(one) => one == wanted,
        Value::Array(several) => several.iter().any(|one| one.as_str() == Some(wanted)),
        _ => false,
    }
}

fn subject(claim: Option<&Value>) -> Result<Option<Arc<str>>, TokenError> {
    match claim {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(subject)) if subject.len() <= LONGEST_SUBJECT => Ok(Some(subject.as_str().into())),
        // An integer is its digits: the same user as the text of them.
        Some(Value::Number(subject)) if subject.is_u64() || subject.is_i64() => {
            Ok(Some(subject.to_string().as_str().into()))
        }
        Some(_) => Err(TokenError::Invalid("no usable sub")),
    }
}

/// All or nothing: a claim that is wrong in one place may be wrong in all.
fn tenants(claim: Option<&Value>) -> Result<Box<[TenantId]>, TokenError> {
    let named = match claim {
        None => return Err(TokenError::UnusableTenantClaim("missing")),
        Some(one @ Value::String(_)) => std::slice::from_ref(one),
        Some(Value::Array(several)) => several.as_slice(),
        Some(_) => return Err(TokenError::UnusableTenantClaim("neither a string nor an array of strings")),
    };
    if named.is_empty() {
        return Err(TokenError::UnusableTenantClaim("names no tenant"));
    }
    if named.len() > MOST_TENANTS {
        return Err(TokenError::UnusableTenantClaim("names too many tenants"));
    }
    let mut tenants = Vec::with_capacity(named.len());
    for tenant in named {
        let tenant =
            tenant.as_str().ok_or(TokenError::UnusableTenantClaim("neither a string nor an array of strings"))?;
        let tenant = TenantId::try_from(tenant).map_err(|_| TokenError::UnusableTenantClaim("not a tenant id"))?;
        if !tenants.contains(&tenant) {
            tenants.push(tenant);
        }
    }
    Ok(tenants.into())
}

/// The claims as they were signed. A name that comes twice means one thing to one reader and another to the next, so it
/// is refused, as RFC 7519 §4 allows.
pub(super) struct UniqueClaims(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for UniqueClaims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = UniqueClaims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of claims")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<UniqueClaims, M::Error> {
                let mut claims = BTreeMap::new();
                while let Some((name, value)) = map.next_entry()? {
                    if claims.insert(name, value).is_some() {
                        return Err(de::Error::custom("duplicate claim"));
                    }
                }
                Ok(UniqueClaims(claims))
            }
        }

        deserializer.deserialize_map(Object)
    }
}
