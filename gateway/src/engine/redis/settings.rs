//! What the gateway's connections to Redis have in common.

use std::time::Duration;

use publisher::internals::Names;

use super::connection::Kind;

/// What is the same for every server.
#[derive(Clone)]
pub struct Settings {
    /// The names in Redis.
    pub names: Names,
    /// Events that a tenant's log holds.
    pub recovery_events: u32,
    /// How long a token can live, and so a revocation counts.
    pub token_lifetime: Duration,
    /// How tenants' channels are subscribed to.
    pub kind: Kind,
}
