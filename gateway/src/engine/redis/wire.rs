//! The few things that the engine does with one Redis server, and the only file that names the client library.
//!
//! Two connections: the subscriber's, on which messages come and positions are read (RESP3 lets it do both, and Redis
//! answers in order: what was published before a position was read comes before the answer), and one for what must be
//! proved to come back: probes and kicks.
//!
//! What the library does not do for us, and why (`fred` 10.1): `subscribe` returns once it is written, not once it holds,
//! so [`Wire::subscriptions`] asks the server; its own resubscription gives up for ever after one missed event, so the
//! keeper subscribes anew; a message that its channel of messages has no room for is dropped, so the channel is large and
//! a loss is taken for a gap in every room. What a server says unasked about subscriptions it drops, and a refusal of one
//! it gives to the next command instead. On a Cluster both happen whenever a slot moves, so there each tenant's
//! SSUBSCRIBE goes out as a command of its own, whose answer is looked at, and the count is asked for again and again.

mod trial;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::Client;
use fred::error::ErrorKind;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::{Config, ConnectionConfig, Options, PerformanceConfig, ReconnectPolicy, Server};
use fred::types::{Builder, ClusterHash, CustomCommand, Message as PushMessage, Resp3Frame};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use publisher::TenantId;
use publisher::internals::{MalformedMessage, Message, Names, script};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use trial::Trials;

use crate::engine::{Claim, FIGURES_PAUSE, Kick, Kicked, Known, MOST_KICKS, Position, Reading};

/// No command may take longer: whatever is silent for so long is not waited for.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
/// Pushed messages that wait for the keeper. The library makes seven channels of this size, with all their slots, so it is no
/// larger than a burst; what overflows it is found in the logs.
const PUSH_QUEUE: usize = 8192;
/// Channels of one SUBSCRIBE.
const BATCH: usize = 512;
/// Commands that may wait for a connection.
const COMMAND_QUEUE: usize = 65_536;
/// The delay before the first attempt to reconnect, in milliseconds. Each later one doubles it.
const RECONNECT_MS: u32 = 25;
/// Random milliseconds on top of each delay.
const RECONNECT_JITTER_MS: u32 = 50;
/// The longest delay, in milliseconds. The library adds no jitter to it, so each connection draws its own.
const RECONNECT_MAX_MS: std::ops::RangeInclusive<u32> = 700..=1000;
/// How far before the last read kicks are read again. The clocks of two masters differ, and a set may move from one to the other.
const KICKS_OVERLAP: Duration = Duration::from_secs(60);
/// How far a kick may be ahead of the server's clock: what another master's clock may have been. Whatever is further ahead was written
/// by hand, and would shut everybody out until then.
const KICK_AHEAD: Duration = Duration::from_secs(5);
/// Between two starts of a connection that the library gave up.
const REVIVE_PAUSE: Duration = Duration::from_secs(1);

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection, or a timeout.
    #[error("{0}")]
    Connection(#[from] fred::error::Error),
    /// The server refused.
    #[error("Redis refused: {0}")]
    Refused(String),
    /// The answer is not what the command answers.
    #[error("unexpected answer to {0}")]
    Unexpected(&'static str),
}

impl WireError {
    /// Whether the connection is gone, which the library sees by itself, and makes it anew.
    pub fn is_of_a_lost_connection(&self) -> bool {
        matches!(self, Self::Connection(error) if *error.kind() != ErrorKind::Timeout)
    }

    /// Whether no answer came: the connection may be dead without anybody knowing.
    fn is_silence(&self) -> bool {
        matches!(self, Self::Connection(error) if *error.kind() == ErrorKind::Timeout)
    }

    /// What the server said when it refused.
    pub fn refusal(&self) -> &str {
        match self {
            Self::Refused(why) => why,
            Self::Connection(_) | Self::Unexpected(_) => "",
        }
    }
}

/// The connections to one server.
pub struct Wire {
    subscriber: Line,
    commands: Line,
    terms: Terms,
    /// The channel on which nobody else publishes: on a Cluster not even this gateway through another node.
    probe: String,
    trials: Trials,
}

/// One connection. The library connects again by itself when a connection breaks; a silent one must be ordered to.
struct Line {
    client: Client,
    /// The order under way. The library queues orders, and would carry out each of them after an outage.
    order: Mutex<Option<BoxFuture<'static, ()>>>,
}

/// What is the same for every server.
#[derive(Clone)]
pub struct Terms {
    /// The names in Redis.
    pub names: Names,
    /// Events that a tenant's log holds.
    pub recovery_events: u32,
    /// How long a token can live, and so a revocation counts.
    pub token_lifetime: Duration,
    /// Whether tenants' channels are sharded: SSUBSCRIBE in place of SUBSCRIBE.
    pub sharded: bool,
}

/// How many subscriptions a connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscriptions {
    /// By SUBSCRIBE.
    pub plain: usize,
    /// By SSUBSCRIBE.
    pub sharded: usize,
}

