//! `churn`: thousands of sockets connect and close; the gateway must free everything that they used.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use super::options::{Gateways, Internal, OneGateway, Redis};
use crate::client::fleet::Fleet;
use crate::machine::process;
use crate::measure::holdings::Holdings;
use crate::report::findings::Findings;
use crate::wire::message::Scanner;

/// Connect, join and close over and over on one gateway; afterwards it must hold the same as before.
#[derive(Debug, Args)]
#[command(mut_arg("tenants", |arg| arg.default_value("100")))]
pub struct Options {
    #[command(flatten)]
    gateways: Gateways,
    #[command(flatten)]
    redis: Redis,
    #[command(flatten)]
    internal: Internal,
    #[command(flatten)]
    gateway: OneGateway,
    /// Sockets to open and close.
    #[arg(long, default_value_t = 20_000)]
    cycles: usize,
    /// Sockets open at once.
    #[arg(long, default_value_t = 50)]
    concurrency: usize,
    /// Fail when memory grows by more bytes than this for each closed socket, in the second half of the run.
    #[arg(long, default_value_t = 64.0)]
    max_slope: f64,
}

#[derive(Serialize)]
struct Report {
    cycles: usize,
    seconds: f64,
    before: Holdings,
    after: Holdings,
    /// At 25, 50, 75 and 100 % of the cycles.
    rss_bytes: [u64; 4],
    slope_bytes_per_socket: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cycles        {} in {:.1} s", self.cycles, self.seconds)?;
        writeln!(f, "before        {}", self.before)?;
        writeln!(f, "after         {}", self.after)?;
        let [quarter, half, most, all] = self.rss_bytes.map(|bytes| bytes / 1024);
        writeln!(f, "RSS           25 % {quarter} KiB   50 % {half} KiB   75 % {most} KiB   100 % {all} KiB")?;
        write!(f, "slope         {:.1} bytes a closed socket", self.slope_bytes_per_socket)
    }
}

pub fn run(options: Options) -> anyhow::Result<Findings> {
    process::raise_file_limit()?;
    let before = holdings(&options)?;
    ensure!(before.connections == 0 && before.tenants == 0, "the gateway is in use: {before}");

    let began = Instant::now();
    let fleet = options.gateways.fleet(options.gateway.tenants);
    let mut rss_bytes = [0; 4];
    for (quarter, rss) in rss_bytes.iter_mut().enumerate() {
        let bound = |quarter| options.cycles * quarter / 4;
        churn(&fleet, bound(quarter), bound(quarter + 1), options.concurrency)?;
        *rss = process::resident_bytes(options.gateway.pid)?;
        eprintln!("{} of {} cycles", bound(quarter + 1), options.cycles);
    }
    let seconds = began.elapsed().as_secs_f64();

    let after = before.wait_until_restored(|| holdings(&options))?;

    // The allocator warms up in the first half; growth after that would never end.
    let grown = rss_bytes[3] as f64 - rss_bytes[1] as f64;
    let slope_bytes_per_socket = grown / (options.cycles as f64 / 2.0);
    let mut failures = Vec::new();
    if !after.is_back_at(&before) {
        failures.push(format!("the gateway holds {after} afterwards, not {before}"));
    }
    if slope_bytes_per_socket > options.max_slope {
        failures.push(format!("memory grows by {slope_bytes_per_socket:.1} bytes for each closed socket"));
    }
    let report = Report { cycles: options.cycles, seconds, before, after, rss_bytes, slope_bytes_per_socket };
    Findings::new(&report, failures)
}

fn holdings(options: &Options) -> anyhow::Result<Holdings> {
    let Redis { redis_url, redis_prefix } = &options.redis;
    Holdings::of(&options.internal.internal, options.gateway.pid, redis_url, redis_prefix)
}

/// Opens and closes the sockets numbered `start` to `end`.
fn churn(fleet: &Fleet, start: usize, end: usize, concurrency: usize) -> anyhow::Result<()> {
    let next = AtomicUsize::new(start);
    thread::scope(|scope| {
        let browser = || {
            let scanner = Scanner::new();
            loop {
                let socket = next.fetch_add(1, Ordering::Relaxed);
                if socket >= end {
                    return Ok(());
                }
                cycle(fleet, socket, &scanner).with_context(|| format!("cycle {socket}"))?;
            }
        };
        let browsers: Vec<_> = (0..concurrency).map(|_| scope.spawn(browser)).collect();
        browsers.into_iter().try_for_each(|browser| browser.join().expect("a browser does not panic"))
    })
}

/// Opens one socket and ends it in one of four ways, in turn.
fn cycle(fleet: &Fleet, socket: usize, scanner: &Scanner) -> anyhow::Result<()> {
    let mut client = fleet.upgrade(socket)?;
    // As a tab that is closed while it loads.
    if socket % 4 == 3 {
        return Ok(client.reset()?);
    }
    client.joined(scanner)?;
    match socket % 4 {
        0 => client.close(),
        1 => Ok(client.reset()?),
        _ => {
            client.leave(scanner)?;
            client.close()
        }
    }
}
