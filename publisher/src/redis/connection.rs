//! One connection for commands and scripts, with what is known of its health.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::{ClientLike, EventInterface},
    types::{
        Builder, ClusterHash, CustomCommand,
        config::{Config, ConnectionConfig, Options, Server as FredServer, ServerConfig},
    },
};
use tokio::{
    sync::{Mutex, watch},
    task::JoinError,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::{
    backoff::Backoff,
    log_throttle::LogThrottle,
    resp::{
        Target,
        frame::{Frame, array, number, refusal},
    },
    script::Script,
    tcp,
};

/// A connection is asked for a sign of life this often, so that a black hole is found before billing falls into it.
const PULSE: Duration = Duration::from_millis(500);
/// A publisher's connection gives its sign of life within this time.
pub(super) const PULSE_LIMIT: Duration = Duration::from_millis(400);
/// Dialling, TLS and Redis' greeting must each be done in this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// The kernel gives a connection up when what it sent isn't acknowledged for so long.
const TCP_SILENCE: Duration = Duration::from_secs(2);

/// One run of a script. Cheap to send again: its parts are shared.
pub(crate) struct Call {
    pub script: &'static Script,
    pub keys: Vec<Bytes>,
    pub args: Vec<Bytes>,
}

/// Why a command has no result.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It was not sent.
    #[error("no connection to Redis")]
    NotSent,
    /// It was perhaps sent, and perhaps ran: the connection ended.
    #[error("connection to Redis lost")]
    Lost,
    /// It was perhaps sent, and perhaps ran: no answer came in time.
    #[error("no answer from Redis in time")]
    Silent,
    /// Redis answered with an error: it did not run to its end.
    #[error("Redis refused: {0}")]
    Refused(String),
}

/// The library's task that owns a connection, aborted when it is dropped.
type Router = AbortOnDropHandle<Result<(), Error>>;

/// How a connection is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// Bounds what waits for it.
    pub queue: usize,
    /// Within this time it must give a sign of life.
    pub pulse_limit: Duration,
}

/// One connection. It is kept open by [`keep_alive`](Self::keep_alive).
pub(crate) struct Connection {
    name: String,
    target: Target,
    client: Client,
    pulse_limit: Duration,
    /// Whether the connection has answered, and was not lost since.
    up: watch::Sender<bool>,
    /// An attempt timed out in silence; nothing is sent until Redis has answered again.
    suspect: AtomicBool,
    /// Replies so far, which tell a slow connection from a dead one.
    replies: AtomicU64,
    closing: AtomicBool,
}

impl Connection {
    /// A connection that nothing dials yet; `name` is for the log.
    pub(super) fn new(name: String, target: Target, settings: Settings) -> Self {
        Self {
            name,
            client: client(&target, settings.queue),
            target,
            pulse_limit: settings.pulse_limit,
            up: watch::Sender::new(false),
            suspect: AtomicBool::new(false),
            replies: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        }
    }

    /// Whether it is worth trying.
    pub(super) fn is_usable(&self) -> bool {
        !self.suspect.load(Relaxed) && *self.up.borrow()
    }

    pub(super) async fn becomes_up(&self) {
        let _ = self.up.subscribe().wait_for(|up| *up).await;
    }

    /// Says goodbye.
    pub(super) async fn close(&self) {
        self.closing.store(true, Relaxed);
        self.up.send_replace(false);
        let _ = timeout(PULSE_LIMIT, self.client.quit()).await;
    }

    /// Runs a script whose answer is numbers.
    pub(crate) async fn run(&self, call: &Call, limit: Duration) -> Result<Vec<i64>, Failure> {
        let answer = self.script(["EVALSHA", "EVAL"], call, limit).await?;
        let integers: Option<Vec<i64>> = array(&answer).and_then(|parts| parts.iter().map(number).collect());
        integers.ok_or_else(|| Failure::Refused("the script's answer is not ours".to_owned()))
    }

    /// Runs a script within `limit`: by its digest, and once by its text where the server has forgotten it.
    pub(super) async fn script(
        &self,
        [by_digest, by_source]: [&'static str; 2],
        call: &Call,
        limit: Duration,
    ) -> Result<Frame, Failure> {
        let deadline = Instant::now() + limit;
        match self.command(by_digest, call.words(call.script.digest()), limit).await {
            Err(Failure::Refused(why)) if why.starts_with("NOSCRIPT") => {
                let rest = deadline.saturating_duration_since(Instant::now());
                self.command(by_source, call.words(call.script.source()), rest).await
            }
            result => result,
        }
    }

    /// Runs a command within `limit`.
    pub(super) async fn command(
        &self,
        command: &'static str,
        words: Vec<Bytes>,
        limit: Duration,
    ) -> Result<Frame, Failure> {
        if limit.is_zero() {
            return Err(Failure::NotSent);
        }
        let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
        let options = Options { max_attempts: Some(1), timeout: Some(limit), fail_fast: true, ..Options::default() };
        let replies = self.replies.load(Relaxed);
        let answer = self.client.with_options(&options).custom_raw(command, words).await;
        let answer = answer.map_err(|error| self.failure(&error, replies))?;
        self.replies.fetch_add(1, Relaxed);
        let Some(why) = refusal(&answer) else { return Ok(answer) };
        if why.starts_with("READONLY") {
            // A master that was demoted; where the name leads now is found by dialling again.
            self.suspect.store(true, Relaxed);
        }
        Err(Failure::Refused(why))
    }

    fn failure(&self, error: &Error, replies_before: u64) -> Failure {
        match error.kind() {
            ErrorKind::Timeout => {
                // Slow is not dead: with other replies coming in, the connection keeps its work.
                if self.replies.load(Relaxed) == replies_before {
                    self.suspect.store(true, Relaxed);
                }
                Failure::Silent
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
            info!(server = %self.target.server, connection = self.name, "connected to Redis");
        }
    }

    /// Keeps the connection open for as long as this runs.
    pub(super) async fn keep_alive(self: Arc<Self>, dialling: Arc<Mutex<Backoff>>) {
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
                warn!(server = %self.target.server, connection = self.name, %error, "no connection to Redis");
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
        let options = Options { max_attempts: Some(1), timeout: Some(self.pulse_limit), ..Options::default() };
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

impl Call {
    /// The words behind EVAL or EVALSHA.
    fn words(&self, script: &'static str) -> Vec<Bytes> {
        let mut words = Vec::with_capacity(2 + self.keys.len() + self.args.len());
        words.push(Bytes::from_static(script.as_bytes()));
        words.push(self.keys.len().to_string().into());
        words.extend(self.keys.iter().chain(&self.args).cloned());
        words
    }
}

/// Why the library's task ended.
fn cause(ended: Result<Result<(), Error>, JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) | Err(_) => Error::new(ErrorKind::IO, "Connection closed."),
    }
}

fn client(target: &Target, queue: usize) -> Client {
    let connection = ConnectionConfig {
        connection_timeout: CONNECT_LIMIT,
        internal_command_timeout: CONNECT_LIMIT,
        max_command_attempts: 1,
        max_command_buffer_len: queue,
        reconnect_on_auth_error: true,
        // None: a refusal is the caller's to know, and should not cost all other callers the connection.
        reconnect_errors: Vec::new(),
        tcp: tcp::config(TCP_SILENCE),
        ..ConnectionConfig::default()
    };
    let server = FredServer::new(&*target.server.host, target.server.port);
    let config = Config { server: ServerConfig::Centralized { server }, ..target.config.clone() };
    let mut builder = Builder::from_config(config);
    builder.set_connection_config(connection);
    builder.build().expect("a builder that has a configuration")
}
