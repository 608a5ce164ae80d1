//! Sockets up, events out, every delivery judged, costs taken: what `fanout`, `floor`, `ramp`, `storm`, `soak` and
//! `limit` have in common.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::chaos::PubsubKiller;
use crate::driver::Driver;
use crate::fleet::Fleet;
use crate::ledger::Verdict;
use crate::limit_watch::LimitWatch;
use crate::monitor::{Monitor, Sample};
use crate::outcome::{Outcome, ServerCost, generator_limit};
use crate::process;
use crate::publishing::{Billing, Publishing, Target};
use crate::schedule::{Clock, Schedule, Stamp};
use crate::sockets::Sockets;
use crate::watch::{Live, Watch};

/// What to load, and with what.
pub struct Load {
    pub fleet: Fleet,
    pub sockets: usize,
    pub target: Target,
    pub publishers: usize,
    /// Kill every subscription this often.
    pub kill_pubsub: Option<Duration>,
    /// Gateways of this machine, to be charged for what they use.
    pub pids: Vec<u32>,
    /// How long the last deliveries may take.
    pub settle: Duration,
}

/// More than a heartbeat, by which a gateway must have found a lost tail.
pub const SETTLE: Duration = Duration::from_secs(35);
/// Sockets that are opened before those already open are served again.
const BATCH: usize = 500;
/// Between the last preparation and the first event.
const LEAD: Duration = Duration::from_millis(300);
/// Between two looks at whether everything has come.
const LOOK: Duration = Duration::from_millis(50);

/// Runs it: `rate` events a second of each tenant, for so long.
pub fn run(load: Load, rate: f64, duration: Duration) -> anyhow::Result<Outcome> {
    Session::open(load)?.publish("publishing", rate, duration)
}

/// Joined sockets, to be loaded once or again and again.
pub struct Session {
    pub fleet: Arc<Fleet>,
    pub served: Sockets,
    pub live: Arc<Live>,
    load: Settings,
    clock: Clock,
    /// Events of each tenant that were planned so far.
    planned: u32,
    idle: Sample,
    joined: Sample,
}

/// What of a [`Load`] is asked for again.
struct Settings {
    sockets: usize,
    target: Target,
    publishers: usize,
    kill_pubsub: Option<Duration>,
    pids: Vec<u32>,
    settle: Duration,
}

impl Session {
    /// Joins all sockets.
    pub fn open(load: Load) -> anyhow::Result<Self> {
        let Load { fleet, sockets, target, publishers, kill_pubsub, pids, settle } = load;
        process::raise_file_limit()?;
        let clock = Clock::new();
        let idle = Sample::take(&pids)?;
        let mut watch = Watch::new(fleet.tenants, clock);
        let live = watch.live.clone();
        let driver = join_all(&fleet, sockets, &mut watch)?;
        let joined = Sample::take(&pids)?;
        let served = Sockets::serve(driver, watch)?;
        let load = Settings { sockets, target, publishers, kill_pubsub, pids, settle };
        Ok(Self { fleet: Arc::new(fleet), served, live, load, clock, planned: 0, idle, joined })
    }

    /// Publishes `rate` events a second of each tenant for so long; `what` is shown meanwhile.
    pub fn publish(&mut self, what: &str, rate: f64, duration: Duration) -> anyhow::Result<Outcome> {
        let schedule = Schedule::new(self.fleet.tenants, self.planned, rate, self.load.target.limit, duration);
        let publish = |billing: Billing, clock, start| billing.publish(&schedule, clock, start);
        self.stage(what, duration, schedule.end(), schedule.rate(), publish)
    }

    /// Has all publishers press on the first tenant for so long.
    pub fn press(&mut self, what: &str, duration: Duration) -> anyhow::Result<Outcome> {
        let limit = self.load.target.limit;
        let most = f64::from(limit) * (duration.as_secs_f64() + 2.0) + self.load.publishers as f64;
        let press = |billing: Billing, clock, _| billing.press(clock, duration);
        self.stage(what, duration, self.planned + most as u32, limit.into(), press)
    }

    fn stage(
        &mut self,
        what: &str,
        duration: Duration,
        planned: u32,
        offered_per_second: f64,
        publish: impl FnOnce(Billing, Clock, u64) -> Publishing,
    ) -> anyhow::Result<Outcome> {
        let Settings { target, pids, .. } = &self.load;
        let Target { redis_url, redis_prefix, limit, .. } = target;
        let billing = Billing::connect(target, self.load.publishers, self.fleet.tenants)?;
        let limit_watch = LimitWatch::start(redis_url, redis_prefix, self.fleet.tenants, *limit)?;
        let killer = self.load.kill_pubsub.map(|every| PubsubKiller::start(redis_url, every)).transpose()?;

        let start_micros = self.clock.micros() + LEAD.as_micros() as u64;
        self.served.ask(move |_, watch| {
            watch.ledger.plan(planned);
            watch.begin(start_micros);
            Ok(())
        })?;
        self.planned = planned;
        let (before, served_before) = (Sample::take(pids)?, self.served.cpu_time()?);
        let monitor = Monitor::start(what, pids, &self.live, self.clock, start_micros, duration);
        let publishing = publish(billing, self.clock, start_micros);
        let seconds = self.clock.instant(start_micros).elapsed().as_secs_f64();
        let killed = killer.map_or(Ok(0), PubsubKiller::stop)?;

        let mut verdict = self.judge(publishing.stamps.clone())?;
        let deadline = Instant::now() + self.load.settle;
        while verdict.missed > 0 && Instant::now() < deadline {
            thread::sleep(LOOK);
            verdict = self.judge(Vec::new())?;
        }
        let end = Sample::take(pids)?;
        let elapsed = end.at.saturating_duration_since(self.clock.instant(start_micros)).as_secs_f64();
        let sockets_cores = (self.served.cpu_time()? - served_before).as_secs_f64() / elapsed;
        let (recorder, timeline) = self.served.ask(|_, watch| Ok(watch.end()))?;
        let latency = recorder.summary();
        let cost = |(index, &pid): (usize, &u32)| ServerCost {
            pid,
            cpu_seconds: (end.servers[index].cpu - before.servers[index].cpu).as_secs_f64(),
            cores: (end.servers[index].cpu - before.servers[index].cpu).as_secs_f64() / elapsed,
            rss_idle_bytes: self.idle.servers[index].rss_bytes,
            rss_joined_bytes: self.joined.servers[index].rss_bytes,
            rss_end_bytes: end.servers[index].rss_bytes,
        };
        Ok(Outcome {
            sockets: self.load.sockets,
            seconds,
            latency,
            curve: recorder.curve(),
            offered_per_second,
            deliveries_per_second: recorder.count() as f64 / seconds,
            verdict,
            limit: limit_watch.report()?,
            killed,
            servers: pids.iter().enumerate().map(cost).collect(),
            generator_cores: (end.own_cpu - before.own_cpu).as_secs_f64() / elapsed,
            sockets_cores,
            generator_limit: generator_limit(sockets_cores, publishing.late_p99_us, latency.p99_us),
            publishing,
            timeline,
            usage: monitor.stop()?,
        })
    }

    /// What the ledger says once it knows that these were accepted.
    pub fn judge(&self, accepted: Vec<Stamp>) -> anyhow::Result<Verdict> {
        self.served.ask(move |_, watch| {
            accepted.into_iter().for_each(|stamp| watch.ledger.accepted(stamp));
            Ok(watch.ledger.verdict())
        })
    }
}

/// Opens the sockets, in turns with serving those that are open already.
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
