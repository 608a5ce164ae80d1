//! A master, its replica, and three Sentinels that watch over them.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::process::{Process, scratch};
use super::redis::{RedisClient, RedisServer, free_port};
use super::wait::eventually;

/// The name under which the Sentinels know the master.
const SERVICE: &str = "books";
/// For what the Sentinels agree on among themselves.
const AGREEMENT: Duration = Duration::from_secs(30);

pub struct Sentinels {
    /// The first is the master at first.
    pub servers: [RedisServer; 2],
    ports: Vec<u16>,
    _processes: Vec<Process>,
}

impl Sentinels {
    pub async fn start() -> Self {
        let (master, replica) = (RedisServer::start().await, RedisServer::start().await);
        let master_port = master.addr().port().to_string();
        replica.command(&["REPLICAOF", "127.0.0.1", &master_port]).await;
        let (mut ports, mut processes) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let port = free_port();
            let file = scratch(&format!("sentinel-{port}")).join("sentinel.conf");
            let lines = [
                format!("port {port}"),
                "bind 127.0.0.1".to_owned(),
                format!("dir {}", file.parent().unwrap().display()),
                format!("sentinel monitor {SERVICE} 127.0.0.1 {master_port} 2"),
                format!("sentinel down-after-milliseconds {SERVICE} 1000"),
                format!("sentinel failover-timeout {SERVICE} 5000"),
            ];
            std::fs::write(&file, lines.join("\n") + "\n").unwrap();
            let mut command = Command::new("redis-server");
            command.arg(&file).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null());
            processes.push(Process::spawn(&mut command));
            ports.push(port);
        }
        let sentinels = Self { servers: [master, replica], ports, _processes: processes };
        eventually("the Sentinels know each other and the replica", AGREEMENT, async || {
            for port in &sentinels.ports {
                let mut client = RedisClient::connect(([127, 0, 0, 1], *port).into()).await.ok()?;
                let about = client.try_command(&["SENTINEL", "MASTER", SERVICE]).await.ok()?;
                let texts = about.texts();
                let field = |name: &str| texts.iter().position(|text| *text == name).map(|at| texts[at + 1]);
                let known = field("num-slaves") == Some("1") && field("num-other-sentinels") == Some("2");
                let usable = client.try_command(&["SENTINEL", "CKQUORUM", SERVICE]).await.ok()?;
                (known && usable.texts().first()?.starts_with("OK")).then_some(())?;
            }
            Some(())
        })
        .await;
        sentinels
    }

    /// With every Sentinel named.
    pub fn url(&self) -> String {
        let [first, others @ ..] = &self.ports[..] else { panic!("three Sentinels") };
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
