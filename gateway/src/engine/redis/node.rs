//! One server: what is subscribed to there, and whether what it delivers can be vouched for.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture};
use publisher::TenantId;
use publisher::internals::LogThrottle;
use publisher::internals::topology::Server;
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{info, warn};

use super::round::{Answers, Round, RoundError, Running};
use super::wire::{Push, Streams, Wire};

/// A broken connection that is whole again within this is nobody's concern.
const GRACE: Duration = Duration::from_secs(1);
/// Silence after which a probe is sent.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// Between two questions whether the subscriptions are what they should be. A server can drop one and say nothing that the
/// library lets through: a node of a Cluster does when a slot moves away.
const AUDIT: Duration = Duration::from_secs(2);
/// Between a round that failed and the next.
pub const RETRY: Duration = Duration::from_millis(100);
/// How long a server that was left is listened to. Publishers leave it up to a second later, and it may stay a master for some
/// eight seconds when Sentinels demote it.
const FAREWELL: Duration = Duration::from_secs(15);
/// Questions asked at once, at the most.
const MAX_WIDTH: usize = 32;
/// How often all kicks are read: a server may lose some while the connection holds, and get some back that are old.
const KICKS_PERIOD: Duration = Duration::from_secs(60);
/// Bytes of answers that may be on their way at once: half of what Redis keeps for a subscriber before it cuts the connection.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The state of one server's connections.
pub struct Node {
    /// Which one.
    pub server: Server,
    /// The way to it.
    pub wire: Arc<Wire>,
    streams: Streams,
    running: Option<Running>,
    /// A probe that is being sent.
    probing: Option<BoxFuture<'static, ()>>,
    /// What the server was asked for on this connection, and has acknowledged.
    pub held: HashSet<TenantId>,
    /// There may be something to do; kept so that a message costs no look at all rooms.
    pub changed: bool,
    /// Subscribe to everything: the connection is new, or not trusted.
    pub full: bool,
    /// Until when it is listened to although it holds nothing any more.
    left: Option<Instant>,
    /// There may be a kick to read.
    pub kicked: bool,
    /// When kicks were last read on this connection, by the server's clock; 0 for never.
    pub kicks_read: u64,
    /// When all of them were read.
    kicks_whole: Option<Instant>,
    /// Questions asked at once. Their answers together must fit Redis' output buffer for subscribers, beyond which it cuts the
    /// connection: fewer after each failure, more after each success.
    pub width: usize,
    /// The largest answer of late.
    largest: usize,
    /// Since when what it delivers can't be vouched for.
    doubt: Option<Doubt>,
    /// Its process ended with the connection: it took nothing afterwards.
    vacant: bool,
    retry_at: Instant,
    audit_at: Instant,
    mismatches: u32,
    probe: Option<Instant>,
    heard: Option<Instant>,
    /// When the last full round succeeded.
    whole: Option<Instant>,
    connected_before: bool,
    /// What was said of it.
    pub throttle: LogThrottle,
}

/// A time in which events may be missing.
pub struct Doubt {
    /// When the rooms should know.
    due: Instant,
    /// The last moment that was vouched for.
    pub since: OffsetDateTime,
    /// Whether the rooms know.
    pub told: bool,
}

impl Doubt {
    /// From now on, after a last moment that was vouched for.
    pub fn begin(vouched: Option<Instant>) -> Self {
        let since = OffsetDateTime::now_utc() - vouched.map_or(Duration::ZERO, |at| at.elapsed());
        Self { due: Instant::now() + GRACE, since, told: false }
    }

    /// Since when, if the rooms should know and don't; from now on they do.
    pub fn tell(&mut self) -> Option<OffsetDateTime> {
        let due = !self.told && Instant::now() >= self.due;
        self.told |= due;
        due.then_some(self.since)
    }
}

/// What happens at a node.
pub enum Happening {
    /// Something came by itself.
    Push(Push),
    /// The round is over.
    Done(Box<(Round, Result<Answers, RoundError>)>),
}

