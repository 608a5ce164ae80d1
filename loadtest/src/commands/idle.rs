//! `idle`: the gateway's memory for a joined socket without traffic.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use super::options::{Gateways, OneGateway};
use crate::machine::process;
use crate::report::findings::Findings;
use crate::sockets::driver::{Driver, Handler};

/// Open idle sockets on one gateway; report its memory for each of them.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    gateways: Gateways,
    #[command(flatten)]
    gateway: OneGateway,
    /// Numbers of sockets to measure at, in rising order; the gateway's MAX_CONNECTIONS must allow them.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    at: Vec<usize>,
    /// Fail when a socket costs more than this.
    #[arg(long)]
    max_kib: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    rss_before_bytes: u64,
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    sockets: usize,
    rss_bytes: u64,
    bytes_per_socket: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "before        RSS {} KiB", self.rss_before_bytes / 1024)?;
        for Step { sockets, rss_bytes, bytes_per_socket } in &self.steps {
            write!(
                f,
                "\n{sockets:<7} idle  RSS {} KiB   {:.2} KiB a socket",
                rss_bytes / 1024,
                bytes_per_socket / 1024.0
            )?;
        }
        Ok(())
    }
}

/// Sockets opened before those already open are served again.
const BATCH: usize = 500;
/// Time from the last join to the measurement: enough for handshakes to free their memory.
const SETTLE: Duration = Duration::from_secs(3);

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let files = process::raise_file_limit()?;
    let most = options.at.last().copied().unwrap_or(0);
    ensure!(options.at.is_sorted(), "--at must rise");
    ensure!(most + 100 <= files, "{most} sockets need more than the {files} files that this process may open");

    let OneGateway { pid, tenants } = options.gateway;
    let fleet = options.gateways.fleet(tenants);
    let rss_before_bytes = process::resident_bytes(pid)?;
    let (mut driver, mut ended) = (Driver::new()?, EndCount::default());
    let (mut open, mut steps) = (0, Vec::new());
    for &sockets in &options.at {
        while open < sockets {
            let end = sockets.min(open + BATCH);
            for dashboard in fleet.join(open..end)? {
                let (stream, received) = dashboard.client.into_parts();
                driver.add(stream, received, &mut ended)?;
            }
            open = end;
            driver.turn(Duration::ZERO, &mut ended)?;
        }
        let settled = Instant::now() + SETTLE;
        while Instant::now() < settled {
            driver.turn(Duration::from_millis(50), &mut ended)?;
        }
        ensure!(ended.0 == 0, "{} sockets were closed: the memory can't be measured", ended.0);
        let rss_bytes = process::resident_bytes(pid)?;
        let bytes_per_socket = rss_bytes.saturating_sub(rss_before_bytes) as f64 / sockets as f64;
        eprintln!("{sockets} sockets joined and idle");
        steps.push(Step { sockets, rss_bytes, bytes_per_socket });
    }

    let max = options.max_kib.unwrap_or(f64::INFINITY);
    let too_large = steps.iter().filter(|step| step.bytes_per_socket / 1024.0 > max);
    let failures: Vec<_> =
        too_large.map(|step| format!("{} sockets cost more than {max} KiB each", step.sockets)).collect();
    Findings::new(&Report { rss_before_bytes, steps }, failures)
}

/// Counts the sockets that end.
#[derive(Default)]
struct EndCount(usize);

impl Handler for EndCount {
    fn text(&mut self, _: usize, _: &[u8]) {}

    fn ended(&mut self, _: usize) {
        self.0 += 1;
    }
}
