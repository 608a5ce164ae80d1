//! Proves the promises of the dashboard gateway under load: what operators run before a release.
//!
//! A run goes `schedule` → `publishing` → Redis → gateway → `driver` → `ledger`; `load` is that run, the
//! `commands` are its uses.

mod bare_server;
mod chaos;
mod child;
mod client;
mod commands;
mod driver;
mod fleet;
mod latency;
mod ledger;
mod limit;
mod load;
mod message;
mod outcome;
mod process;
mod publishing;
mod redis_server;
mod resp;
mod schedule;
mod scrape;
mod server;
mod token;
mod websocket;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use commands::{Redis, Verdict, churn, fanout, floor, idle, payments, relay, snapshot};

/// Proves the gateway's promises under load. Exit code: 0 every bound held, 1 one failed, 2 the run did not happen.
#[derive(Parser)]
#[command(version)]
enum Command {
    Fanout(fanout::Options),
    Churn(churn::Options),
    Idle(idle::Options),
    Floor(floor::Options),
    Payments(payments::Options),
    Relay(relay::Options),
    Snapshot(snapshot::Options),
    /// The floor itself: started by `floor`.
    #[command(hide = true)]
    BareServer {
        #[command(flatten)]
        redis: Redis,
        #[arg(long)]
        tenants: u32,
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

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Fanout(options) => fanout::run(options),
        Command::Churn(options) => churn::run(options),
        Command::Idle(options) => idle::run(options),
        Command::Floor(options) => floor::run(options),
        Command::Payments(options) => payments::run(options),
        Command::Relay(options) => relay::run(options),
        Command::Snapshot(options) => snapshot::run(options),
        Command::BareServer { redis, tenants } => {
            bare_server::run(&redis.redis_url, &redis.redis_prefix, tenants).map(|()| Verdict::Passed)
        }
        Command::Exec { core, program } => child::exec(core, &program).map(|never| match never {}),
    };
    match result {
        Ok(Verdict::Passed) => ExitCode::SUCCESS,
        Ok(Verdict::Failed) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}
