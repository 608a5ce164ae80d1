//! Keeps the subscriptions: what the rooms want against what the servers have confirmed.
//!
//! All changes go to a server in *rounds*, one at a time: subscribe, unsubscribe, read the positions that rooms ask for. What is
//! asked for while a round runs goes into the next, so a thousand joins at once take a few round trips. The server confirms or
//! refuses each subscription. A connection that ends leads to a round that subscribes to everything, after which every room
//! compares its position. Nothing is assumed to have survived.
//!
//! A Cluster has as many servers as it has masters, and a round each. What is wanted is kept once for all: a tenant that
//! moves is wanted on another server from then on, and the next rounds there and here do the rest. That it moved is found
//! out in three ways, none of which needs the others: the layout is asked for every second; a server that lost a slot ends its
//! subscriptions, and says so; and it refuses to read the position, which every room asks for with every heartbeat. After the move
//! the tenant is subscribed to anew, and its room compares its position: what was published between, the log has, or, when the
//! log was lost with a master that was not copied in time, the fence says so by another epoch.
//!
//! A server that holds nothing any more is listened to for a while longer: a master that Sentinels demote still takes writes,
//! and publishers leave it a moment later than this gateway. What comes from there is in no stream, so its room resyncs; and so
//! does every room that is subscribed to there anew, since nothing is known of what came before.

mod refusals;
mod rounds;
mod strays;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use publisher::TenantId;
use publisher::internals::LogThrottle;
use publisher::internals::topology::{Layout, Servers};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use super::Proof;
use super::connection::Received;
use super::interruption::Interruption;
use super::node::{Happening, Node};
use super::reach::Reach;
use super::sync_round::Question;
use crate::engine::{Outage, Request, Rooms, Signal, Ticket};
use crate::metrics::Metrics;
use refusals::Refusals;
use rounds::Elsewhere;
use strays::Strays;

/// How often the clocks are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long questions wait for the kicks after the start.
const KICKS_PATIENCE: Duration = Duration::from_secs(1);

/// The task's state.
pub struct Subscriber<R> {
    reach: Arc<Reach>,
    servers: Servers,
    layout: Arc<Layout>,
    nodes: Vec<Node>,
    /// Since when there are tenants that no server is known for.
    adrift: Option<Interruption>,

    rooms: R,
    metrics: Metrics,
    proof: Proof,

    /// The tenants with a room, each with the question that its subscription has yet to answer.
    wanted: HashMap<TenantId, Option<Ticket>>,
    questions: Vec<Question>,
    refusals: Refusals,
    strays: Strays,
    /// Until when questions wait for the kicks, which a gateway that has just started doesn't know: on a Cluster another server may
    /// answer sooner than the one that has them.
    kicks_by: Option<Instant>,
    /// Of messages that can't be read: any publisher may flood.
    malformed: LogThrottle,
}