impl Node {
    /// A server that nothing was asked of yet.
    pub fn new(server: Server, (wire, streams): (Arc<Wire>, Streams)) -> Self {
        let now = Instant::now();
        Self {
            server,
            wire,
            streams,
            running: None,
            probing: None,
            held: HashSet::new(),
            changed: true,
            full: true,
            left: None,
            kicked: false,
            kicks_read: 0,
            kicks_whole: None,
            width: MAX_WIDTH,
            largest: 1,
            doubt: Some(Doubt::begin(None)),
            vacant: false,
            retry_at: now,
            audit_at: now,
            mismatches: 0,
            probe: None,
            heard: None,
            whole: None,
            connected_before: false,
            throttle: LogThrottle::default(),
        }
    }

    /// The next thing that happens. Cancel-safe.
    pub async fn happening(&mut self) -> Happening {
        loop {
            tokio::select! {
                push = self.streams.next(&self.wire) => return Happening::Push(push),
                Some(done) = OptionFuture::from(self.running.as_mut()) => {
                    self.running = None;
                    return Happening::Done(Box::new(done));
                }
                Some(()) = OptionFuture::from(self.probing.as_mut()) => self.probing = None,
            }
        }
    }

    /// What has come already.
    pub fn waiting(&mut self) -> Option<Push> {
        self.streams.try_next(&self.wire)
    }

    /// Whether a round could begin.
    pub fn is_ready(&self) -> bool {
        let now = Instant::now();
        let has_work = self.changed || now >= self.audit_at;
        has_work && now >= self.retry_at && self.running.is_none() && self.wire.is_connected()
    }

    /// Begins one.
    pub fn begin(&mut self, round: Round) {
        self.audit_at = Instant::now() + AUDIT;
        self.running = Some(round.run(self.wire.clone()));
    }

    /// Whether it is time to ask even though there is nothing to change.
    pub fn is_due(&self) -> bool {
        self.doubt.is_none() && Instant::now() >= self.audit_at
    }

    /// Holds nothing any more. Publishers may not know yet, so it is listened to for a while.
    pub fn leave(&mut self) {
        self.left = Some(Instant::now() + FAREWELL);
        self.changed = true;
    }

    /// Whether it holds nothing any more.
    pub fn is_left(&self) -> bool {
        self.left.is_some()
    }

    /// Nobody publishes there any more.
    pub fn dismiss(&mut self) {
        self.left = Some(Instant::now());
    }

    /// Whether the time of listening to it is over, and it owes no answer.
    pub fn is_gone(&self) -> bool {
        self.left.is_some_and(|until| Instant::now() >= until) && self.running.is_none()
    }

    /// Whether it may have taken events that this gateway could not hear.
    pub fn has_missed(&self) -> bool {
        self.doubt.is_some() && !self.vacant
    }

    /// A push is the proof that what is published comes through.
    pub fn hears(&mut self) {
        self.heard = Some(Instant::now());
        self.probe = None;
    }

    /// The connection was made anew; whether there was one before.
    pub fn connected(&mut self) -> bool {
        self.breaks();
        self.vacant = false;
        self.retry_at = Instant::now();
        std::mem::replace(&mut self.connected_before, true)
    }

    /// The connection broke, or no new one could be made: with `vacant`, because no process listens there.
    pub fn cut(&mut self, vacant: bool) {
        self.breaks();
        let is_fresh = self.doubt.as_ref().is_some_and(|doubt| Instant::now() < doubt.due);
        self.vacant = vacant && (self.vacant || is_fresh);
    }

    /// The connection can't be trusted any more.
    pub fn breaks(&mut self) {
        self.full = true;
        self.changed = true;
        self.kicks_read = 0;
        self.held.clear();
        self.probe = None;
        let vouched = self.heard.max(self.whole);
        self.doubt.get_or_insert_with(|| Doubt::begin(vouched));
    }

    /// A round proved what it was to prove.
    pub fn succeeded(&mut self, round: &Round, answers: &Answers) {
        self.mismatches = 0;
        self.held.extend(round.subscribe.iter().filter(|tenant| !answers.refused.contains_key(*tenant)).cloned());
        round.unsubscribe.iter().for_each(|tenant| {
            self.held.remove(tenant);
        });
        if round.full {
            self.doubt = None;
            self.whole = Some(Instant::now());
            if self.throttle.is_over() {
                info!(server = %self.server, subscriptions = self.held.len(), "connected to Redis");
            }
        }
    }

