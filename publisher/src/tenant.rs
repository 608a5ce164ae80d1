//! A centre's id, which is checked once, where it enters.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::sanitised::sanitised;

/// A centre's id: 1 to 64 of `[A-Za-z0-9_-]`.
///
/// Safe in a Redis name, in SQL and in a log line, since no other string can become one. Cheap to clone.
///
/// ```
/// use publisher::TenantId;
///
/// let acorn: TenantId = "acorn".parse()?;
/// assert_eq!(acorn.as_str(), "acorn");
/// assert!("acorn}:events".parse::<TenantId>().is_err());
/// # Ok::<(), publisher::InvalidTenantId>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct TenantId(Arc<str>);

/// The text is no tenant id. Says the rule, and as much of the text as is safe to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tenant id is 1 to 64 of [A-Za-z0-9_-], not \"{shown}\"")]
pub struct InvalidTenantId {
    shown: String,
}

impl TenantId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The alphabet that tenant ids and event ids share: no character of it means anything to Redis, SQL, a shell or a URL.
pub(crate) fn is_plain_id(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

impl TryFrom<&str> for TenantId {
    type Error = InvalidTenantId;

    fn try_from(raw: &str) -> Result<Self, InvalidTenantId> {
        if is_plain_id(raw) { Ok(Self(raw.into())) } else { Err(InvalidTenantId { shown: sanitised(raw) }) }
    }
}

impl TryFrom<String> for TenantId {
    type Error = InvalidTenantId;

    fn try_from(raw: String) -> Result<Self, InvalidTenantId> {
        raw.as_str().try_into()
    }
}

impl FromStr for TenantId {
    type Err = InvalidTenantId;

    fn from_str(raw: &str) -> Result<Self, InvalidTenantId> {
        raw.try_into()
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_alphabet_becomes_a_tenant() {
        let long = "x".repeat(65);
        for bad in
            ["", "*", "?", "[a]", "{t1}", "t1}:events", "a b", "a\r\nb", "a\0", "../t2", "t%31", "tést", "ｔ1", &long]
        {
            assert!(TenantId::try_from(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["t1", "T1", "_", "-", &"x".repeat(64)] {
            assert_eq!(TenantId::try_from(good).expect("a good id").as_str(), good);
        }
    }

    #[test]
    fn case_tells_tenants_apart() {
        assert_ne!("T1".parse::<TenantId>(), "t1".parse::<TenantId>());
    }

    #[test]
    fn the_error_says_the_rule_and_echoes_little_of_the_text() {
        let error =
            TenantId::try_from(format!("\x1b[31m{}", "x".repeat(10_000))).expect_err("far too long").to_string();
        assert!(error.contains("1 to 64 of [A-Za-z0-9_-]"), "{error}");
        assert!(error.len() < 140 && !error.contains('\x1b'), "{error}");
    }

    #[test]
    fn json_goes_through_the_same_door() {
        assert!(serde_json::from_str::<TenantId>(r#""acorn""#).is_ok());
        assert!(serde_json::from_str::<TenantId>(r#""a:b""#).is_err());
    }
}
