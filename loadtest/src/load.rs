//! One run: sockets up, events out, every delivery judged, costs taken. `fanout` and `floor` are both this.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use crate::chaos::PubsubKiller;
use crate::driver::{Audience, Driver};
use crate::fleet::Fleet;
use crate::latency::{Latency, Recorder};
use crate::ledger::{Ledger, Verdict};
use crate::limit::{LimitReport, LimitWatch};
use crate::message::{Message, Scanner};
use crate::process;
use crate::publishing::{Billing, Publishing};
use crate::schedule::{Clock, Schedule, Stamp};

/// What to run.
pub struct Load {
    pub fleet: Fleet,
    pub sockets: usize,
    pub redis_url: String,
    pub redis_prefix: String,
    /// Events a second of each tenant.
    pub rate: f64,
    /// Events a second that the publishers allow a tenant.
    pub limit: u32,
    pub duration: Duration,
    pub publishers: usize,
    /// Kill every subscription this often.
    pub kill_pubsub: Option<Duration>,
    /// Gateways of this machine, to be charged for what they use.
    pub pids: Vec<u32>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub sockets: usize,
    pub seconds: f64,
    pub verdict: Verdict,
    pub latency: Latency,
    pub deliveries_per_second: f64,
    pub publishing: Publishing,
    pub limit: LimitReport,
    /// Subscriptions that were killed.
    pub killed: u64,
    pub servers: Vec<ServerCost>,
    /// Cores that this process itself used: near 1 means that it, not the gateway, was the limit.
    pub generator_cores: f64,
}

/// What one server process used.
#[derive(Debug, Serialize)]
pub struct ServerCost {
    pub pid: u32,
    pub cpu_seconds: f64,
    pub rss_idle_bytes: u64,
    pub rss_joined_bytes: u64,
    pub rss_end_bytes: u64,
}

impl Outcome {
    /// All promises of the design that a run can check.
    pub fn is_clean(&self, limit: u32) -> bool {
        self.verdict.is_clean() && self.publishing.given_up == 0 && self.holds_limit(limit)
    }

    /// The limit was held, and all that was published was looked at.
    fn holds_limit(&self, limit: u32) -> bool {
        self.limit.most_in_any_second <= limit as usize && self.limit.events >= self.publishing.accepted
    }

    /// All servers' microseconds of CPU for one delivery.
    pub fn cpu_micros_per_delivery(&self) -> f64 {
        let seconds: f64 = self.servers.iter().map(|server| server.cpu_seconds).sum();
        seconds * 1e6 / self.verdict.delivered.max(1) as f64
    }

    /// All servers' bytes for one joined socket.
    pub fn bytes_per_socket(&self) -> f64 {
        let grown = |server: &ServerCost| server.rss_joined_bytes.saturating_sub(server.rss_idle_bytes);
        self.servers.iter().map(grown).sum::<u64>() as f64 / self.sockets as f64
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Publishing { accepted, throttled, retried, given_up, .. } = &self.publishing;
        writeln!(f, "{}", self.verdict)?;
        writeln!(
            f,
            "published     {accepted} in {:.1} s   throttled {throttled}   retried {retried}   given up {given_up}",
            self.seconds
        )?;
        let LimitReport { most_in_any_second, events } = self.limit;
        writeln!(
            f,
            "limit         at most {most_in_any_second} of a tenant in any second, of {events} events looked at"
        )?;
        writeln!(f, "killed        {} subscriptions", self.killed)?;
        writeln!(f, "latency       {}", self.latency)?;
        write!(
            f,
            "deliveries    {:.0} a second; the generator used {:.2} cores",
            self.deliveries_per_second, self.generator_cores
        )?;
        for server in &self.servers {
            let ServerCost { pid, cpu_seconds, rss_end_bytes, .. } = server;
            write!(f, "\nprocess {pid:<6}CPU {cpu_seconds:.2} s   RSS {} KiB at the end", rss_end_bytes / 1024)?;
        }
        if !self.servers.is_empty() {
            write!(f, "\nservers       {:.2} µs of CPU a delivery", self.cpu_micros_per_delivery())?;
            write!(f, "   {:.1} KiB a joined socket", self.bytes_per_socket() / 1024.0)?;
        }
        Ok(())
    }
}

/// Sockets that are opened before those already open are served again.
const BATCH: usize = 500;
/// Between the last preparation and the first event.
const LEAD: Duration = Duration::from_millis(300);
/// How long the last deliveries may take: more than a heartbeat, by which a gateway must have found a lost tail.
const SETTLE: Duration = Duration::from_secs(35);

