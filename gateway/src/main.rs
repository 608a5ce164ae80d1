//! `gateway`: runs a subcommand, and reports its error.

use std::process::ExitCode;
use std::time::Duration;

use gateway::commands::{check, demo, healthcheck, migrate, serve, token};
use gateway::config::{Command, ConfigError, Settings};
use gateway::logging;
use tokio::runtime::Runtime;

/// The longest that the exit waits for a name that is being resolved, which can't be interrupted.
const EXIT_LIMIT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    logging::report_panics();
    let result = Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        let result = runtime.block_on(run());
        runtime.shutdown_timeout(EXIT_LIMIT);
        result
    });
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::error(&format!("gateway: {error:#}"));
            match error.downcast_ref::<ConfigError>() {
                Some(_) => ExitCode::from(ConfigError::EXIT_CODE),
                None => ExitCode::FAILURE,
            }
        }
    };
    logging::flush();
    code
}

async fn run() -> anyhow::Result<()> {
    logging::outlive_size_limit()?;
    let (command, settings) = Settings::from_env_and_args()?;
    match command {
        Command::Serve => serve::run(settings).await,
        Command::Demo(options) => demo::run(settings, options).await,
        Command::Check => check::run(&settings).await,
        Command::Healthcheck => healthcheck::run(&settings).await,
        Command::Migrate(options) => migrate::run(&settings, &options).await,
        Command::Token(options) => token::run(&settings, &options).await,
    }
}
