//! One server: what is subscribed to there, and whether what it delivers can be vouched for.

mod heartbeat;
mod kicks;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture};
use publisher::internals::LogThrottle;
use publisher::internals::topology::Server;
use publisher::{EventId, TenantId};
use tokio::time::Instant;
use tracing::{info, warn};

use super::commands::Commands;
use super::connection::{Connection, Incoming, Orders, Received};
use super::interruption::Interruption;
use super::reach::Reach;
use super::sync_round::{Running, Scope, Standing, SyncError, SyncRound, Synced};
use crate::engine::Kick;
use crate::shutdown::spawn_brief;
use heartbeat::Heartbeat;
use kicks::{KnownKicks, News};

/// How often new kicks are looked for, whether a push told of one or not; and whether a server that was left is a master still.
const LOOK: Duration = Duration::from_secs(2);
/// Between a round that failed and the next.
pub const RETRY: Duration = Duration::from_millis(100);
/// How long a server that was left is listened to. Publishers leave it up to a second later, and it may stay a master for some
/// eight seconds when Sentinels demote it.
const FAREWELL: Duration = Duration::from_secs(15);

/// The state of one server's connections.
pub struct Node {
    /// Which one.
    pub server: Server,
    reach: Arc<Reach>,
    /// For commands and scripts.
    commands: Arc<Commands>,
    /// For subscriptions.
    connection: Connection,
    /// The way to give orders, while there is a connection.
    orders: Option<Orders>,
    /// The channel on which nothing else publishes: on a Cluster not even this gateway through another node.
    probe_channel: String,
    running: Option<Running>,
    /// A probe that is being sent.
    probing: Option<BoxFuture<'static, ()>>,
    /// The tenants whose subscriptions the server has confirmed on this connection, and not ended.
    pub held: HashSet<TenantId>,
    /// Those that it ended while a round was under way.
    ended: HashSet<TenantId>,
    /// There may be something to do; kept so that a message costs no look at all rooms.
    pub changed: bool,
    /// What the next round is about.
    scope: Scope,
    /// Until when it is listened to although it holds nothing any more.
    left: Option<Instant>,
    /// How far its kicks are known.
    pub kicks: KnownKicks,
    /// Since when what it delivers can't be vouched for.
    interruption: Option<Interruption>,
    /// Its process ended with the connection: it took nothing afterwards.
    vacant: bool,
    retry_at: Instant,
    look_at: Instant,
    heartbeat: Heartbeat,
    /// When everything was last subscribed to.
    whole: Option<Instant>,
    connected_before: bool,
    /// What was said of it.
    pub throttle: LogThrottle,
}

/// What happens at a node.
pub enum Happening {
    /// The subscriber's connection was made, for the first time or again.
    Connected,
    /// It ended, or could not be made.
    Broken,
    /// Something came on it.
    Received(Received),
    /// The round is over.
    Done(Box<(SyncRound, Result<Synced, SyncError>)>),
}

impl Node {
    /// A server that nothing was asked of yet.
    pub fn open(server: Server, reach: Arc<Reach>) -> Self {
        let now = Instant::now();
        let names = reach.settings().names.clone();
        Self {
            commands: reach.open(&server),
            probe_channel: names.probe(EventId::new().as_str()),
            connection: Connection::open(reach.servers().url().target(&server), names),
            server,
            reach,
            orders: None,
            running: None,
            probing: None,
            held: HashSet::new(),
            ended: HashSet::new(),
            changed: true,
            scope: Scope::Everything,
            left: None,
            kicks: KnownKicks::default(),
            interruption: Some(Interruption::begin(None)),
            vacant: false,
            retry_at: now,
            look_at: now,
            heartbeat: Heartbeat::default(),
            whole: None,
            connected_before: false,
            throttle: LogThrottle::default(),
        }
    }

    /// The next thing that happens. Cancel-safe.
    pub async fn happening(&mut self) -> Happening {
        loop {
            tokio::select! {
                incoming = self.connection.next() => return match incoming {
                    Incoming::Connected(orders) => {
                        self.orders = Some(orders);
                        self.breaks();
                        self.vacant = false;
                        self.retry_at = Instant::now();
                        Happening::Connected
                    }
                    Incoming::Broken(error) => {
                        let text = error.to_string();
                        if self.throttle.is_due(&text) {
                            warn!(server = %self.server, error = text, "no connection to Redis");
                        }
                        self.cut(error.is_vacant());
                        Happening::Broken
                    }
                    Incoming::Received(received) => Happening::Received(received),
                },
                Some(done) = OptionFuture::from(self.running.as_mut()) => {
                    self.running = None;
                    return Happening::Done(Box::new(done));
                }
                Some(()) = OptionFuture::from(self.probing.as_mut()) => self.probing = None,
            }
        }
    }

