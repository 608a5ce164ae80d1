//! Proves the promises of the dashboard gateway under load: what operators run before a release.
//!
//! A run goes `schedule` → `publishing` → a `door` → gateway → `driver` → `watch` → `ledger`; `load` is that run, the
//! `commands` are its uses, and a `report` is what is left of it.

// epoll, /proc and processor affinity are what it is made of.
#![cfg(target_os = "linux")]

mod attackers;
mod bare_server;
mod bench;
mod chaos;
mod chart;
mod child;
mod client;
mod commands;
mod dialler;
mod door;
mod driver;
mod fleet;
mod holdings;
mod latency;
mod ledger;
mod limit_watch;
mod load;
mod memo;
mod message;
mod monitor;
mod outcome;
mod process;
mod progress;
mod publishing;
mod redis_server;
mod report;
mod resp;
mod schedule;
mod scrape;
mod server;
mod slope;
mod sockets;
mod token;
mod watch;
mod websocket;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use commands::{
    Findings, Redis, attack, churn, fanout, floor, idle, knee, limit, payments, ramp, relay, snapshot, soak, storm,
};
use report::{Output, Report};

/// Proves the gateway's promises under load. Exit code: 0 every bound held, 1 one failed, 2 the run did not happen.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: Output,
}

#[derive(Subcommand)]
enum Command {
    Fanout(fanout::Options),
    Ramp(ramp::Options),
    Storm(storm::Options),
    Soak(soak::Options),
    Limit(limit::Options),
    Attack(attack::Options),
    Churn(churn::Options),
    Idle(idle::Options),
    Floor(floor::Options),
    Knee(knee::Options),
    Payments(payments::Options),
    Relay(relay::Options),
    Snapshot(snapshot::Options),
    /// The floor itself: started by `floor` and `knee`.
    #[command(hide = true)]
    BareServer {
        #[command(flatten)]
        redis: Redis,
        #[arg(long)]
        tenants: u32,
        #[arg(long)]
        join: bool,
    },
    /// Become another program that ends with its parent, on one core if asked for.
    #[command(hide = true)]
    Exec {
        #[arg(long)]
        core: Option<usize>,
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
}

/// Runs the subcommand that the command line names.
pub fn main() -> ExitCode {
    let matches = Arguments::command().get_matches();
    let Arguments { command, output } = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let result = run(command).and_then(|findings| {
        let report = Report::new(&Arguments::command(), &matches, findings);
        output.show(&report)?;
        Ok(report)
    });
    match result {
        Ok(report) if report.passed() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> anyhow::Result<Findings> {
    match command {
        Command::Fanout(options) => fanout::run(options),
        Command::Ramp(options) => ramp::run(options),
        Command::Storm(options) => storm::run(options),
        Command::Soak(options) => soak::run(options),
        Command::Limit(options) => limit::run(options),
        Command::Attack(options) => attack::run(options),
        Command::Churn(options) => churn::run(options),
        Command::Idle(options) => idle::run(options),
        Command::Floor(options) => floor::run(options),
        Command::Knee(options) => knee::run(options),
        Command::Payments(options) => payments::run(options),
        Command::Relay(options) => relay::run(options),
        Command::Snapshot(options) => snapshot::run(options),
        Command::BareServer { redis, tenants, join } => {
            bare_server::run(&redis.redis_url, &redis.redis_prefix, tenants, join).map(|never| match never {})
        }
        Command::Exec { core, program } => child::exec(core, &program).map(|never| match never {}),
    }
}
