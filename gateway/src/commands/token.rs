//! `gateway token`: prints a token to try things with, or says what is wrong with one.

use std::io::Read;

use anyhow::{Context, bail};

use super::output::say;
use crate::config::{ConfigError, JwtSettings, Settings, TokenOptions};
use crate::tokens::{LONGEST_TOKEN, Tokens, explain, mint};

/// Prints the token, and nothing else: it is to be captured by a shell. With `--explain`, what the given token tells; fails when it
/// would be refused.
pub async fn run(settings: &Settings, options: &TokenOptions) -> anyhow::Result<()> {
    if let Some(token) = &options.explain {
        return judge(&settings.jwt, token).await;
    }
    let longest = settings.jwt.claims.max_lifetime;
    if options.ttl > longest {
        let rule = format!("is longer than JWT_MAX_LIFETIME_SECONDS, which is {}", longest.as_secs());
        return Err(ConfigError::with_value("--ttl", &options.ttl.as_secs().to_string(), rule).into());
    }
    say(mint(&settings.jwt, &options.tenants, options.sub.as_deref(), options.ttl)?)
}

async fn judge(jwt: &JwtSettings, token: &str) -> anyhow::Result<()> {
    let mut read = String::new();
    let token = match token {
        // As an argument it is in the shell's history and the list of processes.
        "-" => {
            let most = 2 * LONGEST_TOKEN as u64;
            std::io::stdin().take(most).read_to_string(&mut read).context("standard input")?;
            read.trim()
        }
        token => token,
    };
    let tokens = Tokens::load(jwt).await?;
    let (text, verdict) = explain(&tokens, jwt, token).await;
    say(text)?;
    match verdict {
        Ok(()) => Ok(()),
        Err(_) => bail!("the token is refused"),
    }
}
