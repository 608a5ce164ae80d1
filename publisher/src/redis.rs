//! The way to Redis: to each server a few connections that fail fast, notice silence and heal.
//!
//! With [`topology`](crate::topology), which says where they lead, the only file that names the client library.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::{ClientLike, EventInterface},
    types::{
        Builder, ClusterHash, CustomCommand, Resp3Frame,
        config::{Config, ConnectionConfig, Options},
    },
};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::{
    backoff::Backoff,
    error::ConnectError,
    log_throttle::LogThrottle,
    script::Script,
    task::keep_running,
    topology::{Layout, RedisUrl, Server, Servers, cause, is_elsewhere},
};

/// A connection is asked for a sign of life this often, so that a black hole is found before billing falls into it.
const PULSE: Duration = Duration::from_millis(500);
/// The sign of life must come within this time.
const PULSE_LIMIT: Duration = Duration::from_millis(400);
/// Dialling, TLS and Redis' greeting must each be done in this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// The longest delay between two attempts to connect to a server.
const RECONNECT_DELAY: Duration = Duration::from_millis(250);
/// The kernel gives a connection up when what it sent isn't acknowledged for so long.
const TCP_SILENCE: Duration = Duration::from_secs(2);

/// One run of a script. Cheap to send again: its parts are shared.
pub(crate) struct Call {
    pub script: &'static Script,
    pub keys: Vec<Bytes>,
    pub args: Vec<Bytes>,
}

/// Why a run has no result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It was not sent.
    NotSent,
    /// It was perhaps sent, and perhaps ran.
    Lost,
    /// It did not run, for the tenant is on another server, or on its way there.
    Elsewhere,
    /// Redis answered with an error: it did not run to its end.
    Refused(String),
}

/// The connections of one publisher.
pub(crate) struct Redis {
    reach: watch::Sender<Arc<Reach>>,
    servers: Servers,
    /// When the layout last changed.
    moved: watch::Receiver<Option<Instant>>,
    next: AtomicUsize,
    _following: AbortOnDropHandle<()>,
}

/// What can be reached: the connections to every server of a layout.
struct Reach {
    layout: Arc<Layout>,
    nodes: HashMap<Server, Arc<Node>>,
}

/// The connections to one server; they end with it.
struct Node {
    connections: Vec<Arc<Connection>>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// The library's task that owns a connection, aborted when it is dropped.
type Router = AbortOnDropHandle<Result<(), Error>>;

/// How connections are made.
#[derive(Clone, Copy)]
struct Width {
    connections: usize,
    /// Bounds what waits for one connection.
    queue: usize,
}

impl Redis {
    /// Starts to connect, and goes on trying in the background. `queue` bounds what waits for one connection.
    pub(crate) async fn open(url: &str, connections: usize, queue: usize) -> Result<Self, ConnectError> {
        let servers = Servers::follow(RedisUrl::parse(url)?);
        let width = Width { connections, queue };
        let nothing = HashMap::new();
        let reach = watch::Sender::new(Arc::new(Reach::new(servers.layout(), &nothing, servers.url(), width)));
        let (moves, moved) = watch::channel(None);
        let (followed, reached) = (servers.clone(), reach.clone());
        let following =
            keep_running("Redis connections", move || follow(followed.clone(), reached.clone(), width, moves.clone()));
        Ok(Self { reach, servers, moved, next: AtomicUsize::new(0), _following: following })
    }

    /// Returns when every connection is up, or after `limit`.
    pub(crate) async fn ready(&self, limit: Duration) {
        let all_up = async {
            // The senders live as long as `self`, so that neither wait can fail.
            let reach =
                self.reach.subscribe().wait_for(|reach| !reach.nodes.is_empty()).await.map(|reach| reach.clone());
            for connection in reach.iter().flat_map(|reach| reach.nodes.values()).flat_map(|node| &node.connections) {
                let _ = connection.up.subscribe().wait_for(|up| *up).await;
            }
        };
        let _ = timeout(limit, all_up).await;
    }

    /// The next connection in turn that leads to where `name` is and is worth trying, if there is one.
    pub(crate) fn pick(&self, name: &[u8]) -> Option<Arc<Connection>> {
        let reach = self.reach.borrow();
        let Node { connections, .. } = &**reach.nodes.get(reach.layout.server_of(name)?)?;
        let first = self.next.fetch_add(1, Relaxed);
        let mut turn = (0..connections.len()).map(|n| &connections[(first + n) % connections.len()]);
        turn.find(|connection| connection.is_usable()).cloned()
    }

    /// When the names were last found on another server than before.
    pub(crate) fn moved(&self) -> Option<Instant> {
        *self.moved.borrow()
    }

    /// Says that a server refused as the wrong one does.
    pub(crate) fn doubt(&self) {
        self.servers.doubt();
    }

