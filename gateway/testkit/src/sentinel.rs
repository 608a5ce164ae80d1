//! A master, its replica, and three Sentinels that watch over them.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::ports::free_port;
use crate::process::{Process, Signal, scratch};
use crate::redis::{RedisClient, RedisServer};
use crate::resp::Reply;
use crate::wait::eventually;

/// The name under which the Sentinels know the master.
const SERVICE: &str = "books";
/// For what the Sentinels agree on among themselves.
const AGREEMENT: Duration = Duration::from_secs(30);

pub struct Sentinels {
    /// The first is the master at first.
    pub servers: [RedisServer; 2],
    ports: Vec<u16>,
    processes: Vec<Process>,
}

/// A Sentinel that knows no other.
pub struct Sentinel {
    port: u16,
    _process: Process,
}

impl Sentinel {
    /// It takes this server for the master.
    pub async fn watching(master: &RedisServer) -> Self {
        let port = free_port();
        let process = sentinel(port, master.addr().port());
        let started = Self { port, _process: process };
        eventually("the Sentinel answers", AGREEMENT, async || {
            let mut client = RedisClient::connect(started.addr()).await.ok()?;
            client.try_command(&["PING"]).await.ok()
        })
        .await;
        started
    }

    pub fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }
}

/// Starts a Sentinel that has never heard of any other.
fn sentinel(port: u16, master: u16) -> Process {
    let file = scratch(&format!("sentinel-{port}")).join("sentinel.conf");
    let lines = [
        format!("port {port}"),
        "bind 127.0.0.1".to_owned(),
        format!("dir {}", file.parent().unwrap().display()),
        format!("sentinel monitor {SERVICE} 127.0.0.1 {master} 2"),
        format!("sentinel down-after-milliseconds {SERVICE} 1000"),
        format!("sentinel failover-timeout {SERVICE} 5000"),
    ];
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    let mut command = Command::new("redis-server");
    command.arg(&file).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null());
    Process::spawn(&mut command)
}

impl Sentinels {
    pub async fn start() -> Self {
        let (master, replica) = (RedisServer::start().await, RedisServer::start().await);
        replica.command(&["REPLICAOF", "127.0.0.1", &master.addr().port().to_string()]).await;
        let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
        let processes = ports.iter().map(|port| sentinel(*port, master.addr().port())).collect();
        let sentinels = Self { servers: [master, replica], ports, processes };
        sentinels.agree().await;
        sentinels
    }

    /// Sets all Sentinels up anew, with this server as the master: what they knew is lost.
    pub async fn rebuild(&mut self, master: usize) {
        self.processes.clear();
        let (replica, master) = (&self.servers[1 - master], &self.servers[master]);
        master.promote().await;
        replica.follow(master.addr()).await;
        self.processes = self.ports.iter().map(|port| sentinel(*port, master.addr().port())).collect();
        self.agree().await;
    }

    /// Waits until the Sentinels know each other, the master and its replica, and could fail over.
    pub async fn agree(&self) {
        eventually("the Sentinels know each other and the replica", AGREEMENT, async || {
            for port in &self.ports {
                let mut client = RedisClient::connect(([127, 0, 0, 1], *port).into()).await.ok()?;
                let about = client.try_command(&["SENTINEL", "MASTER", SERVICE]).await.ok()?;
                let known =
                    field(&about, "num-slaves") == Some("1") && field(&about, "num-other-sentinels") == Some("2");
                let well = field(&about, "flags") == Some("master");
                let usable = client.try_command(&["SENTINEL", "CKQUORUM", SERVICE]).await.ok()?;
                let replicas = client.try_command(&["SENTINEL", "REPLICAS", SERVICE]).await.ok()?;
                let follows =
                    field(&replicas, "flags") == Some("slave") && field(&replicas, "master-link-status") == Some("ok");
                (known && well && follows && usable.texts().first()?.starts_with("OK")).then_some(())?;
            }
            Some(())
        })
        .await;
    }

    /// One of the Sentinels hears and says nothing from now on.
    pub fn freeze(&self, sentinel: usize) {
        self.processes[sentinel].signal(Signal::STOP);
    }

    /// It goes on, with the view that it had.
    pub fn thaw(&self, sentinel: usize) {
        self.processes[sentinel].signal(Signal::CONT);
    }

    /// Which server is the master, by the first Sentinel.
    pub async fn master(&self) -> usize {
        let mut client = RedisClient::connect(([127, 0, 0, 1], self.ports[0]).into()).await.unwrap();
        let address = client.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]).await;
        let port: u16 = address.texts().last().and_then(|port| port.parse().ok()).unwrap();
        self.servers.iter().position(|server| server.addr().port() == port).unwrap()
    }

    /// Of the Sentinels and of what they watch over.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        let sentinels = self.ports.iter().map(|port| ([127, 0, 0, 1], *port).into());
        self.servers.iter().map(RedisServer::addr).chain(sentinels).collect()
    }

    /// What every Sentinel answers to a command.
    pub async fn command(&self, words: &[&str]) -> Vec<Reply> {
        let asked = self
            .ports
            .iter()
            .map(async |port| RedisClient::connect(([127, 0, 0, 1], *port).into()).await.unwrap().command(words).await);
        futures::future::join_all(asked).await
    }

    /// With every Sentinel named.
    pub fn url(&self) -> String {
        Self::url_of(&self.ports)
    }

    /// With every Sentinel named, another one of them first.
    pub fn url_from(&self, first: usize) -> String {
        let (before, from) = self.ports.split_at(first % self.ports.len());
        Self::url_of(&[from, before].concat())
    }

    /// With a stale Sentinel named first.
    pub fn url_with(&self, stale: &Sentinel) -> String {
        Self::url_of(&[&[stale.port], &self.ports[..]].concat())
    }

    fn url_of(ports: &[u16]) -> String {
        let [first, others @ ..] = ports else { panic!("no Sentinels") };
        let others: Vec<_> = others.iter().map(|port| format!("&node=127.0.0.1:{port}")).collect();
        format!("redis-sentinel://127.0.0.1:{first}?sentinelServiceName={SERVICE}{}", others.concat())
    }

    /// Waits until the Sentinels have made this server the master.
    pub async fn master_becomes(&self, server: usize) {
        let port = self.servers[server].addr().port().to_string();
        eventually("another master", AGREEMENT, async || {
            for sentinel in &self.ports {
                let mut client = RedisClient::connect(([127, 0, 0, 1], *sentinel).into()).await.ok()?;
                let address = client.try_command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]).await.ok()?;
                (address.texts().last() == Some(&&*port)).then_some(())?;
            }
            Some(())
        })
        .await;
    }

    /// A failover that nobody had to die for.
    pub async fn fail_over(&self) {
        let mut client = RedisClient::connect(([127, 0, 0, 1], self.ports[0]).into()).await.unwrap();
        client.command(&["SENTINEL", "FAILOVER", SERVICE]).await;
    }
}

/// A field of what a Sentinel says about a server.
fn field<'a>(about: &'a Reply, name: &str) -> Option<&'a str> {
    let texts = about.texts();
    let at = texts.iter().position(|text| *text == name)?;
    texts.get(at + 1).copied()
}