impl<R: Rooms> Subscriber<R> {
    /// A subscriber that wants nothing yet.
    pub fn new(reach: Arc<Reach>, rooms: R, metrics: Metrics, proof: Proof) -> Self {
        let servers = reach.servers();
        let layout = servers.layout();
        let mut subscriber = Self {
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
        subscriber.open_nodes();
        subscriber
    }

    /// Works until the process exits.
    pub async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut servers = self.servers.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.begin_rounds();
            tokio::select! {
                (index, happening) = next(&mut self.nodes) => match happening {
                    Happening::Connected => self.connected(index),
                    Happening::Broken => self.broken(index),
                    Happening::Received(received) => self.receive(index, received).await,
                    Happening::Done(done) => self.finish(index, *done).await,
                },
                Some(request) = requests.recv() => {
                    self.take(request).await;
                    // What came together goes into one round.
                    while let Ok(request) = requests.try_recv() {
                        self.take(request).await;
                    }
                }
                layout = servers.changed() => self.follow(layout).await,
                _ = tick.tick() => self.tick().await,
            }
            let is_missed = |node: &Node| node.is_gone() && node.has_missed() && !self.reach.is_sharded();
            if self.nodes.iter().any(is_missed) {
                // Publishers may have reached it when this gateway did not.
                self.strays.may_be_of(self.wanted.keys());
            }
            self.nodes.retain(|node| !node.is_gone());
        }
    }

    /// Other servers hold the tenants from now on, or some of them.
    async fn follow(&mut self, layout: Arc<Layout>) {
        let is_known = |tenant: &&TenantId| self.node_of(tenant).is_some();
        let known: Vec<_> = self.wanted.keys().filter(is_known).cloned().collect();
        for node in &mut self.nodes {
            node.changed = true;
            match layout.servers().contains(&node.server) {
                true if node.is_left() => node.dismiss(),
                false if !node.is_left() => node.leave(),
                _ => {}
            }
        }
        self.layout = layout;
        self.open_nodes();
        self.refusals.end_pauses();
        if self.adrift.as_ref().is_some_and(|adrift| adrift.told().is_some()) {
            // The tick tells of those that lost their server together with the first.
            for tenant in known.into_iter().filter(|tenant| self.node_of(tenant).is_none()).collect::<Vec<_>>() {
                let outage = Outage { reason: "redis", since: OffsetDateTime::now_utc() };
                self.rooms.handle(Signal::Lost { tenant, outage }).await;
            }
        }
    }

    /// Connects to the servers that hold something.
    fn open_nodes(&mut self) {
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

    async fn take(&mut self, request: Request) {
        match request {
            Request::Subscribe { tenant, ticket } => {
                self.wanted.insert(tenant.clone(), Some(ticket));
                self.tell_newcomer(tenant).await;
            }
            Request::Unsubscribe { tenant } => {
                self.wanted.remove(&tenant);
                self.strays.forget(&tenant);
                // No room is left to hear the answers.
                self.questions.retain(|question| !question.is_of_room(&tenant));
            }
            Request::Read { tenant, ticket, after } => {
                if self.refusals.contains(&tenant) {
                    self.rooms.handle(Signal::Refused { tenant: tenant.clone() }).await;
                }
                self.questions.push(Question::Room { tenant, ticket, after: Some(after) });
            }
            Request::Forget { tenant, ticket: moot } => {
                let before = self.questions.len();
                self.questions.retain(|question| {
                    !matches!(question, Question::Room { tenant: of, ticket, .. } if *of == tenant && *ticket == moot)
                });
                if self.questions.len() < before {
                    self.rooms.handle(Signal::Forgotten { tenant, ticket: moot }).await;
                }
            }
            Request::Head { tenant, reply } => self.questions.push(Question::Head { tenant, reply }),
        }
        self.all_changed();
    }

    /// A room that opens into an outage begins with it.
    async fn tell_newcomer(&mut self, tenant: TenantId) {
        let interruption = match self.node_of(&tenant) {
            Some(index) => self.nodes[index].interruption(),
            None => self.adrift.as_mut(),
        };
        if let Some(outage) = interruption.and_then(|interruption| interruption.told()) {
            self.rooms.handle(Signal::Lost { tenant: tenant.clone(), outage }).await;
        }
        if self.refusals.contains(&tenant) {
            let signal = match self.refusals.told(&tenant) {
                Some(outage) => Signal::Lost { tenant, outage },
                None => Signal::Refused { tenant },
            };
            self.rooms.handle(signal).await;
        }
    }

    fn all_changed(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.changed = true);
    }

    /// Where a tenant's events come from.
    fn node_of(&self, tenant: &TenantId) -> Option<usize> {
        // A tenant's id is the hash tag of all its names.
        let server = self.layout.server_of(tenant.as_str().as_bytes())?;
        self.nodes.iter().position(|node| node.server == *server && !node.is_left())
    }

    /// Whether a tenant's events could come from a node.
    fn is_for(&self, index: usize, tenant: &TenantId) -> bool {
        let node = &self.nodes[index];
        match node.is_left() {
            // A node of a Cluster takes no subscription to a slot that it doesn't hold.
            true => !self.reach.is_sharded() || node.held.contains(tenant),
            false => self.node_of(tenant) == Some(index),
        }
    }

    /// The tenants that are wanted from a node, or from none.
    fn wanted_of(&self, node: Option<usize>) -> Vec<TenantId> {
        self.wanted.keys().filter(|tenant| self.node_of(tenant) == node).cloned().collect()
    }

    fn connected(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.is_reconnected() && !node.is_left() {
            self.metrics.redis_reconnected();
        }
    }

    fn broken(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        match node.is_left() {
            // A node of a Cluster takes no subscription again to what it doesn't hold.
            true if self.reach.is_sharded() => node.dismiss(),
            true => {}
            false => self.servers.doubt(),
        }
    }

    /// Hands on what one read of a connection brought.
    async fn receive(&mut self, index: usize, mut received: Received) {
        for (tenant, error) in &received.malformed {
            if let Some(count) = self.malformed.count("malformed") {
                warn!(%tenant, %error, count, "malformed message on a tenant's channel");
            }
        }
        if received.kicks > 0 {
            self.nodes.iter_mut().for_each(|node| (node.kicked, node.changed) = (true, true));
        }
        for tenant in std::mem::take(&mut received.ended) {
            self.nodes[index].ends(&tenant);
            if self.wanted.contains_key(&tenant) && self.node_of(&tenant) == Some(index) {
                self.refuses(&tenant, Elsewhere::Yes).await;
            }
        }
        let node = &mut self.nodes[index];
        if node.is_left() {
            let wanted = received.messages.iter().filter(|(tenant, _)| self.wanted.contains_key(tenant));
            wanted.for_each(|(tenant, message)| self.strays.come_of(tenant, message));
            return;
        }
        if received.pushes > 0 {
            node.hears();
            self.proof.renew();
        }
        let mut messages = std::mem::take(&mut received.messages);
        // A server that holds the tenant no more may not know it yet.
        messages.retain(|(tenant, _)| self.node_of(tenant) == Some(index));
        if !messages.is_empty() {
            self.rooms.deliver(messages).await;
        }
    }

    async fn tick(&mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].tick() {
                self.metrics.probe_failed();
                self.servers.doubt();
            }
            if let Some(outage) = self.nodes[index].interruption().and_then(Interruption::tell) {
                self.tell_lost(Some(index), outage).await;
            }
        }
        if let Some(outage) = self.adrift.as_mut().and_then(Interruption::tell) {
            self.tell_lost(None, outage).await;
        }
        if self.kicks_by.is_some_and(|by| by <= Instant::now()) {
            self.stop_waiting_for_kicks();
        }
        // While no server is known, no round takes the questions whose callers have given up.
        self.questions.retain(|question| !question.is_moot());
        self.look_at_refusals().await;
        for (tenant, epoch) in self.strays.due() {
            self.rooms.handle(Signal::Stray { tenant, epoch }).await;
        }
        self.show();
    }

    async fn look_at_refusals(&mut self) {
        let over = self.refusals.pauses_over(|tenant| self.wanted.contains_key(tenant));
        if !over.is_empty() {
            self.all_changed();
        }
        for tenant in over {
            // The refused question was forgotten, so no answer would ever end the refusal.
            if !self.is_asked(&tenant) {
                self.absolve(tenant).await;
            }
        }
        for (tenant, outage) in self.refusals.tell(|tenant| self.wanted.contains_key(tenant)) {
            warn!(%tenant, "Redis has refused a tenant for a second");
            self.rooms.handle(Signal::Lost { tenant, outage }).await;
        }
    }

    /// Whether anything is to be asked about a tenant. What was asked already doesn't count.
    fn is_asked(&self, tenant: &TenantId) -> bool {
        let is_held = self.node_of(tenant).is_some_and(|index| self.nodes[index].held.contains(tenant));
        let is_open = self.wanted.get(tenant).is_some_and(Option::is_some);
        !is_held || is_open || self.questions.iter().any(|question| question.tenant() == tenant)
    }

    async fn tell_lost(&mut self, node: Option<usize>, outage: Outage) {
        for tenant in self.wanted_of(node) {
            self.rooms.handle(Signal::Lost { tenant, outage: outage.clone() }).await;
        }
    }

    fn show(&self) {
        let holds = |node: &Node, tenant: &TenantId| !node.is_left() && node.held.contains(tenant);
        let is_held = |tenant: &&TenantId| self.nodes.iter().any(|node| holds(node, tenant));
        let pending = self.wanted.len() - self.wanted.keys().filter(is_held).count();
        self.metrics.subscriptions_pending(pending);
        self.metrics.engine_up(self.adrift.is_none() && self.nodes.iter().all(|node| node.is_left() || node.is_up()));
    }
}

/// What happens next at any node, and at which.
async fn next(nodes: &mut [Node]) -> (usize, Happening) {
    if nodes.is_empty() {
        return std::future::pending().await;
    }
    let (happening, index, _) = select_all(nodes.iter_mut().map(|node| node.happening().boxed())).await;
    (index, happening)
}