/// A tenant that a server doesn't take a subscription for, and what it said.
pub type Refusal = (TenantId, String);

/// What was read of the kicks.
#[derive(Debug, Default)]
pub struct Kicks {
    /// When, in milliseconds of the server's clock.
    pub now: u64,
    /// Kicks that a gateway gave.
    pub kicks: Vec<Kick>,
    /// Entries that no gateway wrote: they name nobody, or a time that has yet to come.
    pub unusable: usize,
}

/// What the subscriber's connection brings by itself.
pub struct Streams {
    pushes: broadcast::Receiver<PushMessage>,
    errors: broadcast::Receiver<(fred::error::Error, Option<Server>)>,
    connects: broadcast::Receiver<Server>,
    /// The library's tasks that connect, and connect again; the connections end with them.
    connecting: [Connecting; 2],
    revived: Option<Instant>,
}

type Connecting = AbortOnDropHandle<Result<(), fred::error::Error>>;

/// Something that came by itself.
#[derive(Debug)]
pub enum Push {
    /// A message on one of our channels.
    Event(TenantId, Message),
    /// There may be a kick to read. Pub/sub knows no database number, so only what is in our own database counts.
    Kick,
    /// Our own probe.
    Probe,
    /// No message of ours, on a channel of ours. The room notices what it was, if it was anything: by its number, or at the next
    /// comparison.
    Malformed(TenantId, MalformedMessage),
    /// Something on a channel of ours that isn't ours; it proves that delivery works, and nothing else.
    Foreign,
    /// Messages were dropped for want of room.
    Lagged(u64),
    /// The connection is broken, or a new one could not be made.
    Broken {
        /// What the library says.
        error: String,
        /// No process listens at the server's address.
        vacant: bool,
    },
    /// A new connection, with no subscriptions.
    Connected,
}

impl Wire {
    /// Starts to connect; goes on for ever in the background.
    pub fn open(config: &Config, terms: &Terms) -> (Self, Streams) {
        let trials = Trials::new(config);
        let mut config = config.clone();
        config.fail_fast = false;
        let [subscriber, commands] = [PUSH_QUEUE, 1].map(|queue| Line::new(client(&config, queue)));
        let streams = Streams {
            pushes: subscriber.client.message_rx(),
            errors: subscriber.client.error_rx(),
            connects: subscriber.client.reconnect_rx(),
            connecting: [&subscriber, &commands].map(|line| AbortOnDropHandle::new(line.client.connect())),
            revived: None,
        };
        let probe = terms.names.probe(publisher::EventId::new().as_str());
        (Self { subscriber, commands, terms: terms.clone(), probe, trials }, streams)
    }

