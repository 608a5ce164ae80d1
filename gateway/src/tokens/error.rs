//! Why a token is refused: facts that a socket, an HTTP answer and the log turn into their own words.

/// Why a token is refused. The texts are fixed: nothing of the token is in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It was never valid: malformed, badly signed, or against a rule.
    #[error("the token is invalid: {0}")]
    Invalid(&'static str),
    /// It was valid, until its `exp`.
    #[error("the token has expired")]
    Expired,
    /// It is valid, and its tenant claim can't be used.
    #[error("the token's tenant claim is unusable: {0}")]
    UnusableTenantClaim(&'static str),
    /// It may be valid: the issuer's keys have not come yet, or not since the token named a key that they lack.
    #[error("no key to check the token with yet")]
    NoKeys,
}

impl TokenError {
    /// The fixed word for metrics and logs.
    pub fn reason(&self) -> String {
        match self {
            Self::Invalid(why) => why.replace(' ', "_"),
            Self::Expired => "expired".to_owned(),
            Self::UnusableTenantClaim(_) => "unusable_tenant_claim".to_owned(),
            Self::NoKeys => "no_keys".to_owned(),
        }
    }
}
