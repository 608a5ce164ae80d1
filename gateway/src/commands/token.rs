//! `gateway token`: prints a token to try things with.

use super::say;
use crate::config::{Config, TokenOptions};
use crate::tokens::mint;

/// Prints the token, and nothing else: it is to be captured by a shell.
pub fn run(config: &Config, options: &TokenOptions) -> anyhow::Result<()> {
    say(mint(&config.jwt, &options.tenants, options.sub.as_deref(), options.ttl)?)
}
