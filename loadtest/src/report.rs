//! The report of a run: lines for a terminal, JSON for programs, and one HTML page for people.

pub mod chart;
pub mod findings;

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgMatches, Args};
use serde::Serialize;
use serde_json::Value;

use self::chart::{Chart, escape};
use self::findings::Findings;

/// How a run is reported.
#[derive(Debug, Args)]
pub struct Output {
    /// Print the report as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Also write the report to this file, as one HTML page.
    #[arg(long, global = true, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl Output {
    pub fn show(&self, report: &Report) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(report)?);
        } else {
            println!("{}", report.text);
        }
        report.failures.iter().for_each(|failure| eprintln!("FAILED: {failure}"));
        if let Some(file) = &self.report {
            fs::write(file, report.page()).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }
}

/// The report of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    command: String,
    passed: bool,
    failures: Vec<String>,
    #[serde(flatten)]
    figures: Value,
    settings: Vec<(String, String)>,
    machine: Vec<(&'static str, String)>,
    #[serde(skip)]
    text: String,
    #[serde(skip)]
    charts: Vec<Chart>,
}

impl Report {
    pub fn new(program: &clap::Command, matches: &ArgMatches, findings: Findings) -> Self {
        let (command, matches) = matches.subcommand().expect("clap demands a subcommand");
        let Findings { text, figures, failures, charts } = findings;
        Self {
            command: command.to_owned(),
            passed: failures.is_empty(),
            failures,
            figures,
            settings: settings(program.find_subcommand(command), matches),
            machine: machine(),
            text,
            charts,
        }
    }

    pub fn passed(&self) -> bool {
        self.passed
    }

    /// One HTML file without references to others, for the screen and for paper.
    fn page(&self) -> String {
        let verdict = if self.passed { "Passed" } else { "Failed" };
        let class = if self.passed { "passed" } else { "failed" };
        let mut page = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>{verdict}: loadtest {0}</title><style>{STYLE}</style>\
             <header class={class}><p>loadtest</p><h1>{0}</h1><strong>{verdict}</strong></header><main>",
            escape(&self.command)
        );
        if self.passed {
            page += "<p class=bounds>Every promise and every stated bound held.</p>";
        } else {
            page += "<ul class=bounds>";
            self.failures.iter().for_each(|failure| {
                let _ = write!(page, "<li>{}</li>", escape(failure));
            });
            page += "</ul>";
        }
        page += "<section class=tiles>";
        for (name, value) in self.tiles() {
            let _ = write!(page, "<div><b>{value}</b>{name}</div>");
        }
        page += "</section><section class=charts>";
        self.charts.iter().for_each(|chart| page += &chart.svg());
        let _ = write!(page, "</section><h2>Summary</h2><pre>{}</pre>", escape(&self.text));
        page += "<section class=tables>";
        let settings: Vec<_> = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let machine: Vec<_> = self.machine.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for (title, rows) in [("Settings", settings), ("Machine", machine)] {
            let _ = write!(page, "<div><h2>{title}</h2><table>");
            for (name, value) in rows {
                let _ = write!(page, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
            }
            page += "</table></div>";
        }
        page + "</section></main></html>\n"
    }

