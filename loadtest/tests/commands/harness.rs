//! A gateway with its Redis and, if wanted, a database: real programs, which end with the test.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

pub const SECRET: &str = "a key for the tests of the load test";
const PUBLISH_API_KEY: &str = "a-key-for-the-publish-api-of-the-tests";
/// Longest time until a server is up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Servers on free ports of the loopback.
pub struct Stack {
    redis_url: String,
    database_url: Option<String>,
    public: String,
    internal: String,
    gateway: Kept,
    /// The stack's own directory first.
    scratch: Vec<PathBuf>,
    servers: Vec<Kept>,
}

/// The result of running the program.
pub struct Run {
    pub code: i32,
    pub errors: String,
    json: Value,
}

/// Without the figures: they are too long for a test's message.
impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}, {}", self.code, self.errors)
    }
}

impl Run {
    /// The value at this JSON pointer.
    pub fn figure(&self, pointer: &str) -> &Value {
        self.json.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {self:?}"))
    }

    pub fn number(&self, pointer: &str) -> f64 {
        self.figure(pointer).as_f64().unwrap_or_else(|| panic!("{pointer} is not a number in {self:?}"))
    }
}

impl Stack {
    pub fn start() -> Self {
        Self::on(None)
    }

    pub fn with_database() -> Self {
        Self::on(Some(Postgres::start()))
    }

    fn on(postgres: Option<Postgres>) -> Self {
        let port = free_port();
        let redis = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn();
        let scratch = scratch(port);
        let mut servers = vec![Kept(redis.expect("redis-server is installed"))];
        until_listening(port);
        let redis_url = format!("redis://127.0.0.1:{port}");

        let database_url = postgres.as_ref().map(|postgres| postgres.url.clone());
        let mut gateway = Command::new(gateway_binary());
        gateway
            .env_clear()
            .env("LISTEN", "127.0.0.1:0")
            .env("INTERNAL_LISTEN", "127.0.0.1:0")
            .env("REDIS_URL", &redis_url)
            .env("JWT_SECRET", SECRET)
            .env("PUBLISH_API_KEY", PUBLISH_API_KEY)
            .env("LOG_FORMAT", "json")
            .stdout(Stdio::piped());
        gateway.envs(database_url.as_ref().map(|url| ("DATABASE_URL", url)));
        let mut scratch = vec![scratch];
        if let Some(Postgres { process, directory, .. }) = postgres {
            servers.push(process);
            scratch.push(directory);
        }
        let mut gateway = Kept(gateway.spawn().unwrap());
        let mut lines = BufReader::new(gateway.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        let listening = lines
            .by_ref()
            .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
            .find(|entry| entry["message"] == "listening")
            .expect("the gateway listens");
        // The rest of its log must be read: the gateway would block once the pipe is full.
        thread::spawn(move || lines.for_each(drop));
        let address = |name: &str| listening[name].as_str().unwrap().to_owned();
        // Tests compare the gateway's resources with those at this moment: all connections to Redis must be made.
        until_ready(&address("internal"));
        Self {
            redis_url,
            database_url,
            public: address("public"),
            internal: address("internal"),
            scratch,
            gateway,
            servers,
        }
    }

    pub fn gateway_pid(&self) -> u32 {
        self.gateway.0.id()
    }

    /// A file of this test.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.scratch[0].join(name)
    }

    /// Runs a subcommand against the stack and measures the gateway's process; `arguments` override the stack's.
    pub fn run(&self, command: &str, arguments: &[&str]) -> Run {
        let pid = self.gateway_pid().to_string();
        let watched: &[&str] = if command == "limit" { &[] } else { &["--pid", &pid] };
        self.run_unwatched(command, &[watched, arguments].concat())
    }

    /// The same as [`run`](Self::run), without measuring the gateway's process.
    pub fn run_unwatched(&self, command: &str, arguments: &[&str]) -> Run {
        let mut program = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        program.args([command, "--json"]).args(arguments);
        if !arguments.iter().any(|argument| argument.starts_with("--gateway")) {
            program.args(["--gateway", &format!("ws://{}", self.public)]);
        }
        if ["soak", "fanout"].contains(&command) {
            program.args(["--internal", &self.internal]);
        }
        program.env("JWT_SECRET", SECRET).env("REDIS_URL", &self.redis_url).env("PUBLISH_API_KEY", PUBLISH_API_KEY);
        program.envs(self.database_url.as_ref().map(|url| ("DATABASE_URL", url)));
        let output = program.output().unwrap();
        Run {
            code: output.status.code().unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
            json: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.servers.clear();
        for directory in &self.scratch {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// A database with the gateway's schema in it.
struct Postgres {
    url: String,
    process: Kept,
    directory: PathBuf,
}

impl Postgres {
    fn start() -> Self {
        let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let programs = installed.map(|version| version.path().join("bin")).max().expect("PostgreSQL is installed");
        let port = free_port();
        // Not under the target directory: PostgreSQL refuses to be root, and the checkout may be root's alone.
        let directory = std::env::temp_dir().join(format!("loadtest-postgres-{port}"));
        std::fs::create_dir_all(&directory).unwrap();
        let user = postgres_user();
        if let Some((user, group)) = user {
            chown(&directory, Some(user), Some(group)).unwrap();
        }
        let program = |name: &str| {
            let mut command = Command::new(programs.join(name));
            if let Some((user, group)) = user {
                command.uid(user).gid(group);
            }
            command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let data = directory.join("data");
        let made =
            program("initdb").args(["--auth=trust", "--username=postgres", "--no-sync", "-D"]).arg(&data).status();
        assert!(made.unwrap().success(), "initdb");
        let mut server = program("postgres");
        server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-k", "", "-c", "fsync=off"]);
        server.args(["-c", "listen_addresses=127.0.0.1"]);
        let process = Kept(server.spawn().unwrap());
        until_listening(port);
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let deadline = Instant::now() + PATIENCE;
        let migrate =
            || Command::new(gateway_binary()).arg("migrate").env_clear().env("DATABASE_URL", &url).output().unwrap();
        // PostgreSQL listens a moment before it accepts connections.
        loop {
            let migrated = migrate();
            if migrated.status.success() {
                return Self { url, process, directory };
            }
            assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&migrated.stderr));
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// PostgreSQL refuses to run as root: for root, the user that its package has created.
fn postgres_user() -> Option<(u32, u32)> {
    let root = std::fs::read_to_string("/proc/self/status").unwrap().lines().any(|line| line.starts_with("Uid:\t0\t"));
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let mut ids =
        users.lines().find(|line| line.starts_with("postgres:"))?.split(':').skip(2).map(|id| id.parse().unwrap());
    root.then(|| (ids.next().unwrap(), ids.next().unwrap()))
}

/// Killed when dropped.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `GATEWAY_BIN`, or the gateway that Cargo has built beside this test.
fn gateway_binary() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("gateway");
    let binary = std::env::var_os("GATEWAY_BIN").map_or(built, PathBuf::from);
    assert!(binary.is_file(), "{} does not exist: cargo build -p gateway", binary.display());
    binary
}

fn scratch(number: u16) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("loadtest-{number}"));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn until_ready(internal: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut answer = String::new();
        let mut stream = TcpStream::connect(internal).unwrap();
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {internal}\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_string(&mut answer).unwrap();
        if answer.starts_with("HTTP/1.1 200 ") {
            return;
        }
        assert!(Instant::now() < deadline, "the gateway is not ready: {answer}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn until_listening(port: u16) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(Instant::now() < deadline, "no server listens on port {port}");
        thread::sleep(Duration::from_millis(10));
    }
}
