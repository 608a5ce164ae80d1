//! What a run found: the verdict, the latencies and what they cost.

use std::fmt;

use serde::Serialize;

use crate::latency::Latency;
use crate::ledger::Verdict;
use crate::limit::LimitReport;
use crate::publishing::Publishing;

/// The result of one run.
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
    /// The promises of the design that were broken, or could not be checked: one line for each.
    pub fn failures(&self, limit: u32) -> Vec<String> {
        let Publishing { accepted, given_up, .. } = self.publishing;
        let LimitReport { most_in_any_second, events } = self.limit;
        let mut failures = self.verdict.failures();
        if given_up > 0 {
            failures.push(format!("{given_up} events could not be published"));
        }
        if most_in_any_second > limit as usize {
            failures.push(format!("a tenant had {most_in_any_second} events in one second, more than {limit}"));
        }
        if events < accepted {
            failures.push(format!("only {events} of {accepted} events were found in the logs to hold to the limit"));
        }
        failures
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