    /// The most important figures, as far as this run has them.
    fn tiles(&self) -> Vec<(&'static str, String)> {
        let figure = |path: &str| self.figures.pointer(path).and_then(Value::as_f64);
        // Three digits are enough.
        let micros = |us: f64| match us {
            ..1e3 => format!("{us:.0} µs"),
            ..1e4 => format!("{:.2} ms", us / 1e3),
            ..1e5 => format!("{:.1} ms", us / 1e3),
            ..1e6 => format!("{:.0} ms", us / 1e3),
            _ => format!("{:.2} s", us / 1e6),
        };
        let tile = |path, name, show: &dyn Fn(f64) -> String| figure(path).map(|value| (name, show(value)));
        let whole = |value: f64| grouped(value as u64);
        [
            tile("/ratio", "ratio to the bare loop", &|ratio| format!("{ratio:.2}")),
            tile("/knee/deliveries_per_second", "deliveries a second at the knee", &whole),
            tile("/knee/p99_us", "p99 at the knee", &micros),
            tile("/gateway/knee/deliveries_per_second", "deliveries a second, gateway", &whole),
            tile("/joining/knee/deliveries_per_second", "deliveries a second, bare loop", &whole),
            tile("/all_back_after_seconds", "until all were back", &|seconds| format!("{seconds:.1} s")),
            tile("/rss_bytes_per_hour", "memory growth an hour", &|bytes| format!("{:+.2} MB", bytes / 1e6)),
            tile("/sockets", "sockets", &whole),
            tile("/deliveries_per_second", "deliveries a second", &whole),
            tile("/latency/p50_us", "p50", &micros),
            tile("/latency/p99_us", "p99", &micros),
            tile("/latency/p999_us", "p99.9", &micros),
            tile("/verdict/missed", "missed", &whole),
            tile("/verdict/duplicate", "twice", &whole),
            tile("/verdict/foreign", "of another tenant", &whole),
            tile("/limit/most_in_any_second", "most of a tenant in a second", &whole),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// `1234567` as `1 234 567`, with non-breaking spaces.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join("\u{202f}")
}

/// Every argument with its value, except secrets: arguments whose values the help hides.
fn settings(command: Option<&clap::Command>, matches: &ArgMatches) -> Vec<(String, String)> {
    let shown = command.into_iter().flat_map(clap::Command::get_arguments);
    let shown = shown.filter(|argument| !argument.is_hide_env_values_set() && argument.get_long().is_some());
    let setting = |argument: &clap::Arg| {
        let id = argument.get_id().as_str();
        let raw = matches.try_get_raw(id).ok().flatten()?;
        let values: Vec<_> = raw.map(|value| value.to_string_lossy()).collect();
        Some((format!("--{}", argument.get_long()?), values.join(" ")))
    };
    shown.filter_map(setting).collect()
}

fn machine() -> Vec<(&'static str, String)> {
    let line = |file: &str| fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    let processors = line("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = processors.lines().filter(|line| line.starts_with("processor")).count();
    let memory = line("/proc/meminfo");
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    let gib = memory.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0 / 1024.0;
    vec![
        ("processor", model.map_or("unknown", |(_, name)| name).to_owned()),
        ("cores", cores.to_string()),
        ("memory", format!("{gib:.1} GiB")),
        ("kernel", line("/proc/sys/kernel/osrelease")),
        ("loadtest", env!("CARGO_PKG_VERSION").to_owned()),
    ]
}

const STYLE: &str = include_str!("report/page.css");

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::chart::{Series, Unit};
    use super::*;

    fn report(failures: Vec<String>) -> Report {
        let series = vec![Series { name: "p99".to_owned(), points: vec![(0.0, 900.0), (1.0, 1100.0)] }];
        Report {
            command: "fanout".to_owned(),
            passed: failures.is_empty(),
            failures,
            figures: json!({ "sockets": 1000, "deliveries_per_second": 9_900.7, "latency": { "p99_us": 1470 } }),
            settings: vec![("--rate".to_owned(), "10".to_owned())],
            machine: vec![("kernel", "6.18".to_owned())],
            text: "delivered     9900 of 9900".to_owned(),
            charts: vec![Chart { title: "Latency over time".to_owned(), x: Unit::Seconds, y: Unit::Micros, series }],
        }
    }

    #[test]
    fn a_page_has_the_verdict_first_and_all_figures_and_loads_no_other_file() {
        let page = report(vec!["p99 is 60ms, above 50ms".to_owned()]).page();
        let order =
            ["<strong>Failed", "above 50ms", "9\u{202f}900", "1.47 ms", "<svg", "9900 of 9900", "--rate", "6.18"];
        let places: Vec<_> = order.iter().map(|text| page.find(text)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
        for elsewhere in ["http:", "https:", "<script", "<link", "url("] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
        assert!(report(Vec::new()).page().contains("<strong>Passed"));
    }

    #[test]
    fn a_report_has_no_secrets() {
        let program = clap::Command::new("loadtest").subcommand(
            clap::Command::new("fanout")
                .arg(clap::Arg::new("key").long("key").hide_env_values(true))
                .arg(clap::Arg::new("rate").long("rate")),
        );
        let matches = program.clone().get_matches_from(["loadtest", "fanout", "--key", "secret", "--rate", "10"]);
        let findings = Findings { text: String::new(), figures: json!({}), failures: Vec::new(), charts: Vec::new() };
        let report = Report::new(&program, &matches, findings);
        assert_eq!(report.settings, [("--rate".to_owned(), "10".to_owned())]);
    }
}