    /// Since when kicks are to be read, by the server's clock; 0 for all of them, now and then.
    pub fn kicks_since(&self) -> u64 {
        let is_recent = self.kicks_whole.is_some_and(|at| at.elapsed() < KICKS_PERIOD);
        if is_recent { self.kicks_read } else { 0 }
    }

    /// All kicks were read.
    pub fn has_all_kicks(&mut self) {
        self.kicks_whole = Some(Instant::now());
    }

    /// All answers came, the largest of so many bytes.
    pub fn grow(&mut self, largest: usize) {
        // Forgotten little by little: who asks for a tenant's whole log is likely to do so again.
        if largest > 0 {
            self.largest = largest.max(self.largest - self.largest / 8);
        }
        self.width = (self.width * 2).min(MAX_WIDTH).min(MAX_BYTES / self.largest).max(1);
    }

    /// A round failed. Without an error it was only overtaken by a new connection, and the next one need not wait.
    pub fn failed(&mut self, error: Option<RoundError>) {
        self.full = true;
        self.held.clear();
        let Some(error) = error else { return };
        self.retry_at = Instant::now() + RETRY;
        match &error {
            RoundError::Demoted => self.dismiss(),
            RoundError::Mismatch { .. } => {
                self.wire.doubt_subscriptions();
                self.mismatches += 1;
                // The library drops a refusal of SUBSCRIBE, so that only the server knows the reason, if there is one.
                if self.throttle.is_due("subscriptions") {
                    warn!(
                        server = %self.server, %error,
                        "subscriptions are not as they should be, subscribing anew; a server that refuses them has ACL LOG"
                    );
                }
                if self.mismatches > 1 {
                    self.wire.reconnect();
                }
            }
            RoundError::Wire(cause) => {
                if cause.refusal().starts_with("NOPERM") {
                    // Most likely of SUBSCRIBE: the library gives that to the next command.
                    self.wire.doubt_subscriptions();
                }
                if self.throttle.is_due(&error.to_string()) {
                    warn!(server = %self.server, %error, "Redis does not answer as it should");
                }
                // Silence: nothing else would ever end a connection that something in between swallows. Or a refusal that
                // was meant for another command: the answers after it may be shifted as well, and one tenant's must never
                // be taken for another's.
                if !cause.is_of_a_lost_connection() {
                    self.wire.reconnect();
                }
            }
        }
        self.breaks();
    }

    /// Looks at the clocks; whether a probe is missing.
    pub fn tick(&mut self) -> bool {
        self.streams.revive(&self.wire);
        if self.is_left() {
            return false;
        }
        let missing = self.probe.is_some_and(|sent| sent.elapsed() >= PROBE_LIMIT);
        if missing {
            warn!(server = %self.server, "a probe did not come back, connecting anew");
            self.breaks();
            if let Some(doubt) = &mut self.doubt {
                // There was time enough for it to be nothing.
                doubt.due = Instant::now();
            }
            self.wire.reconnect();
        }
        let silent = self.heard.is_none_or(|at| at.elapsed() >= SILENCE);
        if self.doubt.is_none() && silent && self.probe.is_none() {
            self.probe = Some(Instant::now());
            let wire = self.wire.clone();
            // If it can't be sent it won't come back, which is all there is to know.
            self.probing = Some(async move { drop(wire.probe().await) }.boxed());
        }
        missing
    }

    /// The doubt about what it delivers.
    pub fn doubt(&mut self) -> Option<&mut Doubt> {
        self.doubt.as_mut()
    }

    /// Whether delivery is proved, and no room was told otherwise.
    pub fn is_up(&self) -> bool {
        let proved = self.heard.is_some_and(|at| at.elapsed() < SILENCE + PROBE_LIMIT);
        proved && self.doubt.as_ref().is_none_or(|doubt| !doubt.told)
    }
}
