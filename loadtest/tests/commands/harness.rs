//! A gateway with its Redis and, if wanted, a database: real programs, which end with the test.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::postgres::{Database, PostgresServer};
use testkit::process::{Process, gateway_binary, scratch};
use testkit::redis::RedisServer;
use tokio::runtime::Runtime;

pub const SECRET: &str = "a key for the tests of the load test";
const PUBLISH_API_KEY: &str = "a-key-for-the-publish-api-of-the-tests";
/// Longest time until a server is up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Servers on free ports of the loopback.
pub struct Stack {
    redis: RedisServer,
    database: Option<Database>,
    gateway: Process,
    public: String,
    internal: String,
    scratch: PathBuf,
    _postgres: Option<PostgresServer>,
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
        let redis = Runtime::new().unwrap().block_on(RedisServer::start());
        Self::on(redis, None)
    }

    pub fn with_database() -> Self {
        let (redis, postgres, database) = Runtime::new().unwrap().block_on(async {
            let postgres = PostgresServer::start().await;
            let database = postgres.database().await;
            (RedisServer::start().await, postgres, database)
        });
        Self::on(redis, Some((postgres, database)))
    }

    fn on(redis: RedisServer, postgres: Option<(PostgresServer, Database)>) -> Self {
        let (postgres, database) = postgres.unzip();
        let mut gateway = Command::new(gateway_binary());
        gateway
            .env_clear()
            .env("LISTEN", "127.0.0.1:0")
            .env("INTERNAL_LISTEN", "127.0.0.1:0")
            .env("REDIS_URL", redis.url())
            .env("JWT_SECRET", SECRET)
            .env("PUBLISH_API_KEY", PUBLISH_API_KEY)
            .env("LOG_FORMAT", "json")
            .stdout(Stdio::piped());
        gateway.envs(database.as_ref().map(|database| ("DATABASE_URL", &database.url)));
        let mut gateway = Process::spawn(&mut gateway);
        let mut lines = BufReader::new(gateway.child().stdout.take().unwrap()).lines().map_while(Result::ok);
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
            scratch: scratch(&format!("loadtest-{}", redis.addr().port())),
            redis,
            database,
            gateway,
            public: address("public"),
            internal: address("internal"),
            _postgres: postgres,
        }
    }

    pub fn gateway_pid(&self) -> u32 {
        self.gateway.id()
    }

    /// A file of this test.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
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
        program.env("JWT_SECRET", SECRET).env("REDIS_URL", self.redis.url()).env("PUBLISH_API_KEY", PUBLISH_API_KEY);
        program.envs(self.database.as_ref().map(|database| ("DATABASE_URL", &database.url)));
        let output = program.output().unwrap();
        Run {
            code: output.status.code().unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
            json: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
        }
    }
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