    /// Says goodbye on every connection.
    pub(crate) async fn close(&self) {
        let reach = self.reach.borrow().clone();
        for connection in reach.nodes.values().flat_map(|node| &node.connections) {
            connection.closing.store(true, Relaxed);
            connection.up.send_replace(false);
            let _ = timeout(PULSE_LIMIT, connection.client.quit()).await;
        }
    }
}

impl Reach {
    /// Keeps the connections to servers that are in the layout still.
    fn new(layout: Arc<Layout>, known: &HashMap<Server, Arc<Node>>, url: &RedisUrl, width: Width) -> Self {
        let node =
            |server: &Server| known.get(server).cloned().unwrap_or_else(|| Arc::new(Node::open(server, url, width)));
        let nodes = layout.servers().iter().map(|server| (server.clone(), node(server))).collect();
        Self { layout, nodes }
    }
}

/// Connects to the servers that hold something now, and leaves the others.
async fn follow(
    mut servers: Servers,
    reach: watch::Sender<Arc<Reach>>,
    width: Width,
    moves: watch::Sender<Option<Instant>>,
) {
    loop {
        let layout = servers.changed().await;
        let known = reach.borrow().clone();
        reach.send_replace(Arc::new(Reach::new(layout, &known.nodes, servers.url(), width)));
        // After it: from here on, everything is published where it belongs.
        if !known.nodes.is_empty() {
            moves.send_replace(Some(Instant::now()));
        }
    }
}

impl Node {
    fn open(server: &Server, url: &RedisUrl, width: Width) -> Self {
        let config = url.config_of(server);
        let (mut connections, mut tasks) = (Vec::new(), Vec::new());
        // One connection dials at a time: a server that is dead is not dialled by all of them.
        let dialling = Arc::new(Mutex::new(Backoff::up_to(RECONNECT_DELAY)));
        for number in 0..width.connections {
            let connection = Arc::new(Connection::new(number, server.clone(), client(&config, width.queue)));
            let (kept, dialling) = (connection.clone(), dialling.clone());
            tasks.push(keep_running("Redis connection", move || kept.clone().keep_alive(dialling.clone())));
            connections.push(connection);
        }
        Self { connections, _tasks: tasks }
    }
}

/// One connection, with what we know of its health.
pub(crate) struct Connection {
    number: usize,
    server: Server,
    client: Client,
    /// Whether the connection has answered, and was not lost since. The library's own state says "connected" before and after.
    up: watch::Sender<bool>,
    /// An attempt timed out in silence; nothing is sent until Redis has answered again.
    suspect: AtomicBool,
    /// Replies so far, which tell a slow connection from a dead one.
    replies: AtomicU64,
    closing: AtomicBool,
}

impl Connection {
    fn new(number: usize, server: Server, client: Client) -> Self {
        Self {
            number,
            server,
            client,
            up: watch::Sender::new(false),
            suspect: AtomicBool::new(false),
            replies: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        }
    }

    fn is_usable(&self) -> bool {
        !self.suspect.load(Relaxed) && *self.up.borrow()
    }

    /// Runs a script within `limit`: by its digest, and once by its text where the server has forgotten it.
    pub(crate) async fn run(&self, call: &Call, limit: Duration) -> Result<Vec<i64>, Failure> {
        let deadline = Instant::now() + limit;
        match self.eval("EVALSHA", call.script.digest(), call, limit).await {
            Err(Failure::Refused(why)) if why.starts_with("NOSCRIPT") => {
                let rest = deadline.saturating_duration_since(Instant::now());
                self.eval("EVAL", call.script.source(), call, rest).await
            }
            result => result,
        }
    }

    async fn eval(
        &self,
        command: &'static str,
        script: &'static str,
        call: &Call,
        limit: Duration,
    ) -> Result<Vec<i64>, Failure> {
        if limit.is_zero() {
            // To the library a zero means "no limit".
            return Err(Failure::NotSent);
        }
        let mut args = Vec::with_capacity(2 + call.keys.len() + call.args.len());
        args.push(Bytes::from_static(script.as_bytes()));
        args.push(call.keys.len().to_string().into());
        args.extend(call.keys.iter().chain(&call.args).cloned());

        // Sent as a custom command, for the library never pipelines its own EVALSHA: each would wait for the one before it.
        let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
        // One attempt: the library would send a command whose reply was lost again by itself, whatever time it is.
        let options = Options { max_attempts: Some(1), timeout: Some(limit), fail_fast: true, ..Options::default() };
        let replies = self.replies.load(Relaxed);
        match self.client.with_options(&options).custom_raw(command, args).await {
            Ok(frame) => {
                self.replies.fetch_add(1, Relaxed);
                self.reply(frame)
            }
            Err(error) => Err(self.failure(&error, replies)),
        }
    }

