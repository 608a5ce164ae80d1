//! What the subscriber knows: the servers, and what the rooms want from them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use publisher::TenantId;
use publisher::internals::LogThrottle;
use publisher::internals::topology::{Layout, Servers};
use tokio::time::Instant;

use super::refusals::Refusals;
use super::strays::Strays;
use crate::engine::redis::interruption::Interruption;
use crate::engine::redis::node::Node;
use crate::engine::redis::proof::Proof;
use crate::engine::redis::reach::Reach;
use crate::engine::redis::sync_round::Question;
use crate::engine::{Rooms, Ticket};
use crate::metrics::Metrics;

/// How long questions wait for the kicks after the start.
const KICKS_PATIENCE: Duration = Duration::from_secs(1);

/// The state of the task that keeps the subscriptions.
pub struct Subscriber<R> {
    pub(super) reach: Arc<Reach>,
    pub(super) servers: Servers,
    pub(super) layout: Arc<Layout>,
    pub(super) nodes: Vec<Node>,
    /// Since when there are tenants that no server is known for.
    pub(super) adrift: Option<Interruption>,

    pub(super) rooms: R,
    pub(super) metrics: Metrics,
    pub(super) proof: Proof,

    /// The tenants with a room, each with the question that its subscription has yet to answer.
    pub(super) wanted: HashMap<TenantId, Option<Ticket>>,
    pub(super) questions: Vec<Question>,
    pub(super) refusals: Refusals,
    pub(super) strays: Strays,
    /// Until when questions wait for the kicks, which a gateway that has just started doesn't know: on a Cluster another server may
    /// answer sooner than the one that has them.
    pub(super) kicks_by: Option<Instant>,
    /// Of messages that can't be read: any publisher may flood.
    pub(super) malformed: LogThrottle,
}

impl<R: Rooms> Subscriber<R> {
    /// Nothing is wanted yet.
    pub fn new(reach: Arc<Reach>, rooms: R, metrics: Metrics, proof: Proof) -> Self {
        let servers = reach.servers();
        let layout = servers.layout();
        let mut state = Self {
            reach,
            servers,
            layout,
            nodes: Vec::new(),
            adrift: None,
            rooms,
            metrics,
            proof,
            wanted: HashMap::new(),
            questions: Vec::new(),
            refusals: Refusals::default(),
            strays: Strays::default(),
            kicks_by: Some(Instant::now() + KICKS_PATIENCE),
            malformed: LogThrottle::default(),
        };
        state.open_nodes();
        state
    }

    /// Connects to the servers that hold something.
    pub(super) fn open_nodes(&mut self) {
        for server in self.layout.servers() {
            if !self.nodes.iter().any(|node| node.server == *server && !node.is_left()) {
                self.nodes.push(Node::open(server.clone(), self.reach.clone()));
            }
        }
        match self.layout.is_whole() {
            true => self.adrift = None,
            false => drop(self.adrift.get_or_insert_with(|| Interruption::begin(None))),
        }
    }

    /// Every server may have something to do.
    pub(super) fn all_changed(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.changed = true);
    }

    /// Where a tenant's events come from.
    pub(super) fn node_of(&self, tenant: &TenantId) -> Option<usize> {
        // A tenant's id is the hash tag of all its names.
        let server = self.layout.server_of(tenant.as_str().as_bytes())?;
        self.nodes.iter().position(|node| node.server == *server && !node.is_left())
    }

    /// Whether a tenant's events could come from a node.
    pub(super) fn is_for(&self, index: usize, tenant: &TenantId) -> bool {
        let node = &self.nodes[index];
        match node.is_left() {
            // A node of a Cluster takes no subscription to a slot that it doesn't hold.
            true => !self.reach.is_sharded() || node.held.contains(tenant),
            false => self.node_of(tenant) == Some(index),
        }
    }

    /// The tenants that are wanted from a node, or from none.
    pub(super) fn wanted_of(&self, node: Option<usize>) -> Vec<TenantId> {
        self.wanted.keys().filter(|tenant| self.node_of(tenant) == node).cloned().collect()
    }

    /// Whether anything is to be asked about a tenant. What was asked already doesn't count.
    pub(super) fn is_asked(&self, tenant: &TenantId) -> bool {
        let is_held = self.node_of(tenant).is_some_and(|index| self.nodes[index].held.contains(tenant));
        let is_open = self.wanted.get(tenant).is_some_and(Option::is_some);
        !is_held || is_open || self.questions.iter().any(|question| question.tenant() == tenant)
    }

    /// Shows the state in the metrics.
    pub(super) fn show(&self) {
        let holds = |node: &Node, tenant: &TenantId| !node.is_left() && node.held.contains(tenant);
        let is_held = |tenant: &&TenantId| self.nodes.iter().any(|node| holds(node, tenant));
        let pending = self.wanted.len() - self.wanted.keys().filter(is_held).count();
        self.metrics.subscriptions_pending(pending);
        self.metrics.engine_up(self.adrift.is_none() && self.nodes.iter().all(|node| node.is_left() || node.is_up()));
    }
}
