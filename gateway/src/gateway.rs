//! What every connection shares: one value, passed down.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Config;
use crate::engine::Engine;
use crate::hub::{Hub, MemberId};
use crate::metrics::Metrics;
use crate::pulse::Pulse;
use crate::shutdown::Shutdown;
use crate::snapshots::Snapshots;
use crate::socket::slots::Slots;
use crate::tokens::Tokens;

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
    /// Places for sockets.
    pub slots: Slots,
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
    /// A number for a new socket, never used before.
    pub fn next_member(&self) -> MemberId {
        MemberId(self.sockets.fetch_add(1, Ordering::Relaxed))
    }
}