    /// Reads a push as what it is.
    fn read(&self, push: PushMessage) -> Push {
        let Some(payload) = push.value.into_bytes() else { return Push::Foreign };
        if let Some(tenant) = self.terms.names.tenant_of_channel(&push.channel) {
            return match Message::parse(payload) {
                Ok(message) => Push::Event(tenant, message),
                Err(error) => Push::Malformed(tenant, error),
            };
        }
        match *push.channel == *self.terms.names.control() {
            true => Push::Kick,
            false => Push::Probe,
        }
    }

    /// Subscribes to the channels that every gateway listens to on every server.
    pub async fn subscribe_own(&self) -> Result<(), WireError> {
        let own = vec![self.terms.names.control(), self.probe.clone()];
        Ok(self.subscriber.client.with_options(&options()).subscribe(own).await?)
    }

    /// What must be there when `tenants` are subscribed to, and [our own channels](Self::subscribe_own).
    pub fn expected(&self, tenants: usize) -> Subscriptions {
        const OWN: usize = 2;
        match self.terms.sharded {
            true => Subscriptions { plain: OWN, sharded: tenants },
            false => Subscriptions { plain: OWN + tenants, sharded: 0 },
        }
    }

    /// Subscribes; returns the tenants that the server refuses, or says are not its own. That the others hold is known when
    /// [`Wire::subscriptions`] says so.
    pub async fn subscribe(&self, tenants: &[TenantId]) -> Result<Vec<Refusal>, WireError> {
        if self.terms.sharded {
            let answers: Vec<_> = tenants.iter().map(|tenant| self.subscribe_sharded(tenant)).collect();
            let refusals = stream::iter(answers).buffered(BATCH).try_filter_map(|refusal| async { Ok(refusal) });
            return refusals.try_collect().await;
        }
        let refusals = self.refusals(tenants).await;
        let is_granted = |tenant: &&TenantId| !refusals.iter().any(|(refused, _)| refused == *tenant);
        let granted: Vec<_> = tenants.iter().filter(is_granted).cloned().collect();
        for batch in granted.chunks(BATCH) {
            self.subscriber.client.with_options(&options()).subscribe(self.channels(batch)).await?;
        }
        Ok(refusals)
    }

    async fn subscribe_sharded(&self, tenant: &TenantId) -> Result<Option<Refusal>, WireError> {
        let channel = self.terms.names.events(tenant);
        match self.subscriber.run("SSUBSCRIBE", vec![channel.clone().into()]).await {
            Ok(Resp3Frame::Push { data, .. }) if data.get(1).and_then(text) == Some(&channel) => Ok(None),
            Ok(_) => Err(WireError::Unexpected("SSUBSCRIBE")),
            Err(WireError::Refused(why)) => Ok(Some((tenant.clone(), why))),
            Err(error) => Err(error),
        }
    }

    /// Sends UNSUBSCRIBE.
    pub async fn unsubscribe(&self, tenants: &[TenantId]) -> Result<(), WireError> {
        if self.terms.sharded {
            // One by one: they must be of one slot.
            for channel in self.channels(tenants) {
                self.subscriber.client.with_options(&options()).sunsubscribe(channel).await?;
            }
            return Ok(());
        }
        for batch in tenants.chunks(BATCH) {
            self.subscriber.client.with_options(&options()).unsubscribe(self.channels(batch)).await?;
        }
        Ok(())
    }

    fn channels(&self, tenants: &[TenantId]) -> Vec<String> {
        tenants.iter().map(|tenant| self.terms.names.events(tenant)).collect()
    }

    /// How many subscriptions the server holds for this connection. Asked on the connection itself, behind what was sent
    /// before: this is the barrier that proves it.
    pub async fn subscriptions(&self) -> Result<Subscriptions, WireError> {
        let info = self.subscriber.run("CLIENT", vec!["INFO".into()]).await?;
        let field = |name: &str| {
            text(&info)?.split_ascii_whitespace().find_map(|field| field.strip_prefix(name)?.parse::<usize>().ok())
        };
        // Redis tells of sharded ones since 7.0.3; a server that is older has none that we could have asked for.
        let sharded = field("ssub=").or_else(|| (!self.terms.sharded).then_some(0));
        let found = field("sub=").zip(sharded).map(|(plain, sharded)| Subscriptions { plain, sharded });
        found.ok_or(WireError::Unexpected("CLIENT INFO"))
    }

