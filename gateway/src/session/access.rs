//! Access: a token is verified, and no kick has revoked it. Every refusal is counted and logged.

use std::net::IpAddr;

use publisher::TenantId;

use super::audit::Audit;
use crate::hub::Hub;
use crate::tokens::{Claims, TokenError, Tokens};

/// Decides about tokens; cheap to clone.
#[derive(Clone)]
pub struct Access {
    tokens: Tokens,
    hub: Hub,
    audit: Audit,
}

impl Access {
    pub fn new(tokens: Tokens, hub: Hub, audit: Audit) -> Self {
        Self { tokens, hub, audit }
    }

    /// What a verified token says. `from` is the client's address, where it is known.
    ///
    /// # Errors
    /// Why the token is refused.
    pub async fn verify(&self, token: &str, from: Option<IpAddr>) -> Result<Claims, TokenError> {
        self.tokens.verify(token).await.inspect_err(|error| self.audit.token_refused(token, *error, from))
    }

    /// Whether a kick has revoked the token for this tenant.
    pub fn is_revoked(&self, tenant: &TenantId, claims: &Claims, from: Option<IpAddr>) -> bool {
        let revoked = self.hub.revokes(tenant, claims);
        if revoked {
            self.audit.token_revoked(from);
        }
        revoked
    }

    /// Whether there are keys to verify tokens with.
    pub fn has_keys(&self) -> bool {
        self.tokens.are_loaded()
    }
}
