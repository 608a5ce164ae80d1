//! The outcome of a run: verdict, latencies and resource use.

use std::fmt;

use serde::Serialize;

use super::monitor::Usage;
use crate::measure::latency::Latency;
use crate::measure::ledger::Verdict;
use crate::measure::limit_watch::LimitReport;
use crate::publishing::Publishing;
use crate::report::chart::{Chart, Series, Unit};
use crate::sockets::watch::Second;

/// The outcome of one run.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub sockets: usize,
    pub seconds: f64,
    pub verdict: Verdict,
    pub latency: Latency,
    /// Percentiles with their microseconds.
    pub curve: Vec<(f64, u64)>,
    /// Events a second in the schedule.
    pub offered_per_second: f64,
    pub deliveries_per_second: f64,
    pub publishing: Publishing,
    pub limit: LimitReport,
    /// Killed subscriptions.
    pub killed: u64,
    pub servers: Vec<ServerCost>,
    /// Cores that this process used.
    pub generator_cores: f64,
    /// The part of `generator_cores` of the thread that serves the sockets.
    pub sockets_cores: f64,
    /// Set when the generator was the limit and not the servers: the reason.
    pub generator_limit: Option<String>,
    pub timeline: Vec<Second>,
    pub usage: Vec<Usage>,
}

/// The reason if the generator was the limit and not the servers: the thread that serves the sockets had no time left,
/// or events were sent late, which explains the latency.
pub fn generator_limit(sockets_cores: f64, late_p99_us: u64, p99_us: u64) -> Option<String> {
    const BUSY: f64 = 0.9;
    const LATE_US: u64 = 1000;
    if sockets_cores > BUSY {
        return Some(format!("its thread for the sockets was busy {:.0} % of the time", sockets_cores * 100.0));
    }
    let late = late_p99_us > LATE_US.max(p99_us / 2);
    late.then(|| format!("events were sent late, by {late_p99_us} µs at the 99th percentile"))
}

/// The resources that one server process used.
#[derive(Debug, Serialize)]
pub struct ServerCost {
    pub pid: u32,
    pub cpu_seconds: f64,
    pub cores: f64,
    pub rss_idle_bytes: u64,
    pub rss_joined_bytes: u64,
    pub rss_end_bytes: u64,
}

impl Outcome {
    /// The promises that were broken or could not be checked, one line for each.
    pub fn failures(&self, limit: u32, max_missed: u64) -> Vec<String> {
        let Publishing { accepted, given_up, .. } = self.publishing;
        let LimitReport { most_in_any_second, events } = self.limit;
        let mut failures = self.verdict.failures(max_missed);
        if given_up > 0 {
            failures.push(format!("{given_up} events could not be published"));
        }
        if most_in_any_second > limit as usize {
            failures.push(format!("a tenant had {most_in_any_second} events in one second, more than {limit}"));
        }
        if events < accepted {
            failures.push(format!("only {events} of {accepted} events were found in the logs to check the limit"));
        }
        failures
    }

    pub fn charts(&self) -> Vec<Chart> {
        let seconds = |name: &str, of: fn(&Second) -> f64| Series {
            name: name.to_owned(),
            // The last second is incomplete.
            points: self.timeline.iter().rev().skip(1).rev().map(|second| (second.at as f64, of(second))).collect(),
        };
        let usage = |name: String, of: &dyn Fn(&Usage) -> f64| Series {
            name,
            points: self.usage.iter().map(|usage| (usage.at, of(usage))).collect(),
        };
        let servers = || self.servers.iter().map(|server| server.pid).enumerate();
        let cores =
            servers().map(|(index, pid)| usage(format!("process {pid}"), &move |usage| usage.server_cores[index]));
        let cores = cores.chain([usage("generator".to_owned(), &|usage| usage.generator_cores)]).collect();
        let memory = |(index, pid)| usage(format!("process {pid}"), &move |usage| usage.server_rss_bytes[index] as f64);
        let curve = self.curve.iter().map(|&(percentile, micros)| (percentile, micros as f64)).collect();
        let over_time = |title: &str, y, series| Chart { title: title.to_owned(), x: Unit::Seconds, y, series };
        let mut charts = vec![
            Chart {
                title: "Latency by percentile".to_owned(),
                x: Unit::Percentile,
                y: Unit::Micros,
                series: vec![Series { name: "latency".to_owned(), points: curve }],
            },
            over_time(
                "Latency over time",
                Unit::Micros,
                vec![seconds("p50", |second| second.p50_us as f64), seconds("p99", |second| second.p99_us as f64)],
            ),
            over_time(
                "Deliveries over time",
                Unit::PerSecond,
                vec![seconds("deliveries", |second| second.deliveries as f64)],
            ),
            over_time("Processor cores over time", Unit::Cores, cores),
        ];
        if !self.servers.is_empty() {
            charts.push(over_time("Resident memory over time", Unit::Bytes, servers().map(memory).collect()));
        }
        charts
    }

    /// Microseconds of CPU of all servers for one delivery.
    pub fn cpu_micros_per_delivery(&self) -> f64 {
        let seconds: f64 = self.servers.iter().map(|server| server.cpu_seconds).sum();
        seconds * 1e6 / self.verdict.delivered.max(1) as f64
    }

    /// Bytes of all servers for one joined socket.
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
            "limit         at most {most_in_any_second} of a tenant in any second, of {events} events checked"
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
        if let Some(why) = &self.generator_limit {
            write!(f, "\ngenerator     was the limit, not the servers: {why}")?;
        }
        if !self.servers.is_empty() {
            write!(f, "\nservers       {:.2} µs of CPU a delivery", self.cpu_micros_per_delivery())?;
            write!(f, "   {:.1} KiB a joined socket", self.bytes_per_socket() / 1024.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_or_late_generator_is_reported_as_the_limit() {
        assert_eq!(generator_limit(0.5, 200, 900), None);
        assert_eq!(generator_limit(0.5, 4_000, 90_000), None, "the lateness explains little of the latency");
        assert!(generator_limit(0.97, 200, 900).is_some_and(|why| why.contains("97 %")));
        assert!(generator_limit(0.5, 4_000, 5_000).is_some_and(|why| why.contains("4000 µs")));
    }
}
