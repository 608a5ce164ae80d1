//! The hub: every tenant's room, spread over as many shards as there are cores.
//!
//! A shard is one task that owns its rooms, so what happens in a room happens in one order; a tenant always lives in the
//! same shard. Sockets and the engine talk to shards by message and never wait for each other.

mod admission;
mod audience;
mod input;
mod kicks;
mod room;
mod shard;
mod shared;
mod stream;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use publisher::TenantId;
use publisher::internals::{Message, sanitised};
use tokio::sync::{mpsc, oneshot};
use tokio_util::time::DelayQueue;
use tracing::info;

pub use admission::Permit;
pub use input::{Departure, Join};
pub use shared::RoomLimits;

use crate::engine::{Engine, Kick, Kicked, Rooms, Signal};
use crate::metrics::Metrics;
use crate::metrics_refresh::MetricsRefresh;
use crate::shutdown::{Shutdown, spawn_brief};
use crate::snapshots::Snapshots;
use crate::socket::link::Link;
use crate::tokens::Claims;
use admission::Admission;
use input::Input;
use kicks::Kicks;
use shard::Shard;
use shared::{Database, Shared, Turns};

/// Inputs that wait for a shard; a sender beyond that waits too. Events that wait too long are in the log.
const MAILBOX: usize = 4096;

/// A kick that was given within this is logged even where it closes no socket.
const RECENT: Duration = Duration::from_secs(60);

/// The way into the rooms.
#[derive(Clone)]
pub struct Hub {
    mailboxes: Arc<[mpsc::Sender<Input>]>,
    admission: Admission,
    kicks: Arc<Kicks>,
}

impl Hub {
    /// Starts a hub with one shard for each core. Its rooms ask the engine for events; the engine's feed brings them here.
    /// `token_lifetime` is the longest that a token lives.
    pub fn start(
        engine: &Engine,
        database: Option<&(Snapshots, MetricsRefresh)>,
        limits: RoomLimits,
        token_lifetime: Duration,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> Self {
        let shards = std::thread::available_parallelism().map_or(1, usize::from);
        let (mailboxes, inboxes): (Vec<_>, Vec<_>) = (0..shards).map(|_| mpsc::channel(MAILBOX)).unzip();
        let kicks = Arc::new(Kicks::new(token_lifetime));
        let hub = Self { mailboxes: mailboxes.into(), admission: Admission::new(), kicks };
        for (inbox, mailbox) in inboxes.into_iter().zip(hub.mailboxes.iter()) {
            let database = database.cloned().map(|(snapshots, refresh)| Database { snapshots, refresh });
            let shared = Shared {
                engine: engine.clone(),
                database,
                limits,
                metrics: metrics.clone(),
                kicks: hub.kicks.clone(),
                due: DelayQueue::new(),
                dirty: Vec::new(),
                turns: Turns::default(),
                mailbox: mailbox.downgrade(),
            };
            shutdown.spawn(Shard::new(inbox, shared).run());
        }
        hub
    }

    /// Whether a kick revokes this token, where it is shown for this tenant.
    pub fn revokes(&self, tenant: &TenantId, claims: &Claims) -> bool {
        self.kicks.revoking(tenant, claims.subject.as_deref(), claims.issued_at).is_some()
    }

    /// Waits until it is a join's turn; `None` when that takes too long.
    pub async fn turn(&self) -> Option<Permit> {
        self.admission.turn().await
    }

    /// Puts a socket into a room. From here on only the room writes to it; the answer comes on the socket.
    pub async fn join(&self, tenant: &TenantId, join: Join) {
        self.send(tenant, Input::Join { tenant: tenant.clone(), join }).await;
    }

    /// Confirms to a joined socket that its token was renewed, by one that was issued then.
    pub async fn renewed(&self, tenant: &TenantId, link: &Arc<Link>, issued_at: u64) {
        self.send(tenant, Input::Renewed { tenant: tenant.clone(), link: link.clone(), issued_at }).await;
    }

    /// Sends a control message to a socket in a room, in order with everything else.
    pub async fn tell(&self, tenant: &TenantId, link: &Arc<Link>, frames: Bytes) {
        self.send(tenant, Input::Tell { tenant: tenant.clone(), link: link.clone(), frames }).await;
    }

    /// Sends a heartbeat to a socket that asked for one.
    pub async fn beat(&self, tenant: &TenantId, link: &Arc<Link>) {
        self.send(tenant, Input::Beat { tenant: tenant.clone(), link: link.clone() }).await;
    }

    /// Takes a socket out of its room. When this returns, the caller is the only writer of its link.
    pub async fn leave(&self, tenant: &TenantId, link: &Arc<Link>, departure: Departure) {
        let (done, left) = oneshot::channel();
        self.send(tenant, Input::Leave { tenant: tenant.clone(), link: link.clone(), departure, done }).await;
        // An error means that the shard is gone, and writes no more either.
        let _ = left.await;
    }

    /// Revokes tokens. From here on they are refused; their sockets close a moment later.
    pub async fn kick(&self, kicks: Vec<Kick>, now: u64) {
        let news = self.kicks.hear(kicks, now);
        if news.is_empty() {
            return;
        }
        let mut answers = Vec::with_capacity(self.mailboxes.len());
        for mailbox in self.mailboxes.iter() {
            let (closed, answer) = oneshot::channel();
            let _ = mailbox.send(Input::Kicked { closed }).await;
            answers.push(answer);
        }
        spawn_brief(async move {
            let mut closed = HashMap::<Kicked, usize>::new();
            for answer in answers {
                for (who, count) in answer.await.unwrap_or_default() {
                    *closed.entry(who).or_default() += count;
                }
            }
            for Kick { who, at } in news {
                let closed = closed.get(&who).copied().unwrap_or_default();
                // A gateway that starts reads the kicks of a month.
                if closed > 0 || now.saturating_sub(at) < RECENT.as_millis() as u64 {
                    info!(who = sanitised(&who.to_string()), closed, "kick carried out");
                }
            }
        });
    }

    /// The connected tenants, with how many sockets each has.
    pub async fn tenants(&self) -> BTreeMap<TenantId, usize> {
        let mut tenants = BTreeMap::new();
        for mailbox in self.mailboxes.iter() {
            let (reply, answer) = oneshot::channel();
            let _ = mailbox.send(Input::Tenants(reply)).await;
            tenants.extend(answer.await.unwrap_or_default());
        }
        tenants
    }

    async fn send(&self, tenant: &TenantId, input: Input) {
        // A closed mailbox means that the gateway is exiting; sockets are told by their own tasks.
        let _ = self.mailbox(tenant).send(input).await;
    }

    fn mailbox(&self, tenant: &TenantId) -> &mpsc::Sender<Input> {
        &self.mailboxes[self.shard_of(tenant)]
    }

    fn shard_of(&self, tenant: &TenantId) -> usize {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(tenant);
        hash as usize % self.mailboxes.len()
    }
}

impl Rooms for Hub {
    async fn deliver(&self, messages: Vec<(TenantId, Message)>) {
        let mut by_shard = vec![Vec::new(); self.mailboxes.len()];
        for (tenant, message) in messages {
            by_shard[self.shard_of(&tenant)].push((tenant, message));
        }
        for (mailbox, messages) in self.mailboxes.iter().zip(by_shard) {
            if !messages.is_empty() {
                let _ = mailbox.send(Input::Messages(messages)).await;
            }
        }
    }

