//! Measures the processes once a second during a run, and shows the progress.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::progress::Progress;
use crate::machine::process;
use crate::schedule::Clock;
use crate::sockets::watch::Live;

/// The resources that the servers and this process have used at one moment.
pub struct Sample {
    pub at: Instant,
    pub own_cpu: Duration,
    pub servers: Vec<Used>,
}

/// The resources of one server.
pub struct Used {
    pub cpu: Duration,
    pub rss_bytes: u64,
}

impl Sample {
    pub fn take(pids: &[u32]) -> anyhow::Result<Self> {
        let used = |&pid| anyhow::Ok(Used { cpu: process::cpu_time(pid)?, rss_bytes: process::resident_bytes(pid)? });
        let servers = pids.iter().map(used).collect::<anyhow::Result<_>>()?;
        Ok(Self { at: Instant::now(), own_cpu: process::cpu_time(std::process::id())?, servers })
    }
}

/// The use of one second.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// Seconds since the first event.
    pub at: f64,
    pub generator_cores: f64,
    /// In the order of the given processes.
    pub server_cores: Vec<f64>,
    pub server_rss_bytes: Vec<u64>,
}

/// Measures until it is stopped.
pub struct Monitor {
    stop: Sender<()>,
    thread: JoinHandle<anyhow::Result<Vec<Usage>>>,
}

impl Monitor {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// `what` names the run in the progress display; `duration` is its length.
    pub fn start(
        what: &str,
        pids: &[u32],
        live: &Arc<Live>,
        clock: Clock,
        start_micros: u64,
        duration: Duration,
    ) -> Self {
        let (stop, stopped) = mpsc::channel();
        let (pids, live) = (pids.to_vec(), live.clone());
        let progress = Progress::new(what, duration);
        let thread = thread::spawn(move || {
            let (mut usages, mut last) = (Vec::new(), Sample::take(&pids)?);
            let mut delivered = live.delivered.load(Ordering::Relaxed);
            while stopped.recv_timeout(Self::INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let now = Sample::take(&pids)?;
                let seconds = (now.at - last.at).as_secs_f64();
                let cores = |now: Duration, last: Duration| (now.saturating_sub(last)).as_secs_f64() / seconds;
                let usage = Usage {
                    at: now.at.saturating_duration_since(clock.instant(start_micros)).as_secs_f64(),
                    generator_cores: cores(now.own_cpu, last.own_cpu),
                    server_cores: now.servers.iter().zip(&last.servers).map(|(n, l)| cores(n.cpu, l.cpu)).collect(),
                    server_rss_bytes: now.servers.iter().map(|used| used.rss_bytes).collect(),
                };
                let count = live.delivered.load(Ordering::Relaxed);
                let p99 = Duration::from_micros(live.p99_us.load(Ordering::Relaxed));
                let rate = (count - delivered) as f64 / seconds;
                let servers: f64 = usage.server_cores.iter().sum();
                let servers = if pids.is_empty() { String::new() } else { format!(" · servers {servers:.2} cores") };
                progress.show(usage.at, &format!("{rate:.0} deliveries/s · p99 {p99:?}{servers}"));
                usages.push(usage);
                (last, delivered) = (now, count);
            }
            Ok(usages)
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> anyhow::Result<Vec<Usage>> {
        drop(self.stop);
        self.thread.join().expect("the monitor does not panic")
    }
}
