//! The servers that `floor` and `knee` compare, each a child process on one core.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use anyhow::Context;
use serde::Serialize;

use crate::client::GatewayUrl;
use crate::machine::child::{self, Kept};

/// The kinds of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The bare server, with one write for each event and socket.
    Bare,
    /// The bare server, with one write for all events that wait for a socket.
    Joining,
    Gateway,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bare => "bare",
            Self::Joining => "joining",
            Self::Gateway => "gateway",
        })
    }
}

/// A server that accepts sockets; killed when dropped.
pub struct Server {
    pub url: GatewayUrl,
    process: Kept,
}

impl Server {
    /// Starts the bare server for this number of tenants.
    pub fn bare(core: usize, redis_url: &str, prefix: &str, tenants: u32, join: bool) -> anyhow::Result<Self> {
        let this = std::env::current_exe().context("finding this program")?;
        let mut command = child::command(Some(core), this.as_os_str())?;
        command.args([
            "bare-server",
            "--redis-url",
            redis_url,
            "--redis-prefix",
            prefix,
            "--tenants",
            &tenants.to_string(),
        ]);
        command.args(join.then_some("--join"));
        Self::start(command, |line| line.parse().ok())
    }

    /// Starts a gateway with the settings of the load, and defaults for the rest.
    pub fn gateway(
        core: usize,
        binary: &Path,
        redis_url: &str,
        prefix: &str,
        secret: &str,
        sockets: usize,
        limit: u32,
    ) -> anyhow::Result<Self> {
        let mut command = child::command(Some(core), binary.as_os_str())?;
        command
            .env_clear()
            .env("LISTEN", "127.0.0.1:0")
            .env("INTERNAL_LISTEN", "127.0.0.1:0")
            .env("REDIS_URL", redis_url)
            .env("REDIS_PREFIX", prefix)
            .env("JWT_SECRET", secret)
            .env("MAX_CONNECTIONS", sockets.to_string())
            .env("MAX_CONNECTIONS_PER_TENANT", sockets.to_string())
            .env("EVENTS_PER_SECOND", limit.to_string())
            .env("LOG_FORMAT", "json");
        Self::start(command, |line| {
            let entry: serde_json::Value = serde_json::from_str(line).ok()?;
            (entry["message"] == "listening").then(|| entry["public"].as_str()?.parse().ok())?
        })
    }

    /// Starts the process and waits for the line of its output that has its address.
    fn start(mut command: std::process::Command, address: impl Fn(&str) -> Option<SocketAddr>) -> anyhow::Result<Self> {
        let mut process = Kept(command.stdout(Stdio::piped()).spawn().context("starting a server")?);
        let output = process.0.stdout.take().expect("its output is piped");
        let mut lines = BufReader::new(output).lines();
        let url = lines.by_ref().map_while(Result::ok).find_map(|line| address(&line)).map(GatewayUrl::at);
        let url = url.context("the server ended before it listened")?;
        // The rest of its output must be read: the process would block once the pipe is full.
        thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(Self { url, process })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}
