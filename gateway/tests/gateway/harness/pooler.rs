//! A real PgBouncer in front of a PostgreSQL server.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::ports::free_port;
use super::postgres::{Database, as_its_user, directory};
use super::process::Process;
use super::wait::eventually;

pub struct Pooler {
    port: u16,
    _process: Process,
}

impl Pooler {
    /// Pools by `transaction` or by `session`; a few sessions serve all clients.
    pub async fn start(database: &Database, mode: &str) -> Self {
        Self::start_with(database, mode, &[]).await
    }

    /// The same with these settings besides.
    pub async fn start_with(database: &Database, mode: &str, settings: &[&str]) -> Self {
        let port = free_port();
        let file = directory(&format!("pgbouncer-{port}")).join("pgbouncer.ini");
        let lines = [
            "[databases]".to_owned(),
            format!("* = host=127.0.0.1 port={} user=postgres", database.addr.port()),
            "[pgbouncer]".to_owned(),
            "listen_addr = 127.0.0.1".to_owned(),
            format!("listen_port = {port}"),
            "unix_socket_dir =".to_owned(),
            "auth_type = any".to_owned(),
            format!("pool_mode = {mode}"),
            "default_pool_size = 12".to_owned(),
            "ignore_startup_parameters = extra_float_digits".to_owned(),
        ];
        std::fs::write(&file, lines.join("\n") + "\n" + &settings.join("\n") + "\n").unwrap();
        let mut command = Command::new("/usr/sbin/pgbouncer");
        as_its_user(&mut command).arg(&file).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
        let pooler = Self { port, _process: Process::spawn(&mut command) };
        eventually("PgBouncer listens", Duration::from_secs(10), async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        pooler
    }

    /// The same database by way of the pooler.
    pub fn url(&self, database: &Database) -> String {
        database.url_through(([127, 0, 0, 1], self.port).into())
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}