    async fn handle(&self, signal: Signal) {
        let tenant = match &signal {
            Signal::Reading { tenant, .. }
            | Signal::Forgotten { tenant, .. }
            | Signal::Lost { tenant, .. }
            | Signal::Returned { tenant }
            | Signal::Refused { tenant }
            | Signal::Stray { tenant, .. } => tenant,
            Signal::Kicks { kicks, now } => return self.kick(kicks.clone(), *now).await,
        };
        let _ = self.mailbox(tenant).send(Input::Signal(signal)).await;
    }

    fn kicks_beyond(&self, read: &[Kick], now: u64) -> Vec<Kick> {
        let read: HashMap<&Kicked, u64> = read.iter().map(|kick| (&kick.who, kick.at)).collect();
        let known = self.kicks.all().into_iter().map(|kick| Kick { at: kick.at.min(now), ..kick });
        known.filter(|kick| read.get(&kick.who).is_none_or(|at| *at < kick.at)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::engine::memory::{MemoryEngine, MemoryLimits};
    use crate::socket::SocketId;
    use crate::socket::dialect::Dialect;
    use crate::socket::link::QueueLimits;

    #[tokio::test]
    async fn f60_a_snapshot_that_panics_answers_its_newcomers() {
        let (shutdown, metrics) = (Shutdown::default(), Metrics::register(1));
        let recovery = Duration::from_secs(60);
        let limits = MemoryLimits { events_per_second: 10, recovery_events: 10, recovery };
        let (engine, feed) = MemoryEngine::new(limits);
        let engine = Engine::Memory(engine);
        let snapshots = Snapshots::of_books(Arc::new(|_: &TenantId| panic!("on purpose")));
        let figures = MetricsRefresh::start(engine.clone(), snapshots.clone(), &shutdown);
        let limits = RoomLimits { heartbeat: recovery, linger: Duration::ZERO, max_per_tenant: 1 };
        let hub = Hub::start(&engine, Some(&(snapshots, figures)), limits, recovery, &metrics, &shutdown);
        shutdown.spawn(feed.run(hub.clone()));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let link = Arc::new(Link::new(SocketId(1), Dialect::Native, server, Arc::new(QueueLimits::new(10, 1 << 20))));
        let permit = hub.turn().await.unwrap();
        hub.join(&"t1".parse().unwrap(), Join { link, subject: None, issued_at: 0, resume: None, permit }).await;
        let mut answer = [0; 1024];
        let read = timeout(Duration::from_secs(60), client.read(&mut answer)).await.expect("an answer").unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.contains(r#""type":"joined""#) && answer.contains(r#""payments":null"#), "{answer}");
    }
}
