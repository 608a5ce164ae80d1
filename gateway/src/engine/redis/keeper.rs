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
//!
//! A server that holds nothing any more is listened to for a while longer: a master that Sentinels demote still takes writes,
//! and publishers leave it a moment later than this gateway. What comes from there is in no stream, so its room resyncs; and so
//! does every room that is subscribed to there anew, since nothing is known of what came before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use publisher::TenantId;
use publisher::internals::Epoch;
use publisher::internals::LogThrottle;
use publisher::internals::topology::{Layout, Servers, is_elsewhere};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use super::Proof;
use super::node::{Doubt, Happening, Node, RETRY};
use super::round::{Answers, Question, Round, RoundError};
use super::wire::{Kicks, Push, WireError};
use super::wires::Wires;
use crate::engine::{Outage, Reading, Request, Rooms, Signal, Ticket};
use crate::metrics::Metrics;
use crate::shutdown::spawn_brief;

/// How often the clocks are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Questions of one round: so that the next SUBSCRIBE doesn't wait for all of them.
const MAX_QUESTIONS: usize = 512;
/// Between two questions about a tenant that the server refuses to answer. Shorter than the grace of a doubt, so that one refusal
/// is no outage.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);
/// Between two looks at what came from servers that were left: many events there are one resync.
const STRAYS_PAUSE: Duration = Duration::from_millis(500);
/// How long questions wait for the kicks after the start.
const KICKS_PATIENCE: Duration = Duration::from_secs(1);
/// Pushes taken in at once.
const PUSHES: usize = 256;

/// The task's state.
pub struct Keeper<R> {
    wires: Arc<Wires>,
    servers: Servers,
    layout: Arc<Layout>,
    nodes: Vec<Node>,
    /// Since when there are tenants that no server is known for.
    adrift: Option<Doubt>,

    rooms: R,
    metrics: Metrics,
    proof: Proof,

    /// The tenants with a room, each with the question that its subscription has yet to answer.
    wanted: HashMap<TenantId, Option<Ticket>>,
    questions: Vec<Question>,
    /// Tenants that a server refuses: their trouble is not the others'.
    refused: HashMap<TenantId, Refused>,
    /// Tenants whose events came from a server that was left, with their epoch if it is known, and one.
    strays: HashMap<TenantId, Option<Epoch>>,
    strays_at: Instant,
    /// Until when questions wait for the kicks, which a gateway that has just started doesn't know: on a Cluster another server may
    /// answer sooner than the one that has them.
    kicks_by: Option<Instant>,
    /// Of messages that can't be read: whoever may publish may flood.
    malformed: LogThrottle,
}

/// A tenant that a server won't subscribe to, or won't answer for.
struct Refused {
    /// When it is asked again; `None` from then on.
    until: Option<Instant>,
    /// Since when nothing is known of it.
    doubt: Doubt,
}

