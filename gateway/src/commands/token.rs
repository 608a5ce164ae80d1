//! `gateway token`: prints a token to try things with.

use crate::config::{Config, ConfigError, TokenOptions};
use crate::tokens::mint;

/// Prints the token, and nothing else: it is to be captured by a shell.
pub fn run(config: &Config, options: &TokenOptions) -> Result<(), ConfigError> {
    println!("{}", mint(&config.jwt, &options.tenants, options.sub.as_deref(), options.ttl)?);
    Ok(())
}
