//! `gateway`: what it can do, and how it says that it can't.

use std::process::ExitCode;

use gateway::commands::{check, demo, serve, token};
use gateway::config::{Command, Config, ConfigError};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error:#}");
            match error.downcast_ref::<ConfigError>() {
                Some(_) => ExitCode::from(ConfigError::EXIT_CODE),
                None => ExitCode::FAILURE,
            }
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let (command, config) = Config::from_env_and_args()?;
    match command {
        Command::Serve => serve::run(config).await,
        Command::Demo => demo::run(config).await,
        Command::Check => check::run(&config).await,
        Command::Token(options) => Ok(token::run(&config, &options)?),
    }
}
