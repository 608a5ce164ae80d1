//! The built gateway as a child process: its addresses, its log, its end.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use super::metrics::Scrape;
use super::process::{Process, Signal};
use super::wait::{PATIENCE, eventually};
use super::{books, events, http};

pub struct Gateway {
    process: Process,
    log: Log,
    environment: Vec<(String, String)>,
    pub public: SocketAddr,
    pub internal: SocketAddr,
}

impl Gateway {
    /// With this environment and nothing else; returns once it listens.
    pub async fn start(environment: &[(String, String)]) -> Self {
        Self::start_as(&["serve"], environment).await
    }

    /// The same for another subcommand that serves, or with flags.
    pub async fn start_as(arguments: &[&str], environment: &[(String, String)]) -> Self {
        let (process, log) = Self::spawn(arguments, environment);
        let mut starting = Starting { process, log };
        let listening = eventually("the gateway logs that it listens", PATIENCE, async || starting.listening()).await;
        let address = |field: &str| listening[field].as_str().and_then(|text| text.parse().ok());
        let missing = |field| panic!("no address {field} in {listening}");
        let public = address("public").unwrap_or_else(|| missing("public"));
        let internal = address("internal").unwrap_or_else(|| missing("internal"));
        let Starting { process, log } = starting;
        Self { process, log, environment: environment.to_vec(), public, internal }
    }

    /// Writes to these outputs, which nobody follows; its environment names its ports. Returns once it is alive.
    pub async fn start_writing_to(environment: &[(String, String)], stdout: Stdio, stderr: Stdio) -> Self {
        let mut process = Self::spawn_writing_to(&["serve"], environment, stdout, stderr);
        let address = |name| environment.iter().rev().find(|(known, _)| known == name).unwrap().1.parse().unwrap();
        let (public, internal): (SocketAddr, SocketAddr) = (address("LISTEN"), address("INTERNAL_LISTEN"));
        eventually("the gateway listens", PATIENCE, async || {
            assert_eq!(process.try_wait(), None, "the gateway ended");
            tokio::net::TcpStream::connect(internal).await.ok()
        })
        .await;
        Self { process, log: Log::of(environment), environment: environment.to_vec(), public, internal }
    }

    /// Starts again when it has ended; on the same ports where its environment names them.
    pub async fn restart(&mut self) {
        *self = Self::start(&self.environment).await;
    }

    /// Runs the binary without expecting it to listen.
    pub fn spawn(arguments: &[&str], environment: &[(String, String)]) -> (Process, Log) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        command.args(arguments).env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let mut process = Process::spawn(&mut command);
        let log = Log::of(environment);
        log.follow(process.child().stdout.take().unwrap());
        log.follow(process.child().stderr.take().unwrap());
        (process, log)
    }

    /// Runs a subcommand to its end.
    pub async fn run(arguments: &[&str], environment: &[(String, String)]) -> (ExitStatus, Log) {
        let (mut process, log) = Self::spawn(arguments, environment);
        let (status, _) = process.exit(PATIENCE).await;
        log.complete().await;
        (status, log)
    }

    /// The same with these outputs.
    pub async fn run_writing_to(
        arguments: &[&str],
        environment: &[(String, String)],
        stdout: Stdio,
        stderr: Stdio,
    ) -> ExitStatus {
        Self::spawn_writing_to(arguments, environment, stdout, stderr).exit(PATIENCE).await.0
    }

    fn spawn_writing_to(arguments: &[&str], environment: &[(String, String)], stdout: Stdio, stderr: Stdio) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        command.args(arguments).env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
        Process::spawn(command.stdout(stdout).stderr(stderr))
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub async fn scrape(&self) -> Scrape {
        Scrape(http::get(self.internal, "/metrics").await.expect(200).body)
    }

    /// The metric's value now, summed over the series that carry `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.scrape().await.value(name, labels)
    }

    /// Waits until a metric has exactly this value.
    pub async fn metric_becomes(&self, name: &str, labels: &[&str], wanted: f64) {
        self.metric_until(name, labels, PATIENCE, &format!("is {wanted}"), |value| value == wanted).await;
    }

    pub async fn metric_until(
        &self,
        name: &str,
        labels: &[&str],
        limit: Duration,
        wish: &str,
        holds: impl Fn(f64) -> bool,
    ) {
        let mut last = f64::NAN;
        let begun = Instant::now();
        loop {
            let value = self.metric(name, labels).await;
            if holds(value) {
                return;
            }
            assert!(
                begun.elapsed() < limit,
                "{name}{labels:?} {wish}: not within {limit:?}, last {value}, before {last}"
            );
            last = value;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    pub fn resident_kib(&self) -> u64 {
        self.process.resident_kib()
    }

    pub fn cpu_time(&self) -> Duration {
        self.process.cpu_time()
    }

    pub fn file_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// How many it may have from now on, as `prlimit` sets it; as many as these tests without a number.
    pub fn limit_file_descriptors(&self, limit: Option<usize>) {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let current = limit.map(|limit| limit as u64).or(maximum);
        prlimit(Pid::from_raw(self.id() as i32), Resource::Nofile, Rlimit { current, maximum }).unwrap();
    }

    /// How large a file it may write from now on, in bytes; the kernel sends SIGXFSZ for the next one.
    pub fn limit_file_size(&self, limit: u64) {
        let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
        prlimit(Pid::from_raw(self.id() as i32), Resource::Fsize, Rlimit { current: Some(limit), maximum }).unwrap();
    }

    /// Processor time used since it started.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        // After the name, which may hold anything: the state is field 3, utime 14, stime 15.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub async fn exit(&mut self, within: Duration) -> (ExitStatus, Duration) {
        self.process.exit(within).await
    }

    /// What every test leaves behind must satisfy: alive, and with a clean log.
    pub fn assert_unharmed(&mut self) {
        assert_eq!(self.process.try_wait(), None, "the gateway is gone; its log:\n{}", self.log.text());
        self.log.assert_clean();
    }
}

