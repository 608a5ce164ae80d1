//! A server on a core of its own with a Redis of its own: different servers can be compared on it.

use anyhow::ensure;

use super::options::{Compared, Dashboards};
use crate::client::Resume;
use crate::client::fleet::Fleet;
use crate::client::token::Mint;
use crate::load::{Load, SETTLE};
use crate::machine::process;
use crate::publishing::door::{Target, Via};
use crate::servers::redis::RedisServer;
use crate::servers::server::{Kind, Server};

/// A running server and its Redis; both are killed when this is dropped.
pub struct Bench {
    redis: RedisServer,
    server: Server,
    sockets: usize,
    tenants: u32,
    limit: u32,
}

/// The server's own core; all other processes share the others.
const SERVER_CORE: usize = 0;
const PREFIX: &str = "bench";
const SECRET: &str = "a key for load tests, known to everyone";

impl Bench {
    /// Keeps this process, and the processes that it starts, off the server's core.
    pub fn reserve_core() -> anyhow::Result<()> {
        ensure!(process::cores() >= 2, "two cores are needed: one for the server, one for the generator");
        process::pin(1..process::cores())
    }

    /// Starts a server whose tenants may have `limit` events a second each.
    pub fn start(kind: Kind, compared: &Compared, limit: u32) -> anyhow::Result<Self> {
        let Dashboards { sockets, tenants } = compared.dashboards;
        let redis = RedisServer::start()?;
        let server = match kind {
            Kind::Bare | Kind::Joining => {
                Server::bare(SERVER_CORE, redis.url(), PREFIX, tenants, kind == Kind::Joining)?
            }
            Kind::Gateway => {
                Server::gateway(SERVER_CORE, compared.gateway_bin()?, redis.url(), PREFIX, SECRET, sockets, limit)?
            }
        };
        Ok(Self { redis, server, sockets, tenants, limit })
    }

    /// The load for this server.
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
