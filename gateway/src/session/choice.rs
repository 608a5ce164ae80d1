//! What a handshake says of the room to join.

use publisher::TenantId;

use crate::engine::Position;

/// What the handshake says of the room to join; empty where it says nothing, says it twice, or can't be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// One of the token's tenants.
    pub tenant: Option<TenantId>,
    /// The last event that the client has seen.
    pub resume: Option<Position>,
}
