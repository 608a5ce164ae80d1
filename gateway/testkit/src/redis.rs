//! A real redis-server, to be killed, frozen, emptied and started again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ports::free_port;
use crate::process::{Process, Signal, scratch};
use crate::resp::Reply;
use crate::wait::{PATIENCE, eventually};

pub struct RedisServer {
    port: u16,
    directory: PathBuf,
    arguments: Vec<String>,
    process: Process,
    /// On which it talks to the other nodes of a cluster.
    bus: Option<String>,
}

impl RedisServer {
    /// Keeps nothing: killed, it comes back empty.
    pub async fn start() -> Self {
        Self::start_with(&["--appendonly", "no"]).await
    }

    /// With an append-only file: killed, it comes back with what it had written.
    pub async fn start_durable() -> Self {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await
    }

    pub async fn start_with(arguments: &[&str]) -> Self {
        let port = free_port();
        let directory = scratch(&format!("redis-{port}"));
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let process = Self::spawn(port, &directory, &arguments);
        let server = Self { port, directory, arguments, process, bus: None };
        server.ready().await;
        server
    }

    pub fn with_bus(mut self, port: String) -> Self {
        self.bus = Some(port);
        self
    }

    pub fn bus(&self) -> &str {
        self.bus.as_deref().expect("this one is a node of a cluster")
    }

    fn spawn(port: u16, directory: &PathBuf, arguments: &[String]) -> Process {
        Process::spawn(
            Command::new("redis-server")
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
                .args(["--repl-diskless-sync-delay", "0", "--enable-debug-command", "local"])
                .arg("--dir")
                .arg(directory)
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )
    }

    async fn ready(&self) {
        eventually("Redis answers", PATIENCE, async || {
            let Ok(mut client) = RedisClient::connect(self.addr()).await else { return None };
            (client.try_command(&["PING"]).await.ok()? == Reply::Text("PONG".into())).then_some(())
        })
        .await;
    }

    pub fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    pub async fn client(&self) -> RedisClient {
        RedisClient::connect(self.addr()).await.unwrap()
    }

    pub async fn command(&self, words: &[&str]) -> Reply {
        self.client().await.command(words).await
    }

    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    pub fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// On the same port, with whatever the last life left on disk.
    pub async fn restart(&mut self) {
        self.process = Self::spawn(self.port, &self.directory, &self.arguments);
        self.ready().await;
    }

    /// On the same port, and with nothing.
    pub async fn restart_empty(&mut self) {
        match std::fs::remove_dir_all(self.directory.join("appendonlydir")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => self.restart().await,
        }
    }

    /// Copies `master` from now on; returns once the first copy is made.
    pub async fn follow(&self, master: SocketAddr) {
        self.command(&["REPLICAOF", &master.ip().to_string(), &master.port().to_string()]).await;
        eventually("the replica follows", PATIENCE, async || {
            // While it loads the copy it answers with an error.
            let state = self.client().await.try_command(&["INFO", "replication"]).await.ok()?;
            state.texts().first()?.contains("master_link_status:up").then_some(())
        })
        .await;
    }

    /// Becomes a master, with whatever has been copied.
    pub async fn promote(&self) {
        self.command(&["REPLICAOF", "NO", "ONE"]).await;
    }

    /// Channels under `prefix` that belong to tenants and have a subscriber, sorted.
    pub async fn subscribed_channels(&self, prefix: &str) -> Vec<String> {
        let reply = self.command(&["PUBSUB", "CHANNELS", &format!("{prefix}:{{*")]).await;
        let mut channels: Vec<String> = reply.texts().into_iter().map(str::to_owned).collect();
        channels.sort();
        channels
    }

    pub async fn subscribers(&self, channel: &str) -> i64 {
        match self.command(&["PUBSUB", "NUMSUB", channel]).await {
            Reply::Array(pair) => pair[1].integer(),
            other => panic!("NUMSUB answered {other:?}"),
        }
    }

    /// Kills every connection that carries subscriptions.
    pub async fn kill_subscribers(&self) -> i64 {
        self.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await.integer()
    }

    /// Kills every connection except the one that asks.
    pub async fn kill_everyone(&self) {
        let mut client = self.client().await;
        client.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        client.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    }
}

/// A connection of the test's own.
pub struct RedisClient {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl RedisClient {
    pub async fn connect(addr: SocketAddr) -> std::io::Result<Self> {
        Ok(Self { stream: TcpStream::connect(addr).await?, buffer: Vec::new() })
    }

    pub async fn command(&mut self, words: &[&str]) -> Reply {
        let reply = self.try_command(words).await.unwrap();
        assert!(!matches!(reply, Reply::Error(_)), "{words:?} answered {reply:?}");
        reply
    }

    pub async fn try_command(&mut self, words: &[&str]) -> std::io::Result<Reply> {
        self.stream.write_all(&Reply::command(words)).await?;
        tokio::time::timeout(PATIENCE, self.next()).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    /// The next frame the server sends, for MONITOR and subscriptions.
    pub async fn next(&mut self) -> std::io::Result<Reply> {
        loop {
            if let Some((reply, length)) = Reply::parse(&self.buffer) {
                self.buffer.drain(..length);
                return Ok(reply);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// What has been sent and not read yet, up to a silence of `quiet`.
    pub async fn drain(&mut self, quiet: Duration) -> Vec<Reply> {
        let mut seen = Vec::new();
        while let Ok(Ok(reply)) = tokio::time::timeout(quiet, self.next()).await {
            seen.push(reply);
        }
        seen
    }
}
