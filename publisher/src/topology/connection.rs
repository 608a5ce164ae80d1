//! One connection to one server, which is given up at the first trouble and ends when it is dropped.

use std::time::Duration;

use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::{ClientLike, EventInterface, PubsubInterface},
    types::{
        Builder, ClusterHash, CustomCommand, Message, Resp3Frame,
        config::{Config, ConnectionConfig, PerformanceConfig},
    },
};
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;

/// Dialling, greeting and answering must each be done in this time.
const LIMIT: Duration = Duration::from_secs(1);

pub(super) struct Connection {
    client: Client,
    /// The library's task that owns the socket. A dropped client does not end it, so it is aborted with this.
    router: AbortOnDropHandle<Result<(), Error>>,
    pushes: broadcast::Receiver<Message>,
}

impl Connection {
    pub(super) async fn open(config: Config) -> Result<Self, Error> {
        let connection = ConnectionConfig {
            connection_timeout: LIMIT,
            internal_command_timeout: LIMIT,
            max_command_attempts: 1,
            ..ConnectionConfig::default()
        };
        let performance = PerformanceConfig { default_command_timeout: LIMIT, ..PerformanceConfig::default() };
        let mut builder = Builder::from_config(config);
        // Without a policy the library dials once, and its task ends with the connection.
        builder.set_connection_config(connection).set_performance_config(performance);
        let client = builder.build()?;
        let (mut connected, pushes) = (client.reconnect_rx(), client.message_rx());
        // Not `init`: cancelled, it leaves the task behind.
        let mut router = AbortOnDropHandle::new(client.connect());
        tokio::select! {
            Ok(_) = connected.recv() => Ok(Self { client, router, pushes }),
            ended = &mut router => Err(cause(ended)),
        }
    }

    /// Runs a command; a refusal is an error.
    pub(super) async fn run(&self, command: &'static str, words: &[&str]) -> Result<Resp3Frame, Error> {
        let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
        let words: Vec<_> = words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        match self.client.custom_raw(command, words).await? {
            Resp3Frame::SimpleError { data, .. } => Err(Error::new(ErrorKind::Unknown, data.to_string())),
            frame => Ok(frame),
        }
    }

    /// Subscribes to channels. After an error the connection is of no use: the library gives the refusal of SUBSCRIBE to
    /// the next command, so that all answers from then on belong to the command before.
    pub(super) async fn subscribe(&self, channels: Vec<String>) -> Result<(), Error> {
        self.client.subscribe(channels).await?;
        self.client.ping::<()>(None).await
    }

    pub(super) async fn ping(&self) -> Result<(), Error> {
        self.client.ping(None).await
    }

    /// Waits for a message on a channel, or for the end of the connection. Cancel-safe.
    pub(super) async fn pushed(&mut self) -> Result<(), Error> {
        tokio::select! {
            // Closed or overrun, it is still worth a look.
            _ = self.pushes.recv() => Ok(()),
            ended = &mut self.router => Err(cause(ended)),
        }
    }
}

/// Why the library's task ended.
pub(crate) fn cause(ended: Result<Result<(), Error>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) | Err(_) => Error::new(ErrorKind::IO, "Connection closed."),
    }
}