/// Runs it.
pub fn run(load: Load) -> anyhow::Result<Outcome> {
    let Load { fleet, redis_url, redis_prefix, duration, .. } = &load;
    let clock = Clock::new();
    let schedule = Schedule::new(fleet.tenants, load.rate, load.limit, *duration);
    process::raise_file_limit()?;

    let rss = |pids: &[u32]| pids.iter().map(|&pid| process::resident_bytes(pid)).collect::<anyhow::Result<Vec<_>>>();
    let cpu = |pids: &[u32]| pids.iter().map(|&pid| process::cpu_time(pid)).collect::<anyhow::Result<Vec<_>>>();

    let rss_idle = rss(&load.pids)?;
    let mut watch = Watch::new(Ledger::new(&schedule), clock);
    let driver = join_all(fleet, load.sockets, &mut watch)?;
    let rss_joined = rss(&load.pids)?;

    let billing = Billing::connect(redis_url, redis_prefix, load.limit, load.publishers, fleet.tenants)?;
    let limit = LimitWatch::start(redis_url, redis_prefix, fleet.tenants)?;
    let killer = load.kill_pubsub.map(|every| PubsubKiller::start(redis_url, every)).transpose()?;

    eprintln!("{} sockets joined; publishing for {} s", load.sockets, duration.as_secs());
    let delivered = watch.delivered.clone();
    let listener = Listener::start(driver, watch);
    let (cpu_before, own_before, began) = (cpu(&load.pids)?, process::cpu_time(std::process::id())?, Instant::now());
    let publishing = billing.publish(&schedule, clock, clock.micros() + LEAD.as_micros() as u64);
    let seconds = began.elapsed().as_secs_f64() - LEAD.as_secs_f64();
    let killed = killer.map_or(Ok(0), PubsubKiller::stop)?;

    let owed: u64 = publishing.stamps.iter().map(|stamp| sockets_of(fleet, load.sockets, stamp.tenant)).sum();
    let deadline = Instant::now() + SETTLE;
    while delivered.load(Ordering::Relaxed) < owed && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    let (cpu_after, own_after, elapsed) = (cpu(&load.pids)?, process::cpu_time(std::process::id())?, began.elapsed());
    let rss_end = rss(&load.pids)?;
    let mut watch = listener.stop()?;

    publishing.stamps.iter().for_each(|&stamp| watch.ledger.accepted(stamp));
    let verdict = watch.ledger.verdict();
    let server = |index: usize| ServerCost {
        pid: load.pids[index],
        cpu_seconds: (cpu_after[index] - cpu_before[index]).as_secs_f64(),
        rss_idle_bytes: rss_idle[index],
        rss_joined_bytes: rss_joined[index],
        rss_end_bytes: rss_end[index],
    };
    Ok(Outcome {
        sockets: load.sockets,
        seconds,
        latency: watch.latency.summary(),
        deliveries_per_second: verdict.delivered as f64 / seconds,
        verdict,
        publishing,
        limit: limit.report()?,
        killed,
        servers: (0..load.pids.len()).map(server).collect(),
        generator_cores: (own_after - own_before).as_secs_f64() / elapsed.as_secs_f64(),
    })
}

/// How many of the sockets are this tenant's.
fn sockets_of(fleet: &Fleet, sockets: usize, tenant: u32) -> u64 {
    let tenants = fleet.tenants as usize;
    (sockets / tenants + usize::from((tenant as usize) < sockets % tenants)) as u64
}

fn join_all(fleet: &Fleet, sockets: usize, watch: &mut Watch) -> anyhow::Result<Driver> {
    let mut driver = Driver::new()?;
    for start in (0..sockets).step_by(BATCH) {
        for joined in fleet.join(start..(start + BATCH).min(sockets))? {
            watch.ledger.joined(joined.tenant, &joined.position.epoch, joined.position.seq);
            let (stream, received) = joined.client.into_parts();
            driver.add(stream, received, watch)?;
        }
        driver.turn(Duration::ZERO, watch)?;
    }
    Ok(driver)
}

/// The driver on a thread of its own.
struct Listener {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<anyhow::Result<Watch>>,
}

impl Listener {
    fn start(mut driver: Driver, mut watch: Watch) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                driver.turn(Duration::from_millis(50), &mut watch).context("serving the sockets")?;
            }
            Ok(watch)
        });
        Self { stop, thread }
    }

    fn stop(self) -> anyhow::Result<Watch> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the driver does not panic")
    }
}

/// Turns what sockets receive into entries of the ledger, and into latencies.
struct Watch {
    ledger: Ledger,
    latency: Recorder,
    delivered: Arc<AtomicU64>,
    scanner: Scanner,
    clock: Clock,
    began_micros: u64,
}

impl Watch {
    fn new(ledger: Ledger, clock: Clock) -> Self {
        let began_micros = clock.micros();
        let delivered = Arc::new(AtomicU64::new(0));
        Self { ledger, latency: Recorder::new(), delivered, scanner: Scanner::new(), clock, began_micros }
    }
}

impl Audience for Watch {
    fn text(&mut self, socket: usize, payload: &[u8]) {
        match self.scanner.scan(payload) {
            Some(Message::Event { seq, id }) => {
                // An event of an earlier run is none of ours, though it has its place in the order.
                let stamp = Stamp::parse(id).filter(|stamp| stamp.intended_micros >= self.began_micros);
                if self.ledger.event(socket, seq, stamp)
                    && let Some(stamp) = stamp
                {
                    self.latency.record(self.clock.micros().saturating_sub(stamp.intended_micros));
                    self.delivered.fetch_add(1, Ordering::Relaxed);
                }
            }
            Some(Message::Resync { epoch, seq } | Message::Joined { epoch, seq }) => {
                self.ledger.resync(socket, epoch, seq)
            }
            Some(Message::Heartbeat { epoch, seq }) => self.ledger.heartbeat(socket, epoch, seq),
            Some(Message::Degraded) => self.ledger.degraded(),
            Some(Message::Restored) => self.ledger.restored(),
            Some(Message::Error) => self.ledger.refused(),
            Some(Message::Left | Message::Other) => {}
            None => self.ledger.malformed(),
        }
    }

    fn ended(&mut self, socket: usize) {
        self.ledger.ended(socket);
    }
}
