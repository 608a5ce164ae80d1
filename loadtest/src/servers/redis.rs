//! A Redis server on a free port, without persistence.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::machine::child::{self, Kept};
use crate::wire::resp::RedisConnection;

/// Killed when dropped.
pub struct RedisServer {
    url: String,
    _process: Kept,
}

impl RedisServer {
    pub fn start() -> anyhow::Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let process = child::command(None, "redis-server".as_ref())?
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .stdout(Stdio::null())
            .spawn()
            .context("starting redis-server")?;
        let mut server = Self { url: format!("redis://127.0.0.1:{port}"), _process: Kept(process) };
        server.wait_until_up()?;
        Ok(server)
    }

    fn wait_until_up(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match RedisConnection::open(&self.url).and_then(|mut redis| redis.command(&["PING"])) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => bail!(error.context("redis-server does not answer")),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }
}
