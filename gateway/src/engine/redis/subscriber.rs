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
mod state;
mod strays;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use publisher::TenantId;
use publisher::internals::topology::Layout;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use super::connection::Received;
use super::interruption::Interruption;
use super::node::{Happening, Node};
use super::sync_round::Question;
use crate::engine::{Outage, Request, Rooms, Signal};
use refusals::Elsewhere;
pub use state::Subscriber;

/// How often the clocks are looked at.
const TICK: Duration = Duration::from_millis(100);

impl<R: Rooms> Subscriber<R> {
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
            self.nodes.iter_mut().for_each(Node::hears_of_kicks);
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

    async fn tell_lost(&mut self, node: Option<usize>, outage: Outage) {
        for tenant in self.wanted_of(node) {
            self.rooms.handle(Signal::Lost { tenant, outage: outage.clone() }).await;
        }
    }
}

/// What happens next at any node, and at which. Another node is looked at first each time: one that always has something must not keep
/// the others waiting.
async fn next(nodes: &mut [Node]) -> (usize, Happening) {
    if nodes.is_empty() {
        return std::future::pending().await;
    }
    let (count, first) = (nodes.len(), rand::random_range(0..nodes.len()));
    let (later, sooner) = nodes.split_at_mut(first);
    let happenings = sooner.iter_mut().chain(later).map(|node| node.happening().boxed());
    let (happening, index, _) = select_all(happenings).await;
    ((first + index) % count, happening)
}
