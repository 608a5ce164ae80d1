//! The way to Redis: a few connections that fail fast, notice silence and heal. The only file that names the client library.

use std::{
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
        Builder, ClusterHash, CustomCommand, Resp3Frame, RespVersion,
        config::{Config, ConnectionConfig, Options, ReconnectPolicy, TcpConfig},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::{error::ConnectError, script::Script};

/// A connection is asked for a sign of life this often, so that a black hole is found before billing falls into it.
const PULSE: Duration = Duration::from_millis(500);
/// The sign of life must come within this time.
const PULSE_LIMIT: Duration = Duration::from_millis(400);
/// Dialling, TLS and Redis' greeting must each be done in this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Between two attempts to reconnect, with up to [`RECONNECT_JITTER_MS`] more, for ever.
const RECONNECT_DELAY_MS: u32 = 100;
const RECONNECT_JITTER_MS: u32 = 150;
/// The kernel gives a connection up when what it sent isn't taken for so long. A write into a full buffer ends with it.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(2);
/// A cause that stays (a wrong password) is logged this often.
const LOG_AGAIN: Duration = Duration::from_secs(60);

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
    /// Redis answered with an error: it did not run to its end.
    Refused(String),
}

/// The connections of one publisher.
pub(crate) struct Redis {
    connections: Vec<Arc<Connection>>,
    next: AtomicUsize,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Redis {
    /// Starts to connect, and goes on trying in the background. `queue` bounds what waits for one connection.
    pub(crate) async fn open(url: &str, connections: usize, queue: usize) -> Result<Self, ConnectError> {
        let config = config(url)?;
        let (mut opened, mut tasks) = (Vec::new(), Vec::new());
        for number in 0..connections {
            let connection = Arc::new(Connection::new(number, client(&config, queue)?));
            tasks.push(AbortOnDropHandle::new(tokio::spawn(connection.clone().watch())));
            tasks.push(AbortOnDropHandle::new(tokio::spawn(connection.clone().keep_alive())));
            opened.push(connection);
        }
        Ok(Self { connections: opened, next: AtomicUsize::new(0), _tasks: tasks })
    }

    /// Returns when every connection is up, or after `limit`.
    pub(crate) async fn ready(&self, limit: Duration) {
        let all_up = async {
            for connection in &self.connections {
                // The sender lives as long as `self`, so this cannot fail.
                let _ = connection.up.subscribe().wait_for(|up| *up).await;
            }
        };
        let _ = timeout(limit, all_up).await;
    }

    /// The next connection in turn that is worth trying, if there is one.
    pub(crate) fn pick(&self) -> Option<&Connection> {
        let first = self.next.fetch_add(1, Relaxed);
        let turn = (0..self.connections.len()).map(|n| &self.connections[(first + n) % self.connections.len()]);
        turn.map(Arc::as_ref).find(|connection| connection.is_usable())
    }

    /// Says goodbye on every connection.
    pub(crate) async fn close(&self) {
        for connection in &self.connections {
            connection.closing.store(true, Relaxed);
            connection.up.send_replace(false);
            let _ = timeout(PULSE_LIMIT, connection.client.quit()).await;
        }
    }
}

/// One connection, with what we know of its health.
pub(crate) struct Connection {
    number: usize,
    client: Client,
    /// The library's own state stays "connected" through the delay before it reconnects, so we keep ours.
    up: watch::Sender<bool>,
    /// An attempt timed out in silence; nothing is sent until Redis has answered again.
    suspect: AtomicBool,
    /// Replies so far, which tell a slow connection from a dead one.
    replies: AtomicU64,
    closing: AtomicBool,
}

impl Connection {
    fn new(number: usize, client: Client) -> Self {
        Self {
            number,
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
        // The first key, behind the digest and the number of keys, says which node of a cluster is meant.
        let command = CustomCommand::new_static(command, ClusterHash::Offset(2), false);
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

    /// Keeps `up` true to what the library reports, and logs each change once.
    async fn watch(self: Arc<Self>) {
        let (mut errors, mut connects) = (self.client.error_rx(), self.client.reconnect_rx());
        let mut logged: Option<Instant> = None;
        loop {
            // Errors first: an error and the reconnection after it may both be waiting.
            tokio::select! {
                biased;
                error = errors.recv() => {
                    let was_up = self.up.send_replace(false);
                    if was_up || logged.is_none_or(|at| at.elapsed() > LOG_AGAIN) {
                        let error = error.map_or_else(|_| "unknown".to_owned(), |(error, _)| error.to_string());
                        warn!(connection = self.number, error, "no connection to Redis");
                        logged = Some(Instant::now());
                    }
                }
                _ = connects.recv() => self.is_alive(),
            }
            if self.closing.load(Relaxed) {
                return;
            }
        }
    }

    fn is_alive(&self) {
        self.suspect.store(false, Relaxed);
        if !self.up.send_replace(true) {
            info!(connection = self.number, "connected to Redis");
        }
    }

    /// Connects, and from then on makes sure that the connection answers, or is replaced.
    async fn keep_alive(self: Arc<Self>) {
        let mut connecting = AbortOnDropHandle::new(self.client.connect());
        let mut pulse = interval(PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let options =
            Options { max_attempts: Some(1), timeout: Some(PULSE_LIMIT), fail_fast: true, ..Options::default() };
        let client = self.client.with_options(&options);
        loop {
            pulse.tick().await;
            if self.closing.load(Relaxed) {
                return;
            }
            if connecting.is_finished() {
                // The library gives up on errors that it holds to be final; a name that did not resolve is one.
                connecting = AbortOnDropHandle::new(self.client.connect());
                continue;
            }
            match client.ping::<String>(None).await {
                Ok(_) => self.is_alive(),
                Err(error) if matches!(error.kind(), ErrorKind::Timeout) => {
                    self.suspect.store(true, Relaxed);
                    // Returns when there is a new connection, however long that takes.
                    let _ = self.client.force_reconnection().await;
                }
                // The library knows that the connection is gone and is at work on it.
                Err(_) => {}
            }
        }
    }
}

fn config(url: &str) -> Result<Config, ConnectError> {
    // Sentinel and Cluster URLs would parse as well, but nothing proves yet that publishing through them works.
    if !["redis://", "rediss://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(unusable_url());
    }
    // The library takes the process' default provider and panics where there is none. Already set is fine.
    let _ = fred::rustls::crypto::aws_lc_rs::default_provider().install_default();
    // The library's own message may repeat the URL, and with it the password.
    let mut config = Config::from_url(url).map_err(|_| unusable_url())?;
    config.version = RespVersion::RESP3;
    // Redis being down is no reason not to start.
    config.fail_fast = false;
    Ok(config)
}

fn unusable_url() -> ConnectError {
    ConnectError::Url("must be redis://[[user]:password@]host[:port][/database] or rediss:// for TLS".to_owned())
}

fn client(config: &Config, queue: usize) -> Result<Client, ConnectError> {
    let connection = ConnectionConfig {
        connection_timeout: CONNECT_LIMIT,
        internal_command_timeout: CONNECT_LIMIT,
        max_command_attempts: 1,
        max_command_buffer_len: queue,
        reconnect_on_auth_error: true,
        // None: a refusal is the caller's to know, and should not cost everybody else the connection.
        reconnect_errors: Vec::new(),
        tcp: TcpConfig { nodelay: Some(true), user_timeout: Some(TCP_USER_TIMEOUT), ..TcpConfig::default() },
        ..ConnectionConfig::default()
    };
    let mut policy = ReconnectPolicy::new_constant(0, RECONNECT_DELAY_MS);
    policy.set_jitter(RECONNECT_JITTER_MS);
    let mut builder = Builder::from_config(config.clone());
    builder.set_connection_config(connection).set_policy(policy);
    builder.build().map_err(|_| unusable_url())
}
