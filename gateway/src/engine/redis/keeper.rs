//! Keeps the subscriptions: what is wanted against what the servers have acknowledged.
//!
//! All changes go to a server in *rounds*, one at a time: subscribe, unsubscribe, ask the server how many subscriptions it
//! holds, then read the positions that rooms ask for, all on the one connection. What is asked for while a round runs goes
//! into the next, so a thousand joins at once take a few round trips. A round that fails, a broken connection, messages
//! dropped for want of room: each leads to a full round, which subscribes to everything anew and after which every room
//! compares its position. Nothing is assumed to have survived.
//!
//! A Cluster has as many servers as it has masters, and a round each. What is wanted is kept once for all: a tenant that
//! moves is wanted on another server from then on, and the next rounds there and here do the rest. That it moved is found
//! out in three ways, none of which needs the others: the layout is asked for every second; a server that lost a slot
//! holds fewer subscriptions than it should, which every round looks at, and there is one every two seconds; and it
//! refuses to read the position, which every room asks for with every heartbeat. After the move the tenant is subscribed to
//! anew, and whoever was subscribed to anew compares its position: what was published between, the log has, or, when the
//! log was lost with a master that nobody had copied in time, the fence says so by another epoch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use publisher::TenantId;
use publisher::topology::{Layout, Servers, is_elsewhere};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use super::Proof;
use super::node::{Doubt, Happening, Node, RETRY};
use super::round::{Answers, Question, Round, RoundError};
use super::wire::{Push, WireError};
use super::wires::Wires;
use crate::engine::{Outage, Reading, Request, Signal, Ticket};
use crate::hub::Hub;
use crate::metrics::Metrics;

/// How often the clocks are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Questions of one round: so that the next SUBSCRIBE doesn't wait for all of them.
const MAX_QUESTIONS: usize = 512;
/// Between two questions about a tenant that the server refuses to answer.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Pushes taken in at once.
const PUSHES: usize = 256;

/// The task's state.
pub struct Keeper {
    wires: Arc<Wires>,
    servers: Servers,
    layout: Arc<Layout>,
    nodes: Vec<Node>,
    /// Since when there are tenants that no server is known for.
    adrift: Option<Doubt>,

    hub: Hub,
    metrics: Metrics,
    proof: Proof,

    /// The tenants with a room, each with the question that its subscription has yet to answer.
    wanted: HashMap<TenantId, Option<Ticket>>,
    questions: Vec<Question>,
    /// Tenants whose questions a server refuses, and until when nobody asks again: their trouble is not the others'.
    refused: HashMap<TenantId, Instant>,
    /// Tenants that a server would not subscribe to, and since when.
    unheld: HashMap<TenantId, Doubt>,
    last_kick: String,
}

