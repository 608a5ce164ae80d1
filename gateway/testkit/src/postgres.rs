//! A real PostgreSQL, to be killed, frozen and started again.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Pid;
use sqlx::{Connection, PgConnection};
use tokio::sync::OnceCell;

use crate::ports::free_port;
use crate::process::{Process, Signal, gateway_binary, scratch_outside};
use crate::wait::{PATIENCE, eventually};

/// Where every server's template database has been migrated, reference tables included.
const TEMPLATE: &str = "template_of_tests";

/// The files of the write-ahead log are as large as this from their beginning.
pub const WAL_SEGMENT: u64 = 16 * 1024 * 1024;

/// Debian keeps the server's programs out of `PATH`.
static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = installed.map(|version| version.path().join("bin")).filter(|bin| bin.join("postgres").exists()).max();
    newest.unwrap_or_default()
});

/// PostgreSQL refuses to run as root: then it runs as the user its package has created.
static USER: LazyLock<Option<(u32, u32)>> = LazyLock::new(|| {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let postgres = users.lines().find(|line| line.starts_with("postgres:")).expect("the package's user");
    let mut ids = postgres.split(':').skip(2).map(|id| id.parse().unwrap());
    Some((ids.next().unwrap(), ids.next().unwrap()))
});

pub fn as_its_user(command: &mut Command) -> &mut Command {
    if let Some((user, group)) = *USER {
        command.uid(user).gid(group);
    }
    command
}

fn program(name: &str) -> Command {
    let mut command = Command::new(PROGRAMS.join(name));
    as_its_user(&mut command).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
    command
}

pub fn directory(name: &str) -> PathBuf {
    let directory = scratch_outside(name);
    if let Some((user, group)) = *USER {
        std::os::unix::fs::chown(&directory, Some(user), Some(group)).unwrap();
    }
    directory
}

/// A data directory with a migrated template database, made once a run; every server starts on a copy.
static ORIGINAL: OnceCell<PathBuf> = OnceCell::const_new();

async fn original() -> PathBuf {
    let made = ORIGINAL.get_or_init(async || {
        let data = directory("postgres-original").join("data");
        let made = program("initdb")
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "-D"])
            .arg(&data)
            .status()
            .expect("PostgreSQL is installed");
        assert!(made.success(), "initdb: {made}");
        let mut server = PostgresServer::on(data.clone()).await;
        let mut client = server.connect("postgres").await.unwrap();
        sqlx::raw_sql("create database template_of_tests").execute(&mut client).await.unwrap();
        client.close().await.unwrap();
        let mut migrate = Command::new(gateway_binary());
        migrate.args(["migrate", "--reference"]).env_clear().env("DATABASE_URL", server.url_of(TEMPLATE));
        let migrated = migrate.output().unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        server.stop().await;
        data
    });
    made.await.clone()
}

static SHARED: OnceCell<PostgresServer> = OnceCell::const_new();
static NEXT: AtomicUsize = AtomicUsize::new(0);

pub struct PostgresServer {
    port: u16,
    data: PathBuf,
    process: Process,
}

impl PostgresServer {
    /// One of the test's own, to break.
    pub async fn start() -> Self {
        let data = directory(&format!("postgres-{}", NEXT.fetch_add(1, Ordering::Relaxed))).join("data");
        let copied = {
            let mut copy = Command::new("cp");
            as_its_user(&mut copy).args(["-a", "--reflink=auto"]).arg(original().await).arg(&data).status().unwrap()
        };
        assert!(copied.success());
        Self::on(data).await
    }

