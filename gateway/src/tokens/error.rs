//! Why a token is refused: facts that a socket, an HTTP answer and the log turn into their own words.

/// Why a token is refused. Its labels are ours and few; the token itself is never in here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of ours.
    #[error("the token is invalid: {0}")]
    Invalid(&'static str),
    /// It was one.
    #[error("the token has expired")]
    Expired,
    /// It is one, and says nothing usable about tenants.
    #[error("the token's tenant claim is unusable: {0}")]
    UnusableTenantClaim(&'static str),
    /// It may be one: the issuer's keys have not come yet, or not since the token named a key that they lack.
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