struct Starting {
    process: Process,
    log: Log,
}

impl Starting {
    fn listening(&mut self) -> Option<Value> {
        let found = self.log.find("listening");
        if found.is_none()
            && let Some(status) = self.process.try_wait()
        {
            panic!("the gateway ended with {status} instead of listening; its log:\n{}", self.log.text());
        }
        found
    }
}

/// Standard output and standard error, line by line. Looked through once more when it is dropped, so that no process of the tests
/// gets away with what it wrote, whether it ended by itself or was killed.
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    /// Locked by a test that wants the process' outputs to be read no further.
    reading: Arc<tokio::sync::Mutex<()>>,
    /// One for each output that is still open.
    open: Arc<()>,
    /// What this process was told in confidence.
    secrets: Vec<String>,
}

impl Log {
    fn of(environment: &[(String, String)]) -> Self {
        let secrets = environment.iter().filter_map(|(name, value)| match name.as_str() {
            "JWT_SECRET" | "PUBLISH_API_KEY" => Some(value.as_str()),
            "REDIS_URL" | "DATABASE_URL" => password(value),
            _ => None,
        });
        let secrets = secrets.filter(|secret| !secret.is_empty()).map(str::to_owned).collect();
        Self { lines: Arc::default(), reading: Arc::default(), open: Arc::default(), secrets }
    }

    fn follow(&self, output: impl Read + Send + 'static) {
        let (lines, reading, open) = (Arc::clone(&self.lines), Arc::clone(&self.reading), Arc::clone(&self.open));
        std::thread::spawn(move || {
            let _open = open;
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                lines.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                drop(reading.blocking_lock());
            }
        });
    }

    /// Until the guard is dropped the outputs are not read, beyond what has been taken from the pipes already.
    pub async fn stall(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.reading).lock_owned().await
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits until the process, which has ended, has said everything.
    async fn complete(&self) {
        eventually("both outputs end", PATIENCE, async || self.is_complete().then_some(())).await;
    }

    fn is_complete(&self) -> bool {
        Arc::strong_count(&self.open) == 1
    }

    pub fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// The first JSON line with this message.
    pub fn find(&self, message: &str) -> Option<Value> {
        let parsed = self.lines().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        parsed.into_iter().find(|line| line["message"] == message)
    }

    /// No panic, no token (every JWT begins with `eyJ`), no key, no password, nobody's name, no terminal escape smuggled in by a
    /// client.
    pub fn assert_clean(&self) {
        let never = ["panicked", "eyJ", "\u{1b}", super::token::SECRET, super::PUBLISH_API_KEY];
        let people = [events::PARENT, events::CHILD, books::PARENT, books::CHILD].map(|name| name.split(' '));
        let forbidden = || never.into_iter().chain(people.clone().into_iter().flatten());
        for line in self.lines() {
            let found = forbidden().chain(self.secrets.iter().map(String::as_str)).find(|word| line.contains(word));
            assert!(found.is_none(), "{found:?} in the gateway's log: {line}");
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // Its process is gone, or goes next; what it wrote last is still in the pipe.
        let begun = Instant::now();
        while !self.is_complete() && begun.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.assert_clean();
    }
}

/// The password in an address, `scheme://user:password@host`.
fn password(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let (credentials, _) = rest.rsplit_once('@')?;
    credentials.split_once(':').map(|(_, password)| password)
}