    /// Reads a tenant's head, and its log after a position, through the fence (design §5).
    ///
    /// First by a script that may not write, for which the right to read is enough. Where the fence must begin an epoch, that
    /// is refused, and asked again with the right to write. Who doesn't have it gets a [provisional](Self::provisional) head.
    pub async fn position(&self, tenant: &TenantId, after: Option<&Known>) -> Result<Reading, WireError> {
        let answer = match self.run_position(["EVALSHA_RO", "EVAL_RO"], tenant, after).await {
            Err(WireError::Refused(why)) if why.contains("not allowed from read-only scripts") => {
                self.run_position(["EVALSHA", "EVAL"], tenant, after).await?
            }
            Err(WireError::Refused(why)) if why.starts_with("NOPERM no permission to begin an epoch") => {
                return Ok(Self::provisional(after));
            }
            answer => answer?,
        };
        reading(answer).ok_or(WireError::Unexpected("the position script"))
    }

    /// Where a stream stands that needs a new epoch, to a gateway that may not begin one: at the beginning of an epoch of its
    /// own. The next event that is published brings the real one, and with it a resync. An epoch that a room has left is
    /// never given out again: whoever resumes from it has missed something.
    fn provisional(after: Option<&Known>) -> Reading {
        const MARK: &str = "provisional-";
        let kept = match after {
            Some(Known::Room(at)) if at.epoch.as_str().starts_with(MARK) => Some(at.epoch.clone()),
            _ => None,
        };
        let fresh = || format!("{MARK}{}", publisher::EventId::new()).parse().expect("an epoch is a word");
        Reading { head: Position { epoch: kept.unwrap_or_else(fresh), seq: 0, id: None }, events: Vec::new() }
    }