    /// The one that all tests share which don't break it.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    async fn on(data: PathBuf) -> Self {
        let port = free_port();
        let process = Self::spawn(port, &data);
        let server = Self { port, data, process };
        server.ready().await;
        server
    }

    fn spawn(port: u16, data: &Path) -> Process {
        let mut command = program("postgres");
        command.arg("-D").arg(data).args(["-p", &port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "max_connections=200",
            "shared_buffers=32MB",
            "log_min_messages=fatal",
        ] {
            command.args(["-c", setting]);
        }
        Process::spawn(&mut command)
    }

    async fn ready(&self) {
        eventually("PostgreSQL answers", PATIENCE, async || self.connect("postgres").await.ok()?.close().await.ok())
            .await;
    }

    pub fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    async fn connect(&self, database: &str) -> sqlx::Result<PgConnection> {
        PgConnection::connect(&self.url_of(database)).await
    }

    /// A database of the caller's own, migrated, reference tables included.
    pub async fn database(&self) -> Database {
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.create(&name, TEMPLATE).await;
        Database { url: self.url_of(&name), addr: self.addr(), name }
    }

    /// One with nothing in it.
    pub async fn empty_database(&self) -> Database {
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.create(&name, "template0").await;
        Database { url: self.url_of(&name), addr: self.addr(), name }
    }

    async fn create(&self, name: &str, template: &str) {
        let mut client = self.connect("postgres").await.unwrap();
        let statement = sqlx::AssertSqlSafe(format!("create database {name} template {template} strategy file_copy"));
        sqlx::raw_sql(statement).execute(&mut client).await.unwrap();
    }

    /// SIGKILL to the postmaster; its children notice and go.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Nothing writes the log in the background any more: a crash loses every commit that did not wait for it.
    pub fn freeze_wal_writer(&self) {
        let title =
            |child: &Pid| std::fs::read(format!("/proc/{}/cmdline", child.as_raw_nonzero())).unwrap_or_default();
        let is_writer = |child: &Pid| String::from_utf8_lossy(&title(child)).contains("walwriter");
        let writer = self.process.children().into_iter().find(is_writer).expect("a WAL writer");
        rustix::process::kill_process(writer, Signal::STOP).unwrap();
    }

    /// SIGKILL to every process of the server, frozen ones too.
    pub fn kill9_all(&mut self) {
        let children = self.process.children();
        self.process.kill9();
        for child in children {
            // One that has ended by itself is as good as killed.
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
    }

    /// Every process of the server stops in its tracks.
    pub fn freeze(&self) {
        self.signal_all(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal_all(Signal::CONT);
    }

    fn signal_all(&self, signal: Signal) {
        self.process.signal(signal);
        for child in self.process.children() {
            // One that has just ended is as good as stopped.
            let _ = rustix::process::kill_process(child, signal);
        }
    }

    /// No file may grow beyond so many bytes from now on, as if the disk were full; without a number there is room again.
    /// At least [`WAL_SEGMENT`]: a server that can't write its log stops.
    pub fn limit_file_size(&self, limit: Option<u64>) {
        let soft = limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
        let children = self.process.children().into_iter().map(|child| child.as_raw_nonzero().get() as u32);
        for pid in std::iter::once(self.process.id()).chain(children) {
            // By its own user, which may do that; a child that has just ended is as good as limited.
            let mut prlimit = Command::new("prlimit");
            let limit = [&format!("--pid={pid}"), &format!("--fsize={soft}:")];
            as_its_user(&mut prlimit).args(limit).stderr(Stdio::null()).status().unwrap();
        }
    }

    /// As an administrator would: sessions are ended, nothing is lost.
    pub async fn stop(&mut self) {
        self.process.signal(Signal::INT);
        self.process.exit(PATIENCE).await;
    }

    /// On the same port and data, after [`Self::kill9`] or [`Self::stop`].
    pub async fn restart(&mut self) {
        // Children of a killed postmaster hold its shared memory until they have noticed.
        eventually("PostgreSQL starts again", PATIENCE, async || {
            self.process = Self::spawn(self.port, &self.data);
            let started = eventually_or_exit(&mut self.process, self.port).await;
            started.then_some(())
        })
        .await;
    }
}

async fn eventually_or_exit(process: &mut Process, port: u16) -> bool {
    loop {
        if process.try_wait().is_some() {
            return false;
        }
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        if let Ok(client) = PgConnection::connect(&url).await {
            return client.close().await.is_ok();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

pub struct Database {
    pub url: String,
    pub addr: SocketAddr,
    pub name: String,
}

impl Database {
    /// A connection of the test's own.
    pub async fn client(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    /// A login without any right, and the database's address for it.
    pub async fn login(&self, name: &str) -> (String, String) {
        let login = format!("{name}_{}", self.name);
        self.run(&format!("create role {login} login")).await;
        let url = self.url.replace("//postgres@", &format!("//{login}@"));
        (login, url)
    }

    /// The same database by way of a proxy.
    pub fn url_through(&self, proxy: SocketAddr) -> String {
        self.url.replace(&self.addr.to_string(), &proxy.to_string())
    }

    /// Ends every session, the caller's next one excepted.
    pub async fn terminate_sessions(&self) {
        self.run("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
            .await;
    }

    /// Runs statements; an error is the test's end.
    pub async fn run(&self, statements: &str) {
        let mut client = self.client().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned())).execute(&mut client).await.unwrap();
    }

    /// The one value that a query gives.
    pub async fn value<T>(&self, query: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let query = sqlx::AssertSqlSafe(query.to_owned());
        sqlx::query_scalar(query).fetch_one(&mut self.client().await).await.unwrap()
    }
}