impl<R: Rooms> Keeper<R> {
    /// A keeper that wants nothing yet.
    pub fn new(wires: Arc<Wires>, rooms: R, metrics: Metrics, proof: Proof) -> Self {
        let servers = wires.servers();
        let layout = servers.layout();
        let mut keeper = Self {
            wires,
            servers,
            layout,
            nodes: Vec::new(),
            adrift: None,
            rooms,
            metrics,
            proof,
            wanted: HashMap::new(),
            questions: Vec::new(),
            refused: HashMap::new(),
            strays: HashMap::new(),
            strays_at: Instant::now(),
            kicks_by: Some(Instant::now() + KICKS_PATIENCE),
            malformed: LogThrottle::default(),
        };
        keeper.open();
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
                layout = servers.changed() => self.moves(layout).await,
                _ = tick.tick() => self.tick().await,
            }
            let is_missed = |node: &Node| node.is_gone() && node.has_missed() && !self.wires.is_sharded();
            if self.nodes.iter().any(is_missed) {
                // Publishers may have reached it when this gateway did not.
                self.strays.extend(self.wanted.keys().map(|tenant| (tenant.clone(), None)));
            }
            self.nodes.retain(|node| !node.is_gone());
        }
    }

    /// Other servers hold the tenants from now on, or some of them.
    async fn moves(&mut self, layout: Arc<Layout>) {
        let is_known = |tenant: &&TenantId| self.node_of(tenant).is_some();
        let known: Vec<_> = self.wanted.keys().filter(is_known).cloned().collect();
        for node in &mut self.nodes {
            node.changed = true;
            match layout.servers().contains(&node.server) {
                true if node.is_left() => node.dismiss(),
                false if !node.is_left() => {
                    node.leave();
                    self.wires.close(&node.server);
                }
                _ => {}
            }
        }
        self.layout = layout;
        self.open();
        self.refused.values_mut().for_each(|refused| refused.until = None);
        if self.adrift.as_ref().is_some_and(|doubt| doubt.told) {
            // The tick tells of those that lost their server together with the first.
            for tenant in known.into_iter().filter(|tenant| self.node_of(tenant).is_none()).collect::<Vec<_>>() {
                let outage = Outage { reason: "redis", since: OffsetDateTime::now_utc() };
                self.rooms.handle(Signal::Lost { tenant, outage }).await;
            }
        }
    }

    /// Connects to the servers that hold something.
    fn open(&mut self) {
        for server in self.layout.servers() {
            if !self.nodes.iter().any(|node| node.server == *server && !node.is_left()) {
                self.nodes.push(Node::new(server.clone(), self.wires.open(server)));
            }
        }
        match self.layout.is_whole() {
            true => self.adrift = None,
            false => drop(self.adrift.get_or_insert_with(|| Doubt::begin(None))),
        }
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
                    self.rooms.handle(Signal::Lost { tenant: tenant.clone(), outage }).await;
                }
                if let Some(refused) = self.refused.get(&tenant) {
                    let outage = Outage { reason: "redis", since: refused.doubt.since };
                    let lost = refused.doubt.told.then(|| Signal::Lost { tenant: tenant.clone(), outage });
                    self.rooms.handle(lost.unwrap_or(Signal::Refused { tenant })).await;
                }
            }
            Request::Unsubscribe { tenant } => {
                self.wanted.remove(&tenant);
                self.strays.remove(&tenant);
                // Nobody is left to hear the answers.
                self.questions.retain(|question| !question.is_of_room(&tenant));
            }
            Request::Read { tenant, ticket, after } => {
                if self.refused.contains_key(&tenant) {
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
            true => !self.wires.is_sharded() || node.held.contains(tenant),
            false => self.node_of(tenant) == Some(index),
        }
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
            Push::Broken { error, vacant } => {
                if node.throttle.is_due(&error) {
                    warn!(server = %node.server, error, "no connection to Redis");
                }
                node.cut(vacant);
                match node.is_left() {
                    // What the library can't hear of a slot's move, it can't hear here either.
                    true if self.wires.is_sharded() => node.dismiss(),
                    true => {}
                    false => self.servers.doubt(),
                }
                return;
            }
            Push::Connected => {
                if node.connected() && !node.is_left() {
                    self.metrics.redis_reconnected();
                }
                return;
            }
            Push::Lagged(dropped) => {
                warn!(dropped, "messages came faster than they could be taken in; every room compares its position");
                node.full = true;
                node.changed = true;
            }
            Push::Event(tenant, message) if node.is_left() => {
                if self.wanted.contains_key(&tenant) {
                    let seen = self.strays.entry(tenant).or_insert(Some(message.epoch.clone()));
                    seen.take_if(|epoch| *epoch != message.epoch);
                }
            }
            Push::Event(tenant, message) => {
                // A server that holds the tenant no more may not know it yet.
                if self.node_of(&tenant) == Some(index) {
                    self.rooms.handle(Signal::Message { tenant, message }).await;
                }
            }
            Push::Kick => self.nodes.iter_mut().for_each(|node| (node.kicked, node.changed) = (true, true)),
            Push::Malformed(tenant, error) => {
                if let Some(count) = self.malformed.count("malformed") {
                    warn!(%tenant, %error, count, "something else was published on the channel");
                }
            }
            Push::Probe | Push::Foreign => {}
        }
        if !self.nodes[index].is_left() {
            self.nodes[index].hears();
            self.proof.renew();
        }
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
        let is_missing = |tenant: &&TenantId| !node.held.contains(*tenant) && self.is_for(index, tenant);
        let is_missing = |tenant: &&TenantId| is_missing(tenant) && !self.is_paused(tenant);
        let subscribe: Vec<_> = self.wanted.keys().filter(is_missing).cloned().collect();
        let is_over = |tenant: &&TenantId| !self.wanted.contains_key(*tenant) || !self.is_for(index, tenant);
        let unsubscribe: Vec<_> = node.held.iter().filter(is_over).cloned().collect();

        let has_kicks = match self.nodes[index].is_left() {
            true => !self.wires.is_sharded(),
            false => self.wires.has_kicks(&self.layout, &self.nodes[index].server),
        };
        let answers = has_kicks || self.kicks_by.is_none();
        let is_open = |tenant: &TenantId| answers && !self.is_paused(tenant) && self.node_of(tenant) == Some(index);
        let opening = self.wanted.iter().filter(|(tenant, ticket)| ticket.is_some() && is_open(tenant));
        let opening = opening.filter_map(|(tenant, ticket)| {
            Some(Question::Room { tenant: tenant.clone(), ticket: (*ticket)?, after: None })
        });
        let mut questions: Vec<_> = opening.take(MAX_QUESTIONS).collect();
        let mut asked = std::mem::take(&mut self.questions);
        asked.retain(|question| !question.is_moot());
        let room = MAX_QUESTIONS - questions.len();
        let is_open = |tenant: &TenantId| answers && !self.is_paused(tenant) && self.node_of(tenant) == Some(index);
        questions.extend(asked.extract_if(.., |question| is_open(question.tenant())).take(room));
        self.questions = asked;

        let node = &mut self.nodes[index];
        let kicked = std::mem::take(&mut node.kicked) && has_kicks;
        // What is left over comes with the next round; what is refused, when a tick finds that its pause is over.
        node.changed = questions.len() == MAX_QUESTIONS;
        let nothing = subscribe.is_empty() && unsubscribe.is_empty() && questions.is_empty();
        if !full && !kicked && !node.is_due() && nothing {
            return None;
        }
        Some(Round {
            full,
            left: node.is_left(),
            tenants: node.held.len() + subscribe.len() - unsubscribe.len(),
            subscribe,
            unsubscribe,
            questions,
            width: node.width,
            kicks_since: has_kicks.then(|| node.kicks_since()),
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
            Ok(answers) if node.is_left() && !node.full && !answers.cut_short() => {
                self.heard_out(index, round, answers).await;
            }
            Ok(answers) if !node.full && !node.is_left() => self.answered(index, round, answers).await,
            Ok(_) => self.failed(index, round.questions, None).await,
            Err(error) => self.failed(index, round.questions, Some(error)).await,
        }
        self.show();
    }

    async fn answered(&mut self, index: usize, round: Round, answers: Answers) {
        let largest = answers.largest();
        self.nodes[index].succeeded(&round, &answers);
        for tenant in round.subscribe {
            match answers.refused.get(&tenant) {
                Some(why) => self.refuses(&tenant, why).await,
                None => {
                    self.refused.remove(&tenant);
                    // Nothing is known of what came before. A room that only opens has asked already.
                    self.rooms.handle(Signal::Returned { tenant }).await;
                }
            }
        }
        self.kicks(index, round.kicks_since == Some(0), answers.kicks).await;

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
                    if self.nodes[index].throttle.is_due(&error.to_string()) {
                        warn!(tenant = %question.tenant(), %error, "Redis does not answer for a tenant");
                    }
                    self.refuses(question.tenant(), error.refusal()).await;
                    self.put_back(question);
                }
            }
        }
        match broke {
            Some(error) => self.failed(index, questions.collect(), Some(error.into())).await,
            None => self.nodes[index].grow(largest),
        }
    }

    /// A server that was left is a master still, or was one when the round began, and is subscribed to.
    async fn heard_out(&mut self, index: usize, round: Round, answers: Answers) {
        self.nodes[index].succeeded(&round, &answers);
        // Nothing is known of what was published there before.
        let subscribed = round.subscribe.into_iter().filter(|tenant| !answers.refused.contains_key(tenant));
        self.strays.extend(subscribed.map(|tenant| (tenant, None)));
        // A round that began before the server was left has questions, whose answers are another server's by now.
        round.questions.into_iter().for_each(|question| self.put_back(question));
        self.kicks(index, false, answers.kicks).await;
    }

    /// Hands the kicks over that were read. `all` of them show what the server has lost, and gets back.
    async fn kicks(&mut self, index: usize, all: bool, read: Option<Result<Kicks, String>>) {
        let node = &mut self.nodes[index];
        let Kicks { now, kicks, unusable } = match read {
            None => return,
            Some(Ok(read)) => read,
            Some(Err(error)) => {
                if node.throttle.is_due(&error) {
                    warn!(error, "Redis does not tell the kicks");
                }
                return;
            }
        };
        if unusable > 0 && node.throttle.is_due("unusable kicks") {
            warn!(unusable, "kicks that no gateway gave are ignored: they name nobody, or a time that has yet to come");
        }
        // A clock that was set back: what was given since may lie before the last read.
        node.kicks_read = if now < node.kicks_read { 0 } else { now };
        if all {
            node.has_all_kicks();
        }
        let lost = if all && !node.is_left() { self.rooms.kicks_beyond(&kicks, now) } else { Vec::new() };
        if !lost.is_empty() {
            warn!(count = lost.len(), "Redis has lost kicks, giving them back");
            let wire = node.wire.clone();
            spawn_brief(async move {
                if let Err(error) = wire.restore_kicks(&lost).await {
                    warn!(%error, "kicks could not be given back to Redis");
                }
            });
        }
        self.rooms.handle(Signal::Kicks { kicks, now }).await;
        self.stop_waiting_for_kicks();
    }

    fn stop_waiting_for_kicks(&mut self) {
        if self.kicks_by.take().is_some() {
            self.nodes.iter_mut().for_each(|node| node.changed = true);
        }
    }

    /// A server won't have a tenant: asked again after a while, and elsewhere if that is where it is.
    async fn refuses(&mut self, tenant: &TenantId, why: &str) {
        let mut pause = REFUSED_PAUSE;
        if is_elsewhere(why) {
            self.servers.doubt();
            pause = RETRY;
        }
        let until = Some(Instant::now() + pause);
        let first = || Refused { until, doubt: Doubt::begin(Some(Instant::now())) };
        self.refused.entry(tenant.clone()).or_insert_with(first).until = until;
        self.rooms.handle(Signal::Refused { tenant: tenant.clone() }).await;
    }

    fn is_paused(&self, tenant: &TenantId) -> bool {
        self.refused.get(tenant).is_some_and(|refused| refused.until.is_some())
    }

    async fn answer(&mut self, question: Question, reading: Reading) {
        let of = question.tenant().clone();
        match question {
            Question::Room { tenant, ticket, .. } => {
                if let Some(open) = self.wanted.get_mut(&tenant).filter(|open| **open == Some(ticket)) {
                    *open = None;
                }
                self.rooms.handle(Signal::Reading { tenant, ticket, reading }).await;
            }
            Question::Head { reply, .. } => {
                // Who asked may have given up.
                let _ = reply.send(reading.head);
            }
        }
        self.absolve(of).await;
    }

    /// A tenant is not known to be refused any more.
    async fn absolve(&mut self, tenant: TenantId) {
        if self.refused.remove(&tenant).is_some_and(|refused| refused.doubt.told) {
            self.rooms.handle(Signal::Returned { tenant }).await;
        }
    }

    /// Whether the keeper has anything to ask about a tenant. What was asked already doesn't count.
    fn is_asked(&self, tenant: &TenantId) -> bool {
        let is_held = self.node_of(tenant).is_some_and(|index| self.nodes[index].held.contains(tenant));
        let is_open = self.wanted.get(tenant).is_some_and(Option::is_some);
        !is_held || is_open || self.questions.iter().any(|question| question.tenant() == tenant)
    }

    /// Keeps a question for a later round; a subscription's own is made anew from what is wanted then.
    fn put_back(&mut self, question: Question) {
        if !matches!(question, Question::Room { after: None, .. }) {
            self.questions.push(question);
        }
    }

    async fn failed(&mut self, index: usize, questions: Vec<Question>, error: Option<RoundError>) {
        questions.into_iter().for_each(|question| self.put_back(question));
        let node = &mut self.nodes[index];
        if error.is_some() && node.is_left() && self.wires.is_sharded() {
            node.dismiss();
        } else if error.is_some() && !node.is_left() {
            self.servers.doubt();
        }
        node.failed(error);
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
        if self.kicks_by.is_some_and(|by| by <= now) {
            self.stop_waiting_for_kicks();
        }
        // While no server is known, no round takes the questions whose callers have given up.
        self.questions.retain(|question| !question.is_moot());
        let mut over = Vec::new();
        self.refused.retain(|tenant, refused| {
            if refused.until.take_if(|until| *until <= now).is_some() {
                over.push(tenant.clone());
            }
            refused.until.is_some() || self.wanted.contains_key(tenant)
        });
        if !over.is_empty() {
            self.nodes.iter_mut().for_each(|node| node.changed = true);
        }
        for tenant in over {
            // The refused question was forgotten, so no answer would ever end the refusal.
            if !self.is_asked(&tenant) {
                self.absolve(tenant).await;
            }
        }
        let doubted = self.refused.iter_mut().filter(|(tenant, _)| self.wanted.contains_key(*tenant));
        let doubted = doubted.filter_map(|(tenant, refused)| Some((tenant.clone(), refused.doubt.tell()?)));
        for (tenant, since) in doubted.collect::<Vec<_>>() {
            warn!(%tenant, "Redis has refused a tenant for a second");
            let outage = Outage { reason: "redis", since };
            self.rooms.handle(Signal::Lost { tenant, outage }).await;
        }
        if now >= self.strays_at + STRAYS_PAUSE {
            self.strays_at = now;
            for (tenant, epoch) in std::mem::take(&mut self.strays) {
                self.rooms.handle(Signal::Stray { tenant, epoch }).await;
            }
        }
        if let Some(since) = self.adrift.as_mut().and_then(Doubt::tell) {
            self.tell_lost(None, since).await;
        }
        self.show();
    }

    async fn tell_lost(&mut self, node: Option<usize>, since: OffsetDateTime) {
        for tenant in self.wanted_of(node) {
            let outage = Outage { reason: "redis", since };
            self.rooms.handle(Signal::Lost { tenant, outage }).await;
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