    async fn run_position(
        &self,
        [by_digest, by_source]: [&'static str; 2],
        tenant: &TenantId,
        after: Option<&Known>,
    ) -> Result<Resp3Frame, WireError> {
        let (at, trusted) = match after {
            Some(Known::Room(at)) => (Some(at), "1"),
            Some(Known::Client(at)) => (Some(at), "0"),
            None => (None, "0"),
        };
        let args = [
            at.map_or(String::new(), |at| at.epoch.to_string()),
            at.map_or(0, |at| at.seq).to_string(),
            at.and_then(|at| at.id.as_ref()).map_or(String::new(), ToString::to_string),
            trusted.into(),
            self.terms.recovery_events.to_string(),
            script::STATE_MILLIS.to_string(),
        ];
        let keys = [self.terms.names.state(tenant), self.terms.names.log(tenant)];
        let call = |how: String| -> Vec<Bytes> {
            let head = [how, keys.len().to_string()];
            head.iter().chain(&keys).chain(&args).map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect()
        };
        let script = &*script::POSITION;
        match self.subscriber.run(by_digest, call(script.digest().into())).await {
            Err(WireError::Refused(why)) if why.starts_with("NOSCRIPT") => {
                self.subscriber.run(by_source, call(script.source().into())).await
            }
            answer => answer,
        }
    }

    /// Publishes a probe to ourselves.
    pub async fn probe(&self) -> Result<(), WireError> {
        let publish = || vec![self.probe.clone().into(), "probe".into()];
        // Through the subscriber's own connection when the other is broken: that proves less, but not nothing.
        match self.command("PUBLISH", publish()).await {
            Ok(_) => Ok(()),
            Err(_) => self.subscriber.run("PUBLISH", publish()).await.map(drop),
        }
    }

    /// Claims a tenant's figures for an instance, unless another has: then what that one is at.
    pub async fn claim(&self, instance: &str, tenant: &TenantId, at: Option<&Position>) -> Result<Claim, WireError> {
        let at = at.map_or_else(|| "-".to_owned(), |Position { epoch, seq, .. }| format!("{epoch} {seq}"));
        let claim = format!("{instance} {at}");
        let millis = FIGURES_PAUSE.as_millis().to_string();
        let words = vec![
            self.terms.names.figures(tenant).into(),
            claim.into(),
            "NX".into(),
            "GET".into(),
            "PX".into(),
            millis.into(),
        ];
        Ok(match self.command("SET", words).await? {
            Resp3Frame::Null => Claim::Won,
            held => {
                let held = text(&held).ok_or(WireError::Unexpected("SET"))?;
                let (holder, covered) = held.split_once(' ').ok_or(WireError::Unexpected("SET"))?;
                // Our own, from a try that Redis or Postgres cut short.
                if holder == instance { Claim::Won } else { Claim::Lost { covers: covered == at } }
            }
        })
    }

    /// Revokes tokens, and tells all gateways to read that. The kick's moment, in milliseconds of the server's time; `None` when there
    /// are too many revocations.
    pub async fn kick(&self, who: &Kicked) -> Result<Option<u64>, WireError> {
        let (keys, lifetime) = (1, self.terms.token_lifetime.as_millis());
        let args = [lifetime.to_string(), MOST_KICKS.to_string(), self.terms.names.control()];
        // Kicks are rare: the script goes along with each.
        let words = [script::KICK.source().to_owned(), keys.to_string(), self.terms.names.revoked(), who.to_string()];
        match self.command("EVAL", words.into_iter().chain(args).map(Bytes::from).collect()).await? {
            Resp3Frame::Number { data, .. } => Ok(u64::try_from(data).ok().filter(|at| *at > 0)),
            _ => Err(WireError::Unexpected("the kick script")),
        }
    }

    /// The kicks since the server's time was this, in milliseconds; all of them since 0.
    pub async fn kicks_since(&self, last: u64) -> Result<Kicks, WireError> {
        let from = last.saturating_sub(KICKS_OVERLAP.as_millis() as u64);
        let most = MOST_KICKS.to_string();
        let words =
            [&*self.terms.names.revoked(), &from.to_string(), "+inf", "BYSCORE", "LIMIT", "0", &most, "WITHSCORES"];
        let words = words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        // Redis answers in order, so the time is not after any kick that the set doesn't hold yet.
        let (time, entries) =
            futures::future::try_join(self.subscriber.run("TIME", Vec::new()), self.subscriber.run("ZRANGE", words))
                .await?;
        let now = millis(time).ok_or(WireError::Unexpected("TIME"))?;
        let entries = array(entries).ok_or(WireError::Unexpected("ZRANGE"))?;
        let mut read = Kicks { now, kicks: Vec::new(), unusable: 0 };
        for kick in entries.into_iter().map(kick) {
            match kick.filter(|kick| kick.at <= now + KICK_AHEAD.as_millis() as u64) {
                Some(kick) => read.kicks.push(kick),
                None => read.unusable += 1,
            }
        }
        Ok(read)
    }

    /// Gives kicks back to a server that has lost them.
    pub async fn restore_kicks(&self, kicks: &[Kick]) -> Result<(), WireError> {
        let key = || Bytes::from(self.terms.names.revoked());
        for batch in kicks.chunks(BATCH) {
            let entries = batch.iter().flat_map(|Kick { who, at }| [at.to_string(), who.to_string()]).map(Bytes::from);
            self.command("ZADD", [key(), "GT".into()].into_iter().chain(entries).collect()).await?;
        }
        let millis = self.terms.token_lifetime.as_millis().to_string();
        self.command("PEXPIRE", vec![key(), millis.into()]).await.map(drop)
    }

    /// Whether the server says that it is a master.
    pub async fn is_master(&self) -> Result<bool, WireError> {
        let info = self.subscriber.run("INFO", vec!["replication".into()]).await?;
        let info = text(&info).ok_or(WireError::Unexpected("INFO"))?;
        Ok(info.lines().any(|line| line.trim_end() == "role:master"))
    }

    /// Runs a command on the connection that carries no subscriptions. Only its time-outs show that it is dead.
    async fn command(&self, command: &'static str, args: Vec<Bytes>) -> Result<Resp3Frame, WireError> {
        let answer = self.commands.run(command, args).await;
        if answer.as_ref().is_err_and(WireError::is_silence) && self.commands.reconnect() {
            warn!(command, "the command connection to Redis is silent, connecting anew");
        }
        answer
    }

    /// Whether the subscriber has a connection, as far as the library knows.
    pub fn is_connected(&self) -> bool {
        self.subscriber.client.is_connected()
    }

    /// Drops the connections and makes new ones.
    pub fn reconnect(&self) {
        self.subscriber.reconnect();
        self.commands.reconnect();
    }
}

impl Line {
    fn new(client: Client) -> Self {
        Self { client, order: Mutex::default() }
    }

