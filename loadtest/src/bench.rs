//! A server on a core of its own with a Redis of its own: what figures of different servers can be compared on.

use std::path::Path;

use anyhow::ensure;

use crate::client::Resume;
use crate::fleet::Fleet;
use crate::load::{Load, SETTLE};
use crate::process;
use crate::publishing::{Target, Via};
use crate::redis_server::RedisServer;
use crate::server::{Kind, Server};
use crate::token::Mint;

/// Gone when dropped.
pub struct Bench {
    redis: RedisServer,
    server: Server,
    sockets: usize,
    tenants: u32,
    limit: u32,
}

/// The server's own core; everything else shares the others.
const SERVER_CORE: usize = 0;
const PREFIX: &str = "bench";
const SECRET: &str = "a key for load tests, known to everyone";

impl Bench {
    /// Leaves the server's core to it, from now on.
    pub fn reserve_core(gateway_bin: &Path) -> anyhow::Result<()> {
        ensure!(process::cores() >= 2, "the server needs a core of its own, and the generator another");
        ensure!(gateway_bin.is_file(), "{} is not there: cargo build --release", gateway_bin.display());
        process::pin(1..process::cores())
    }

    /// For so many sockets and tenants, each of which may have `limit` events a second.
    pub fn start(kind: Kind, gateway_bin: &Path, sockets: usize, tenants: u32, limit: u32) -> anyhow::Result<Self> {
        let redis = RedisServer::start()?;
        let server = match kind {
            Kind::Bare | Kind::Joining => {
                Server::bare(SERVER_CORE, redis.url(), PREFIX, tenants, kind == Kind::Joining)?
            }
            Kind::Gateway => Server::gateway(SERVER_CORE, gateway_bin, redis.url(), PREFIX, SECRET, sockets, limit)?,
        };
        Ok(Self { redis, server, sockets, tenants, limit })
    }

    /// What loads it.
    pub fn load(&self) -> Load {
        let (gateways, mint) = (vec![self.server.url.clone()], Mint::new(SECRET));
        let (redis_url, redis_prefix) = (self.redis.url().to_owned(), PREFIX.to_owned());
        Load {
            fleet: Fleet { gateways, tenants: self.tenants, mint, resume: Resume::Handshake },
            sockets: self.sockets,
            target: Target { via: Via::Redis, redis_url, redis_prefix, limit: self.limit },
            publishers: 1,
            kill_pubsub: None,
            pids: vec![self.server.pid()],
            settle: SETTLE,
        }
    }
}
