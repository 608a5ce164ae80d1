//! One run: sockets up, events out, every delivery judged, costs taken. `fanout` and `floor` are both this.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::chaos::PubsubKiller;
use crate::driver::{Audience, Driver};
use crate::fleet::Fleet;
use crate::latency::Recorder;
use crate::ledger::Ledger;
use crate::limit::LimitWatch;
use crate::message::{Message, Scanner};
use crate::outcome::{Outcome, ServerCost};
use crate::process;
use crate::publishing::Billing;
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

/// Sockets that are opened before those already open are served again.
const BATCH: usize = 500;
/// Between the last preparation and the first event.
const LEAD: Duration = Duration::from_millis(300);
/// How long the last deliveries may take: more than a heartbeat, by which a gateway must have found a lost tail.
const SETTLE: Duration = Duration::from_secs(35);

/// Runs it.
pub fn run(load: Load) -> anyhow::Result<Outcome> {
    let Load { fleet, redis_url, redis_prefix, .. } = &load;
    let clock = Clock::new();
    let schedule = Schedule::new(fleet.tenants, load.rate, load.limit, load.duration);
    process::raise_file_limit()?;

    let idle = Sample::take(&load.pids)?;
    let mut watch = Watch::new(Ledger::new(&schedule), clock);
    let driver = join_all(fleet, load.sockets, &mut watch)?;
    let joined = Sample::take(&load.pids)?;

    let billing = Billing::connect(redis_url, redis_prefix, load.limit, load.publishers, fleet.tenants)?;
    let limit = LimitWatch::start(redis_url, redis_prefix, fleet.tenants)?;
    let killer = load.kill_pubsub.map(|every| PubsubKiller::start(redis_url, every)).transpose()?;

    eprintln!("{} sockets joined; publishing for {} s", load.sockets, load.duration.as_secs_f64());
    let delivered = watch.delivered.clone();
    let listener = Listener::start(driver, watch);
    let before = Sample::take(&load.pids)?;
    let start_micros = clock.micros() + LEAD.as_micros() as u64;
    let publishing = billing.publish(&schedule, clock, start_micros);
    let seconds = clock.instant(start_micros).elapsed().as_secs_f64();
    let killed = killer.map_or(Ok(0), PubsubKiller::stop)?;

    let owed: u64 = publishing.stamps.iter().map(|stamp| sockets_of(fleet, load.sockets, stamp.tenant)).sum();
    let deadline = Instant::now() + SETTLE;
    while delivered.load(Ordering::Relaxed) < owed && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    let end = Sample::take(&load.pids)?;
    let mut watch = listener.stop()?;

    publishing.stamps.iter().for_each(|&stamp| watch.ledger.accepted(stamp));
    let verdict = watch.ledger.verdict();
    let cost = |(index, &pid): (usize, &u32)| ServerCost {
        pid,
        cpu_seconds: (end.servers[index].cpu - before.servers[index].cpu).as_secs_f64(),
        rss_idle_bytes: idle.servers[index].rss_bytes,
        rss_joined_bytes: joined.servers[index].rss_bytes,
        rss_end_bytes: end.servers[index].rss_bytes,
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
        servers: load.pids.iter().enumerate().map(cost).collect(),
        generator_cores: (end.own_cpu - before.own_cpu).as_secs_f64() / (end.at - before.at).as_secs_f64(),
    })
}

/// What the servers, and this process, have used at one moment.
struct Sample {
    at: Instant,
    own_cpu: Duration,
    servers: Vec<Usage>,
}

struct Usage {
    cpu: Duration,
    rss_bytes: u64,
}

impl Sample {
    fn take(pids: &[u32]) -> anyhow::Result<Self> {
        let usage = |&pid| anyhow::Ok(Usage { cpu: process::cpu_time(pid)?, rss_bytes: process::resident_bytes(pid)? });
        let servers = pids.iter().map(usage).collect::<anyhow::Result<_>>()?;
        Ok(Self { at: Instant::now(), own_cpu: process::cpu_time(std::process::id())?, servers })
    }
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