    /// Runs a command. As a custom one, since the library never pipelines its own EVALSHA.
    async fn run(&self, command: &'static str, args: Vec<Bytes>) -> Result<Resp3Frame, WireError> {
        let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
        match self.client.with_options(&options()).custom_raw(command, args).await? {
            Resp3Frame::SimpleError { data, .. } => Err(WireError::Refused(data.to_string())),
            Resp3Frame::BlobError { data, .. } => Err(WireError::Refused(String::from_utf8_lossy(&data).into_owned())),
            frame => Ok(frame),
        }
    }

    /// Orders a new connection, unless an order is under way or there is no connection: then the library is connecting. Returns
    /// whether the order was given.
    fn reconnect(&self) -> bool {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        // What is done is never polled again.
        *order = order.take().and_then(|mut order| order.as_mut().now_or_never().is_none().then_some(order));
        if order.is_some() || !self.client.is_connected() {
            return false;
        }
        let client = self.client.clone();
        let mut ordered = async move { drop(client.force_reconnection().await) }.boxed();
        // The first poll hands the order over.
        *order = ordered.as_mut().now_or_never().is_none().then_some(ordered);
        true
    }
}

impl Streams {
    /// Connects again where the library has given up: it holds some errors to be final, a name that did not resolve for one.
    pub fn revive(&mut self, wire: &Wire) {
        if self.revived.is_some_and(|at| at.elapsed() < REVIVE_PAUSE) {
            return;
        }
        for (connecting, line) in self.connecting.iter_mut().zip([&wire.subscriber, &wire.commands]) {
            if connecting.is_finished() {
                *connecting = AbortOnDropHandle::new(line.client.connect());
                self.revived = Some(Instant::now());
            }
        }
    }

    /// The next thing that comes by itself. Cancel-safe.
    pub async fn next(&mut self, wire: &Wire) -> Push {
        tokio::select! {
            // What broke came before what was made anew.
            biased;
            error = self.errors.recv() => broken(error.map_or_else(|_| "unknown".into(), |(error, _)| error.to_string())),
            connected = self.connects.recv() => match connected {
                Err(RecvError::Closed) => std::future::pending().await,
                Ok(_) | Err(RecvError::Lagged(_)) => Push::Connected,
            },
            push = self.pushes.recv() => match push {
                Ok(push) => wire.read(push),
                Err(RecvError::Lagged(count)) => Push::Lagged(count),
                Err(RecvError::Closed) => std::future::pending().await,
            },
        }
    }