    /// Whether there was a connection before this one; from now on there was.
    pub fn is_reconnected(&mut self) -> bool {
        std::mem::replace(&mut self.connected_before, true)
    }

    /// Whether a round could begin, and may have something to do.
    pub fn is_ready(&self) -> bool {
        let now = Instant::now();
        let has_work = self.changed || now >= self.look_at;
        has_work && now >= self.retry_at && self.running.is_none() && self.orders.is_some()
    }

    /// Begins a round with the subscriptions, questions and kicks that it is for.
    pub fn begin(&mut self, round: SyncRound) {
        let Some(orders) = self.orders.clone() else { return };
        self.look_at = Instant::now() + LOOK;
        self.kicks.news = News::Nothing;
        self.ended.clear();
        self.running = Some(round.run(orders, self.commands.clone(), self.reach.settings().clone()));
    }

    /// Whether a round is to begin even though no room wants anything.
    pub fn is_due(&self, has_kicks: bool) -> bool {
        let has_news = has_kicks && self.kicks.news == News::Unread;
        let looks = (has_kicks || self.is_left()) && Instant::now() >= self.look_at;
        self.scope == Scope::Everything || self.interruption.is_some() || has_news || looks
    }

    /// Forgets what it holds when everything is to be subscribed to; the scope of the round that begins.
    pub fn take_scope(&mut self) -> Scope {
        if self.scope == Scope::Everything {
            self.held.clear();
        }
        std::mem::replace(&mut self.scope, Scope::Changes)
    }

    /// The channels of this gateway itself.
    pub fn own_channels(&self) -> Vec<String> {
        vec![self.reach.settings().names.control(), self.probe_channel.clone()]
    }

    /// Holds nothing any more. Publishers may not know yet, so it is listened to for a while.
    pub fn leave(&mut self) {
        self.left = Some(Instant::now() + FAREWELL);
        self.changed = true;
        self.reach.close(&self.server);
    }

    /// Whether it holds nothing any more.
    pub fn is_left(&self) -> bool {
        self.left.is_some()
    }

    /// Whether it takes events.
    pub fn standing(&self) -> Standing {
        if self.is_left() { Standing::Left } else { Standing::Holds }
    }

    /// Nothing is published there any more.
    pub fn dismiss(&mut self) {
        self.left = Some(Instant::now());
    }

    /// Whether the time of listening to it is over, and it owes no answer.
    pub fn is_gone(&self) -> bool {
        self.left.is_some_and(|until| Instant::now() >= until) && self.running.is_none()
    }

    /// Whether it may have taken events that this gateway could not hear.
    pub fn has_missed(&self) -> bool {
        self.interruption.is_some() && !self.vacant
    }

    /// A push is the proof that what is published comes through.
    pub fn hears(&mut self) {
        self.heartbeat.hears();
    }

    /// There may be a kick to read.
    pub fn hears_of_kicks(&mut self) {
        self.kicks.news = News::Unread;
        self.changed = true;
    }

    /// The server has ended a subscription.
    pub fn ends(&mut self, tenant: &TenantId) {
        self.held.remove(tenant);
        if self.running.is_some() {
            self.ended.insert(tenant.clone());
        }
    }

    /// The connection ended, or no new one could be made: with `vacant`, because no process listens there.
    fn cut(&mut self, vacant: bool) {
        self.orders = None;
        self.breaks();
        let is_fresh = self.interruption.as_ref().is_some_and(Interruption::is_fresh);
        self.vacant = vacant && (self.vacant || is_fresh);
    }

    /// Nothing holds that was subscribed to.
    fn breaks(&mut self) {
        self.scope = Scope::Everything;
        self.changed = true;
        self.kicks.forget();
        self.held.clear();
        self.heartbeat.forget_probe();
        self.is_interrupted();
    }

    fn is_interrupted(&mut self) {
        let vouched = self.heartbeat.heard().max(self.whole);
        self.interruption.get_or_insert_with(|| Interruption::begin(vouched));
    }

