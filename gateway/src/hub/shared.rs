//! What the rooms of one shard share: the ways out of a room, its timers, and the turns of joins.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use publisher::internals::{Message, MessageType};
use publisher::{DashboardEventType, TenantId};
use tokio::sync::mpsc;
use tokio_util::time::DelayQueue;

use super::admission::{PATIENCE, Permit};
use super::input::Input;
use super::kicks::Kicks;
use super::stream::position_of;
use crate::config::Limits;
use crate::engine::{Engine, Position, Request, Ticket};
use crate::metrics::Metrics;
use crate::metrics_refresh::MetricsRefresh;
use crate::shutdown::spawn_brief;
use crate::snapshots::{LIFE, Snapshots};
use crate::socket::SocketId;
use crate::socket::snapshot::{Parts, Snapshot};

/// The settings of rooms.
#[derive(Debug, Clone, Copy)]
pub struct RoomLimits {
    /// Between two heartbeats, and between two comparisons of the position with the engine's.
    pub heartbeat: Duration,
    /// How long an empty room stays subscribed.
    pub linger: Duration,
    /// Sockets of one tenant on this instance.
    pub max_per_tenant: usize,
}

impl RoomLimits {
    /// Those of the configuration.
    pub fn of(limits: &Limits) -> Self {
        Self {
            heartbeat: limits.heartbeat,
            linger: limits.unsubscribe_linger,
            max_per_tenant: limits.max_connections_per_tenant(),
        }
    }
}

/// What is due for a room.
pub enum Due {
    Heartbeat(TenantId),
    Linger(TenantId),
    /// The join isn't answered yet, and others have waited long enough for it.
    Overdue(SocketId),
    /// The same of a question whose member has left.
    OverdueMoot(Ticket),
    /// The room's snapshot is too old for others.
    Stale(TenantId, Ticket),
    /// Members were answered without a part of their snapshot: it may be there now.
    Incomplete(TenantId),
}

pub struct Shared {
    pub engine: Engine,
    /// `None` without a database.
    pub database: Option<Database>,
    pub limits: RoomLimits,
    pub metrics: Metrics,
    pub kicks: Arc<Kicks>,
    pub due: DelayQueue<Due>,
    /// Rooms with outgoing events.
    pub dirty: Vec<TenantId>,
    pub turns: Turns,
    /// Of the shard, for answers that come later.
    pub mailbox: mpsc::WeakSender<Input>,
}

/// What rooms have of a database.
#[derive(Clone)]
pub struct Database {
    pub snapshots: Snapshots,
    pub refresh: MetricsRefresh,
}

impl Shared {
    /// Tells the metrics refresher that the tenant's figures changed, or were just published.
    pub fn tell_refresher(&self, tenant: &TenantId, message: &Message) {
        let Some(Database { refresh, .. }) = &self.database else { return };
        match message.event_type {
            MessageType::Known(DashboardEventType::MetricsUpdated) if message.has_figures() => {
                refresh.refreshed(tenant);
            }
            _ => refresh.changed(tenant, position_of(message)),
        }
    }

    /// The parts that newcomers start without. The metrics refresher hears of figures that are missing: they should come soon.
    pub fn parts_lacking(&self, tenant: &TenantId, head: &Position, snapshot: Option<&Snapshot>) -> Parts {
        let Some(Database { snapshots, refresh }) = &self.database else {
            return snapshot.map_or(Parts::NONE, |snapshot| snapshot.missing);
        };
        // A client that resumes may have had to start without a part that can't be had even now.
        let lacks = snapshot.map_or_else(|| snapshots.lacking(tenant), |snapshot| snapshot.missing);
        if lacks.metrics {
            refresh.changed(tenant, head.clone());
        }
        lacks
    }

    /// Loads a snapshot for the room, which gets it as an input.
    pub fn load(&mut self, tenant: &TenantId, ticket: Ticket) {
        let Some(Database { snapshots, .. }) = self.database.clone() else { return };
        self.due.insert(Due::Stale(tenant.clone(), ticket), LIFE);
        let (tenant, mailbox) = (tenant.clone(), self.mailbox.clone());
        spawn_brief(async move {
            // A panic answers too: the newcomers would wait for ever.
            let snapshot = AssertUnwindSafe(snapshots.load(&tenant)).catch_unwind().await;
            let snapshot = snapshot.unwrap_or_else(|_| Arc::new(Snapshot::none()));
            if let Some(mailbox) = mailbox.upgrade() {
                let _ = mailbox.send(Input::Loaded { tenant, ticket, snapshot }).await;
            }
        });
    }

    /// A member has left. The turn of its join ends when the question that its join asked is answered.
    pub fn forget_join(&mut self, tenant: &TenantId, member: SocketId, question: Option<Ticket>) {
        let turn = self.turns.joining.remove(&member);
        let Some(ticket) = question else { return };
        self.engine.request(Request::Forget { tenant: tenant.clone(), ticket });
        if let Some(turn) = turn {
            self.turns.moot.insert(ticket, turn);
            self.due.insert(Due::OverdueMoot(ticket), PATIENCE);
        }
    }
}

/// The turns of joins that are under way: see [`super::admission`].
#[derive(Default)]
pub struct Turns {
    joining: HashMap<SocketId, Permit>,
    /// Of members that left before they were answered: a turn is over when the engine's work is.
    moot: HashMap<Ticket, Permit>,
}

impl Turns {
    pub fn begin(&mut self, member: SocketId, permit: Permit) {
        self.joining.insert(member, permit);
    }

    pub fn is_under_way(&self, member: SocketId) -> bool {
        self.joining.contains_key(&member)
    }

    pub fn end(&mut self, member: SocketId) {
        self.joining.remove(&member);
    }

    /// The question of a member that has left is answered, or is overdue.
    pub fn end_moot(&mut self, ticket: Ticket) {
        self.moot.remove(&ticket);
    }
}