    /// What has come already.
    pub fn try_next(&mut self, wire: &Wire) -> Option<Push> {
        use broadcast::error::TryRecvError;
        if let Ok((error, _)) = self.errors.try_recv() {
            return Some(broken(error.to_string()));
        }
        if self.connects.try_recv().is_ok() {
            return Some(Push::Connected);
        }
        match self.pushes.try_recv() {
            Ok(push) => Some(wire.read(push)),
            Err(TryRecvError::Lagged(count)) => Some(Push::Lagged(count)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }
}

fn broken(error: String) -> Push {
    // The library keeps only the text of an error of the system.
    let vacant = error.contains("ConnectionRefused");
    Push::Broken { error, vacant }
}

fn client(config: &Config, push_queue: usize) -> Client {
    let connection = ConnectionConfig {
        connection_timeout: COMMAND_TIMEOUT,
        internal_command_timeout: COMMAND_TIMEOUT,
        // The library would replay what was in flight on the next connection, before anything is subscribed there.
        max_command_attempts: 1,
        max_command_buffer_len: COMMAND_QUEUE,
        reconnect_on_auth_error: true,
        tcp: publisher::internals::tcp::config(2 * COMMAND_TIMEOUT),
        ..ConnectionConfig::default()
    };
    let performance = PerformanceConfig {
        broadcast_channel_capacity: push_queue,
        default_command_timeout: COMMAND_TIMEOUT,
        ..PerformanceConfig::default()
    };
    let longest = rand::random_range(RECONNECT_MAX_MS);
    let mut policy = ReconnectPolicy::new_exponential(0, RECONNECT_MS, longest, 2);
    policy.set_jitter(RECONNECT_JITTER_MS);
    Builder::from_config(config.clone())
        .set_connection_config(connection)
        .set_performance_config(performance)
        .set_policy(policy)
        .build()
        .expect("a builder that has a configuration")
}

/// One attempt, at once or not at all, and not for long.
fn options() -> Options {
    Options { max_attempts: Some(1), timeout: Some(COMMAND_TIMEOUT), fail_fast: true, ..Options::default() }
}

fn text(frame: &Resp3Frame) -> Option<&str> {
    match frame {
        Resp3Frame::BlobString { data, .. } | Resp3Frame::VerbatimString { data, .. } => std::str::from_utf8(data).ok(),
        Resp3Frame::SimpleString { data, .. } => std::str::from_utf8(data).ok(),
        _ => None,
    }
}

fn array(frame: Resp3Frame) -> Option<Vec<Resp3Frame>> {
    match frame {
        Resp3Frame::Array { data, .. } => Some(data),
        _ => None,
    }
}

/// `{epoch, seq, id, messages}`.
fn reading(answer: Resp3Frame) -> Option<Reading> {
    let [epoch, Resp3Frame::Number { data: seq, .. }, id, messages] = <[_; 4]>::try_from(array(answer)?).ok()? else {
        return None;
    };
    let id = text(&id).filter(|id| !id.is_empty()).map(str::parse).transpose().ok()?;
    let head = Position { epoch: text(&epoch)?.parse().ok()?, seq: seq.try_into().ok()?, id };
    let message = |frame| match frame {
        Resp3Frame::BlobString { data, .. } => Message::parse(data).ok(),
        _ => None,
    };
    // An entry that can't be read is a hole, which the room finds by the numbers.
    Some(Reading { head, events: array(messages)?.into_iter().filter_map(message).collect() })
}

/// `[whom, milliseconds]`.
fn kick(entry: Resp3Frame) -> Option<Kick> {
    let [who, Resp3Frame::Double { data: at, .. }] = <[_; 2]>::try_from(array(entry)?).ok()? else { return None };
    let is_moment = at >= 0.0 && at <= u64::MAX as f64;
    Some(Kick { who: Kicked::parse(text(&who)?)?, at: is_moment.then_some(at as u64)? })
}

/// `[seconds, microseconds]`.
fn millis(answer: Resp3Frame) -> Option<u64> {
    let [seconds, micros] = <[_; 2]>::try_from(array(answer)?).ok()?;
    let number = |frame| text(frame)?.parse::<u64>().ok();
    Some(number(&seconds)? * 1000 + number(&micros)? / 1000)
}