impl Keeper {
    /// A keeper that wants nothing yet.
    pub fn new(wires: Arc<Wires>, hub: Hub, metrics: Metrics, proof: Proof) -> Self {
        let servers = wires.servers();
        let layout = servers.layout();
        let mut keeper = Self {
            wires,
            servers,
            layout: layout.clone(),
            nodes: Vec::new(),
            adrift: None,
            hub,
            metrics,
            proof,
            wanted: HashMap::new(),
            questions: Vec::new(),
            refused: HashMap::new(),
            unheld: HashMap::new(),
            last_kick: "0-0".into(),
        };
        keeper.moves(layout);
        keeper
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
                    Happening::Push(push) => {
                        self.push(index, push).await;
                        // What one read of the connection brought goes to the rooms together.
                        self.drain(index, PUSHES).await;
                    }
                    Happening::Done(done) => {
                        // Whatever Redis sent before its answers must reach the rooms before them.
                        self.drain(index, usize::MAX).await;
                        self.finish(index, *done).await;
                    }
                },
                Some(request) = requests.recv() => {
                    self.take(request).await;
                    // What came together goes into one round.
                    while let Ok(request) = requests.try_recv() {
                        self.take(request).await;
                    }
                }
                layout = servers.changed() => self.moves(layout),
                _ = tick.tick() => self.tick().await,
            }
            self.nodes.retain(|node| !node.is_gone());
        }
    }

    /// Other servers hold the tenants from now on, or some of them.
    fn moves(&mut self, layout: Arc<Layout>) {
        for node in &mut self.nodes {
            node.changed = true;
            if !node.leaving && !layout.servers().contains(&node.server) {
                node.leaving = true;
                self.wires.close(&node.server);
            }
        }
        for server in layout.servers() {
            if !self.nodes.iter().any(|node| node.server == *server && !node.leaving) {
                self.nodes.push(Node::new(server.clone(), self.wires.open(server)));
            }
        }
        match layout.is_whole() {
            true => self.adrift = None,
            false => drop(self.adrift.get_or_insert_with(|| Doubt::begin(None))),
        }
        self.layout = layout;
        self.refused.clear();
    }

    async fn take(&mut self, request: Request) {
        match request {
            Request::Subscribe { tenant, ticket } => {
                self.wanted.insert(tenant.clone(), Some(ticket));
                // A room that opens into an outage begins with it.
                let doubt = match self.node_of(&tenant) {
                    Some(index) => self.nodes[index].doubt(),
                    None => self.adrift.as_mut(),
                };
                if let Some(doubt) = doubt.filter(|doubt| doubt.told) {
                    let outage = Outage { reason: "redis", since: doubt.since };
                    self.hub.signal(Signal::Lost { tenant, outage }).await;
                }
            }
            Request::Unsubscribe { tenant } => {
                self.wanted.remove(&tenant);
                self.unheld.remove(&tenant);
                // Nobody is left to hear the answers.
                self.questions.retain(|question| !question.is_of_room(&tenant));
            }
            Request::Read { tenant, ticket, after } => {
                self.questions.push(Question::Room { tenant, ticket, after: Some(after) });
            }
            Request::Forget { tenant, ticket: moot } => self.questions.retain(|question| {
                !matches!(question, Question::Room { tenant: of, ticket, .. } if *of == tenant && *ticket == moot)
            }),
            Request::Head { tenant, reply } => self.questions.push(Question::Head { tenant, reply }),
        }
        self.nodes.iter_mut().for_each(|node| node.changed = true);
    }

    /// Where a tenant's events come from.
    fn node_of(&self, tenant: &TenantId) -> Option<usize> {
        // A tenant's id is the hash tag of all its names.
        let server = self.layout.server_of(tenant.as_str().as_bytes())?;
        self.nodes.iter().position(|node| node.server == *server && !node.leaving)
    }

    /// The tenants that are wanted from a node, or from none.
    fn wanted_of(&self, node: Option<usize>) -> Vec<TenantId> {
        self.wanted.keys().filter(|tenant| self.node_of(tenant) == node).cloned().collect()
    }

    async fn drain(&mut self, index: usize, most: usize) {
        for _ in 0..most {
            let Some(push) = self.nodes[index].waiting() else { return };
            self.push(index, push).await;
        }
    }

    async fn push(&mut self, index: usize, push: Push) {
        let node = &mut self.nodes[index];
        match push {
            Push::Broken(error) => {
                if node.complaints.may_say(&error) {
                    warn!(server = %node.server, error, "no connection to Redis");
                }
                node.breaks();
                self.servers.doubt();
                return;
            }
            Push::Connected => {
                if node.connected() {
                    self.metrics.redis_reconnected();
                }
                return;
            }
            Push::Lagged(dropped) => {
                warn!(dropped, "messages came faster than they could be taken in; every room compares its position");
                node.full = true;
                node.changed = true;
            }
            Push::Event(tenant, message) => {
                // A server that holds the tenant no more may not know it yet.
                if self.node_of(&tenant) == Some(index) {
                    self.hub.signal(Signal::Message { tenant, message }).await;
                }
            }
            Push::Kick(kick) => self.hub.signal(Signal::Kick(kick)).await,
            Push::Probe | Push::Foreign => {}
        }
        self.nodes[index].hears();
        self.proof.renew();
    }

    fn begin_rounds(&mut self) {
        for index in 0..self.nodes.len() {
            if let Some(round) = self.next_round(index) {
                self.nodes[index].begin(round);
            }
        }
    }

    /// What is to be asked of a server now, if anything.
    fn next_round(&mut self, index: usize) -> Option<Round> {
        if !self.nodes[index].is_ready() {
            return None;
        }
        let full = std::mem::take(&mut self.nodes[index].full);
        if full {
            self.nodes[index].held.clear();
        }
        let node = &self.nodes[index];
        let is_open = |tenant: &TenantId| !self.refused.contains_key(tenant) && self.node_of(tenant) == Some(index);
        let is_missing = |tenant: &&TenantId| !node.held.contains(*tenant) && is_open(tenant);
        let subscribe: Vec<_> = self.wanted.keys().filter(is_missing).cloned().collect();
        let is_over = |tenant: &&TenantId| !self.wanted.contains_key(*tenant) || self.node_of(tenant) != Some(index);
        let unsubscribe: Vec<_> = node.held.iter().filter(is_over).cloned().collect();

        let opening = self.wanted.iter().filter(|(tenant, ticket)| ticket.is_some() && is_open(tenant));
        let opening = opening.filter_map(|(tenant, ticket)| {
            Some(Question::Room { tenant: tenant.clone(), ticket: (*ticket)?, after: None })
        });
        let mut questions: Vec<_> = opening.take(MAX_QUESTIONS).collect();
        let mut asked = std::mem::take(&mut self.questions);
        asked.retain(|question| !question.is_moot());
        let room = MAX_QUESTIONS - questions.len();
        let is_open = |tenant: &TenantId| !self.refused.contains_key(tenant) && self.node_of(tenant) == Some(index);
        questions.extend(asked.extract_if(.., |question| is_open(question.tenant())).take(room));
        self.questions = asked;

        let has_kicks = self.wires.has_kicks(&self.layout, &self.nodes[index].server);
        let node = &mut self.nodes[index];
        // What is left over comes with the next round; what is refused, when a tick finds that its pause is over.
        node.changed = questions.len() == MAX_QUESTIONS;
        if !full && !node.is_due() && subscribe.is_empty() && unsubscribe.is_empty() && questions.is_empty() {
            return None;
        }
        Some(Round {
            full,
            tenants: node.held.len() + subscribe.len() - unsubscribe.len(),
            subscribe,
            unsubscribe,
            questions,
            width: node.width,
            last_kick: has_kicks.then(|| self.last_kick.clone()),
        })
    }

    async fn finish(&mut self, index: usize, (round, proved): (Round, Result<Answers, RoundError>)) {
        let node = &mut self.nodes[index];
        node.changed = true;
        if proved.as_ref().is_ok_and(Answers::cut_short) {
            node.width = (node.width / 2).max(1);
        }
        // A connection that broke meanwhile has made another full round necessary, and a server that holds nothing any more
        // proves nothing: what this one proved is void.
        match proved {
            Ok(answers) if !node.full && !node.leaving => self.answered(index, round, answers).await,
            Ok(_) => self.failed(index, round.questions, None).await,
            Err(error) => self.failed(index, round.questions, Some(error)).await,
        }
        self.show();
    }

    async fn answered(&mut self, index: usize, round: Round, answers: Answers) {
        self.nodes[index].succeeded(&round, &answers);
        for tenant in round.subscribe {
            match answers.refused.get(&tenant) {
                Some(why) => {
                    self.refuses(&tenant, why);
                    self.unheld.entry(tenant).or_insert_with(|| Doubt::begin(Some(Instant::now())));
                }
                None => {
                    self.unheld.remove(&tenant);
                    // Nothing is known of what came before. A room that only opens has asked already.
                    self.hub.signal(Signal::Returned { tenant }).await;
                }
            }
        }
        for (id, kick) in answers.kicks {
            self.last_kick = id;
            self.hub.signal(Signal::Kick(kick)).await;
        }

        let mut questions = round.questions.into_iter();
        let mut broke = None;
        for (answer, question) in answers.readings.into_iter().zip(questions.by_ref()) {
            match answer {
                Ok(reading) => self.answer(question, reading).await,
                Err(error @ WireError::Connection(_)) => {
                    self.put_back(question);
                    broke = Some(error);
                }
                Err(error) => {
                    if self.nodes[index].complaints.may_say(&error.to_string()) {
                        warn!(tenant = %question.tenant(), %error, "Redis does not answer for a tenant");
                    }
                    self.refuses(question.tenant(), error.refusal());
                    self.put_back(question);
                }
            }
        }
        match broke {
            Some(error) => self.failed(index, questions.collect(), Some(error.into())).await,
            None => self.nodes[index].grow(),
        }
    }

    /// A server won't have a tenant: asked again after a while, and elsewhere if that is where it is.
    fn refuses(&mut self, tenant: &TenantId, why: &str) {
        let mut pause = REFUSED_PAUSE;
        if is_elsewhere(why) {
            self.servers.doubt();
            pause = RETRY;
        }
        self.refused.insert(tenant.clone(), Instant::now() + pause);
    }

    async fn answer(&mut self, question: Question, reading: Reading) {
        match question {
            Question::Room { tenant, ticket, .. } => {
                if let Some(open) = self.wanted.get_mut(&tenant).filter(|open| **open == Some(ticket)) {
                    *open = None;
                }
                self.hub.signal(Signal::Reading { tenant, ticket, reading }).await;
            }
            Question::Head { reply, .. } => {
                // Who asked may have given up.
                let _ = reply.send(reading.head);
            }
        }
    }

    /// Keeps a question for a later round; a subscription's own is made anew from what is wanted then.
    fn put_back(&mut self, question: Question) {
        if !matches!(question, Question::Room { after: None, .. }) {
            self.questions.push(question);
        }
    }

    async fn failed(&mut self, index: usize, questions: Vec<Question>, error: Option<RoundError>) {
        questions.into_iter().for_each(|question| self.put_back(question));
        if error.is_some() {
            self.servers.doubt();
        }
        self.nodes[index].failed(error);
    }

    async fn tick(&mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].tick() {
                self.metrics.probe_failed();
                self.servers.doubt();
            }
            if let Some(since) = self.nodes[index].doubt().and_then(Doubt::tell) {
                self.tell_lost(Some(index), since).await;
            }
        }
        let now = Instant::now();
        let paused = self.refused.len();
        self.refused.retain(|_, until| *until > now);
        if self.refused.len() < paused {
            self.nodes.iter_mut().for_each(|node| node.changed = true);
        }
        let doubted = self.unheld.iter_mut().filter_map(|(tenant, doubt)| Some((tenant.clone(), doubt.tell()?)));
        for (tenant, since) in doubted.collect::<Vec<_>>() {
            warn!(%tenant, "Redis would not subscribe to a tenant for a second");
            let outage = Outage { reason: "redis", since };
            self.hub.signal(Signal::Lost { tenant, outage }).await;
        }
        if let Some(since) = self.adrift.as_mut().and_then(Doubt::tell) {
            self.tell_lost(None, since).await;
        }
        self.show();
    }

    async fn tell_lost(&mut self, node: Option<usize>, since: OffsetDateTime) {
        for tenant in self.wanted_of(node) {
            let outage = Outage { reason: "redis", since };
            self.hub.signal(Signal::Lost { tenant, outage }).await;
        }
    }

    fn show(&self) {
        let is_held = |tenant: &&TenantId| self.nodes.iter().any(|node| node.held.contains(*tenant));
        let pending = self.wanted.len() - self.wanted.keys().filter(is_held).count();
        self.metrics.subscriptions_pending(pending);
        self.metrics.engine_up(self.adrift.is_none() && self.nodes.iter().all(|node| node.leaving || node.is_up()));
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
