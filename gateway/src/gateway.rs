//! What every connection shares: one value, passed down.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use publisher::TenantId;

use crate::audit::Audit;
use crate::config::Config;
use crate::engine::Engine;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::pulse::Pulse;
use crate::session::slots::Slots;
use crate::shutdown::Shutdown;
use crate::snapshots::Snapshots;
use crate::socket::SocketId;
use crate::socket::link::QueueLimits;
use crate::tokens::{Claims, TokenError, Tokens};

/// The parts of a running gateway.
pub struct Gateway {
    /// As it was read at start.
    pub config: Config,
    /// Who may join what.
    pub tokens: Tokens,
    /// Where events come from.
    pub engine: Engine,
    /// The rooms.
    pub hub: Hub,
    /// What dashboards start from, when there is a database.
    pub snapshots: Option<Snapshots>,
    /// What may wait for the sockets.
    pub queues: Arc<QueueLimits>,
    /// Places for sockets.
    pub slots: Slots,
    /// What is said of what was refused.
    pub audit: Audit,
    /// What is counted.
    pub metrics: Metrics,
    /// When to go.
    pub shutdown: Shutdown,
    /// Whether the gateway itself was held up.
    pub pulse: Pulse,
    /// The last socket's number.
    pub sockets: AtomicU64,
}

/// Shared by every task.
pub type Shared = Arc<Gateway>;

impl Gateway {
    /// What a token says, if it is to be believed. It came from this address, if one is known.
    ///
    /// # Errors
    /// Why it is not; that is counted, and said in the log.
    pub async fn verify(&self, token: &str, from: Option<IpAddr>) -> Result<Claims, TokenError> {
        self.tokens.verify(token).await.inspect_err(|error| self.audit.token_refused(token, *error, from))
    }

    /// Whether a kick has revoked the token, where it is shown for this tenant; that is counted, and said in the log.
    pub fn is_revoked(&self, tenant: &TenantId, claims: &Claims, from: Option<IpAddr>) -> bool {
        let revoked = self.hub.revokes(tenant, claims);
        if revoked {
            self.audit.token_revoked(from);
        }
        revoked
    }

    /// A number for a new socket, never used before.
    pub fn next_socket(&self) -> SocketId {
        SocketId(self.sockets.fetch_add(1, Ordering::Relaxed))
    }
}