    /// Makes both connections anew: one of them is silent, or leads to another server.
    fn reconnect(&mut self) {
        self.orders = None;
        self.connection.reconnect();
        if !self.is_left() {
            self.commands = self.reach.open(&self.server);
        }
    }

    /// Whether the connection ended while the last round was under way, so that what it brought is void.
    pub fn is_overtaken(&self) -> bool {
        self.scope == Scope::Everything
    }

    /// What a round subscribed to and unsubscribed from holds.
    pub fn is_synced(&mut self, round: &SyncRound, synced: &Synced) {
        let confirmed = round.subscribe.iter().filter(|tenant| !synced.refused.contains_key(*tenant));
        self.held.extend(confirmed.cloned());
        let over = round.unsubscribe.iter().chain(&self.ended);
        over.for_each(|tenant| {
            self.held.remove(tenant);
        });
        if round.scope == Scope::Everything {
            self.whole = Some(Instant::now());
            if self.throttle.is_over() {
                info!(server = %self.server, subscriptions = self.held.len(), "connected to Redis");
            }
        }
    }

    /// A round was answered in full: what it delivers can be vouched for. The interruption that is over, if there was one.
    pub fn is_settled(&mut self) -> Option<Interruption> {
        let over = self.interruption.take();
        self.probe_if_silent();
        over
    }

    /// Questions have no answer, although the subscriptions hold: the command connection is lost, and heals by itself.
    pub fn is_mute(&mut self) {
        self.is_interrupted();
        self.retry_at = Instant::now() + RETRY;
    }

    /// Gives back kicks that the server has lost.
    pub fn restore_kicks(&self, lost: Vec<Kick>) {
        warn!(count = lost.len(), "Redis has lost kicks, giving them back");
        let commands = self.commands.clone();
        spawn_brief(async move {
            if let Err(error) = commands.restore_kicks(&lost).await {
                warn!(%error, "kicks could not be given back to Redis");
            }
        });
    }

    /// A round failed, unless the connection ended meanwhile: then the next one need not wait.
    pub fn failed(&mut self, error: &SyncError) {
        if self.is_overtaken() {
            return;
        }
        self.retry_at = Instant::now() + RETRY;
        self.breaks();
        match error {
            SyncError::Demoted => self.dismiss(),
            SyncError::Refused(_) => {
                if self.throttle.is_due(&error.to_string()) {
                    warn!(server = %self.server, %error, "subscription refused; the server's ACL LOG has the channel");
                }
            }
            SyncError::Unanswered(_) | SyncError::Split => {
                if self.throttle.is_due(&error.to_string()) {
                    warn!(server = %self.server, %error, "Redis does not answer as it should, connecting anew");
                }
                self.reconnect();
            }
        }
    }

    /// Looks at the clocks; whether a probe is missing.
    pub fn tick(&mut self) -> bool {
        if self.is_left() {
            return false;
        }
        let missing = self.heartbeat.is_missing();
        if missing {
            warn!(server = %self.server, "a probe did not come back, connecting anew");
            self.breaks();
            if let Some(interruption) = &mut self.interruption {
                interruption.is_certain();
            }
            self.reconnect();
        }
        self.probe_if_silent();
        missing
    }

    /// Sends a probe when delivery is neither in doubt nor proved of late: at once on a new connection, for `/readyz` waits for it.
    fn probe_if_silent(&mut self) {
        if !self.is_left() && self.interruption.is_none() && self.heartbeat.begins() {
            self.probing = Some(self.send_probe().boxed());
        }
    }

    /// If it can't be sent it won't come back, which is all there is to know.
    fn send_probe(&self) -> impl Future<Output = ()> + use<> {
        let (commands, orders, channel) = (self.commands.clone(), self.orders.clone(), self.probe_channel.clone());
        async move {
            // On the subscriber's own connection when the other is broken: that proves less, but not nothing.
            if let (Err(_), Some(orders)) = (commands.probe(&channel).await, orders) {
                let _ = orders.ask(&["PUBLISH", &channel, "probe"]).await;
            }
        }
    }

    /// The interruption that is under way.
    pub fn interruption(&mut self) -> Option<&mut Interruption> {
        self.interruption.as_mut()
    }

    /// Whether delivery is proved, and no room was told otherwise.
    pub fn is_up(&self) -> bool {
        self.heartbeat.is_recent()
            && self.interruption.as_ref().is_none_or(|interruption| interruption.told().is_none())
    }
}
