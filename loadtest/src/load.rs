//! A run: joins sockets, publishes events, checks every delivery and measures the cost. `attack`, `fanout`, `floor`,
//! `knee`, `limit`, `ramp`, `soak` and `storm` are built on it.

pub mod chaos;
pub mod monitor;
pub mod outcome;
pub mod progress;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use self::chaos::PubsubKiller;
use self::monitor::{Monitor, Sample};
use self::outcome::{Outcome, ServerCost, generator_limit};
use crate::client::fleet::{Dashboard, Fleet};
use crate::machine::process;
use crate::measure::ledger::Verdict;
use crate::measure::limit_watch::LimitWatch;
use crate::publishing::door::Target;
use crate::publishing::{Billing, Publishing};
use crate::schedule::{Clock, Schedule, Stamp};
use crate::sockets::Sockets;
use crate::sockets::dialler::Dialler;
use crate::sockets::driver::Driver;
use crate::sockets::watch::{Live, Watch};

/// The settings of a run.
pub struct Load {
    pub fleet: Fleet,
    pub sockets: usize,
    pub target: Target,
    pub publishers: usize,
    /// Interval at which every subscription is killed.
    pub kill_pubsub: Option<Duration>,
    /// Gateway processes of this machine whose resources are measured.
    pub pids: Vec<u32>,
    /// Longest time until the last delivery.
    pub settle: Duration,
}

/// Longer than a heartbeat, at which a gateway finds lost events at the end of the stream.
pub const SETTLE: Duration = Duration::from_secs(35);
/// Sockets that are opened before those already open are served again.
const BATCH: usize = 500;
/// Time between the preparations and the first event.
const LEAD: Duration = Duration::from_millis(300);
/// Time between two checks whether every event has arrived.
const POLL: Duration = Duration::from_millis(50);

/// Runs one load: `rate` events a second of each tenant.
pub fn run(load: Load, rate: f64, duration: Duration) -> anyhow::Result<Outcome> {
    Session::open(load)?.publish("publishing", rate, duration)
}

/// Joined sockets, for one stage of publishing or several.
pub struct Session {
    pub served: Sockets,
    pub live: Arc<Live>,
    load: Load,
    clock: Clock,
    /// Events of each tenant planned so far.
    planned: u32,
    idle: Sample,
    joined: Sample,
}

impl Session {
    /// Joins all sockets.
    pub fn open(load: Load) -> anyhow::Result<Self> {
        process::raise_file_limit()?;
        let clock = Clock::new();
        let idle = Sample::take(&load.pids)?;
        let mut watch = Watch::new(load.fleet.tenants, clock);
        let live = watch.live.clone();
        let driver = join_all(&load.fleet, load.sockets, &mut watch)?;
        let joined = Sample::take(&load.pids)?;
        let served = Sockets::serve(driver, watch)?;
        Ok(Self { served, live, load, clock, planned: 0, idle, joined })
    }

    /// Starts the threads that reconnect or replace sockets.
    pub fn dialler(&self) -> Dialler {
        Dialler::start(self.load.fleet.clone(), self.served.clone())
    }

    /// Publishes `rate` events a second of each tenant; `what` names the stage in the progress display.
    pub fn publish(&mut self, what: &str, rate: f64, duration: Duration) -> anyhow::Result<Outcome> {
        let Load { fleet, target, .. } = &self.load;
        let schedule = Schedule::new(fleet.tenants, self.planned, rate, target.limit, duration);
        let publish = |billing: Billing, clock, start| billing.publish(&schedule, clock, start);
        self.stage(what, duration, schedule.end(), schedule.rate(), publish)
    }

    /// Lets all publishers publish to the first tenant as fast as the limit allows.
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
        let Load { fleet, target, publishers, kill_pubsub, pids, .. } = &self.load;
        let Target { redis_url, redis_prefix, limit, .. } = target;
        let billing = Billing::connect(target, *publishers, fleet.tenants)?;
        let limit_watch = LimitWatch::start(redis_url, redis_prefix, fleet.tenants, *limit)?;
        let killer = kill_pubsub.map(|interval| PubsubKiller::start(redis_url, interval)).transpose()?;

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
            thread::sleep(POLL);
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

    /// Enters these accepted events into the ledger and returns its verdict.
    pub fn judge(&self, accepted: Vec<Stamp>) -> anyhow::Result<Verdict> {
        self.served.ask(move |_, watch| {
            accepted.into_iter().for_each(|stamp| watch.ledger.accepted(stamp));
            Ok(watch.ledger.verdict())
        })
    }
}

/// Opens the sockets in batches, and serves the open ones in between.
fn join_all(fleet: &Fleet, sockets: usize, watch: &mut Watch) -> anyhow::Result<Driver> {
    let mut driver = Driver::new()?;
    for start in (0..sockets).step_by(BATCH) {
        for Dashboard { client, tenant, position } in fleet.join(start..(start + BATCH).min(sockets))? {
            watch.ledger.joined(tenant, &position.epoch, position.seq);
            let (stream, received) = client.into_parts();
            driver.add(stream, received, watch)?;
        }
        driver.turn(Duration::ZERO, watch)?;
    }
    Ok(driver)
}
