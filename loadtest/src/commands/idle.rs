//! `idle`: what a joined socket on which nothing happens costs the gateway in memory.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use super::{Findings, Gateways};
use crate::client::Resume;
use crate::driver::{Audience, Driver};
use crate::fleet::Fleet;
use crate::process;
use crate::token::Mint;

/// Open idle sockets on one gateway; report its memory for each of them.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    gateways: Gateways,
    /// The gateway's process.
    #[arg(long)]
    pid: u32,
    /// Numbers of sockets to measure at, in rising order; the gateway's MAX_CONNECTIONS must allow them.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    at: Vec<usize>,
    /// Tenants that the sockets are dealt over.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    tenants: u32,
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
/// From the last join to the measurement: handshakes have given their memory back by then.
const SETTLE: Duration = Duration::from_secs(3);

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let files = process::raise_file_limit()?;
    let most = options.at.last().copied().unwrap_or(0);
    ensure!(options.at.is_sorted(), "--at must rise");
    ensure!(most + 100 <= files, "{most} sockets need more than the {files} files this process may open");

    let fleet = Fleet {
        gateways: options.gateways.urls,
        tenants: options.tenants,
        mint: Mint::new(&options.gateways.jwt_secret),
        resume: Resume::Handshake,
    };
    let rss_before_bytes = process::resident_bytes(options.pid)?;
    let (mut driver, mut witness) = (Driver::new()?, Witness::default());
    let (mut open, mut steps) = (0, Vec::new());
    for &sockets in &options.at {
        while open < sockets {
            let end = sockets.min(open + BATCH);
            for joined in fleet.join(open..end)? {
                let (stream, received) = joined.client.into_parts();
                driver.add(stream, received, &mut witness)?;
            }
            open = end;
            driver.turn(Duration::ZERO, &mut witness)?;
        }
        let settled = Instant::now() + SETTLE;
        while Instant::now() < settled {
            driver.turn(Duration::from_millis(50), &mut witness)?;
        }
        ensure!(witness.ended == 0, "{} sockets were closed: nothing to measure", witness.ended);
        let rss_bytes = process::resident_bytes(options.pid)?;
        let bytes_per_socket = rss_bytes.saturating_sub(rss_before_bytes) as f64 / sockets as f64;
        eprintln!("{sockets} sockets joined and idle");
        steps.push(Step { sockets, rss_bytes, bytes_per_socket });
    }

    let max = options.max_kib.unwrap_or(f64::INFINITY);
    let too_dear = steps.iter().filter(|step| step.bytes_per_socket / 1024.0 > max);
    let failures: Vec<_> =
        too_dear.map(|step| format!("{} sockets cost more than {max} KiB each", step.sockets)).collect();
    Findings::new(&Report { rss_before_bytes, steps }, failures)
}

/// Counts the sockets that did not stay.
#[derive(Default)]
struct Witness {
    ended: usize,
}

impl Audience for Witness {
    fn text(&mut self, _: usize, _: &[u8]) {}

    fn ended(&mut self, _: usize) {
        self.ended += 1;
    }
}
