//! Checks the promises of the dashboard gateway under load: operators run it before a release.
//!
//! An event goes from the `schedule` through `publishing` to a gateway, and from there through the `sockets` to the
//! ledger in `measure`. `load` is that run, the `commands` use it, and a `report` shows its outcome.
//!
//! Modules import downwards only: `commands`, `load`, `sockets` and `publishing`, `client` and `measure`, and last
//! `servers`, `report`, `schedule`, `machine` and `wire`.

// It is built on epoll, /proc and processor affinity.
#![cfg(target_os = "linux")]

mod client;
mod commands;
mod load;
mod machine;
mod measure;
mod publishing;
mod report;
mod schedule;
mod servers;
mod sockets;
mod wire;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use commands::options::Redis;
use commands::{attack, churn, fanout, floor, idle, knee, limit, payments, ramp, relay, snapshot, soak, storm};
use machine::child;
use report::findings::Findings;
use report::{Output, Report};
use servers::bare;

/// Checks the gateway's promises under load. Exit code: 0 every bound held, 1 a bound failed, 2 the run did not happen.
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
    /// The bare server, which `floor` and `knee` start.
    #[command(hide = true)]
    BareServer {
        #[command(flatten)]
        redis: Redis,
        #[arg(long)]
        tenants: u32,
        #[arg(long)]
        join: bool,
    },
    /// Become another program, which is killed when its parent ends; on one core if given.
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
            bare::run(&redis.redis_url, &redis.redis_prefix, tenants, join).map(|never| match never {})
        }
        Command::Exec { core, program } => child::exec(core, &program).map(|never| match never {}),
    }
}