    fn reply(&self, frame: Resp3Frame) -> Result<Vec<i64>, Failure> {
        let integer = |frame: &Resp3Frame| match frame {
            Resp3Frame::Number { data, .. } => Some(*data),
            _ => None,
        };
        let integers: Option<Vec<i64>> = match &frame {
            Resp3Frame::SimpleError { data, .. } => {
                if data.starts_with("READONLY") {
                    // A master that was demoted; where the name leads now is found by dialling again.
                    self.suspect.store(true, Relaxed);
                }
                if is_elsewhere(data) {
                    return Err(Failure::Elsewhere);
                }
                return Err(Failure::Refused(data.to_string()));
            }
            Resp3Frame::BlobError { data, .. } => {
                return Err(Failure::Refused(String::from_utf8_lossy(data).into_owned()));
            }
            Resp3Frame::Array { data, .. } => data.iter().map(integer).collect(),
            _ => None,
        };
        integers.ok_or_else(|| Failure::Refused("the script's answer is not ours".to_owned()))
    }

    fn failure(&self, error: &Error, replies_before: u64) -> Failure {
        match error.kind() {
            ErrorKind::Timeout => {
                // Slow is not dead: with other replies coming in, the connection keeps its work.
                if self.replies.load(Relaxed) == replies_before {
                    self.suspect.store(true, Relaxed);
                }
                Failure::Lost
            }
            ErrorKind::Backpressure => {
                self.suspect.store(true, Relaxed);
                Failure::NotSent
            }
            _ if self.closing.load(Relaxed) => Failure::NotSent,
            _ => {
                self.up.send_replace(false);
                Failure::Lost
            }
        }
    }

    fn is_alive(&self) {
        self.suspect.store(false, Relaxed);
        if !self.up.send_replace(true) {
            info!(server = %self.server, connection = self.number, "connected to Redis");
        }
    }

    /// Keeps a connection open for as long as the node is held. The library is not left to reconnect: it queues each order
    /// to, and carries all of them out after an outage, killing a healthy connection each time.
    async fn keep_alive(self: Arc<Self>, dialling: Arc<Mutex<Backoff>>) {
        let mut throttle = LogThrottle::default();
        loop {
            let mut backoff = dialling.lock().await;
            let error = match self.dial().await {
                Ok(router) => {
                    drop(backoff);
                    let begun = Instant::now();
                    let error = self.watch(router).await;
                    self.up.send_replace(false);
                    backoff = dialling.lock().await;
                    backoff.reset_after(begun.elapsed());
                    error
                }
                Err(error) => error,
            };
            if self.closing.load(Relaxed) {
                return;
            }
            if throttle.is_due(&error.to_string()) {
                warn!(server = %self.server, connection = self.number, %error, "no connection to Redis");
            }
            sleep(backoff.delay()).await;
        }
    }

    /// Connects; the connection ends with the library's task, which is returned.
    async fn dial(&self) -> Result<Router, Error> {
        let mut connected = self.client.reconnect_rx();
        let mut router = AbortOnDropHandle::new(self.client.connect());
        tokio::select! {
            Ok(_) = connected.recv() => Ok(router),
            ended = &mut router => Err(cause(ended)),
        }
    }

    /// Makes sure again and again that the connection answers. Returns when it is lost, or silent.
    async fn watch(&self, mut router: Router) -> Error {
        let mut pulse = interval(PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let options = Options { max_attempts: Some(1), timeout: Some(PULSE_LIMIT), ..Options::default() };
        let client = self.client.with_options(&options);
        let ping = CustomCommand::new_static("PING", ClusterHash::FirstKey, false);
        loop {
            tokio::select! {
                ended = &mut router => return cause(ended),
                // Any answer will do, a refusal too.
                _ = pulse.tick() => match client.custom_raw(ping.clone(), Vec::<Bytes>::new()).await {
                    Ok(_) => self.is_alive(),
                    Err(error) => {
                        self.suspect.store(true, Relaxed);
                        return error;
                    }
                }
            }
        }
    }
}

fn client(config: &Config, queue: usize) -> Client {
    let connection = ConnectionConfig {
        connection_timeout: CONNECT_LIMIT,
        internal_command_timeout: CONNECT_LIMIT,
        max_command_attempts: 1,
        max_command_buffer_len: queue,
        reconnect_on_auth_error: true,
        // None: a refusal is the caller's to know, and should not cost all other callers the connection.
        reconnect_errors: Vec::new(),
        tcp: crate::tcp::config(TCP_SILENCE),
        ..ConnectionConfig::default()
    };
    let mut builder = Builder::from_config(config.clone());
    builder.set_connection_config(connection);
    builder.build().expect("a builder that has a configuration")
}
