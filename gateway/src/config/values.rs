//! How a single value is read. Each error is the rule, as the end of a sentence that begins with the variable.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use publisher::internals::Names;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// An empty variable is more often a mistake in a deployment than a wish for the default.
pub(super) const EMPTY: &str = "must not be empty; leave it out for the default";

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        match raw {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be text or json"),
        }
    }
}

pub(super) fn whole<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |raw| {
        let number = raw.parse().ok().filter(|number| range.contains(number));
        number
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| format!("must be a whole number from {} to {}", range.start(), range.end()))
    }
}

pub(super) fn seconds(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    let whole = whole::<u64>(range);
    move |raw| whole(raw).map(Duration::from_secs)
}

pub(super) fn text(longest: usize) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |raw| match raw.len() {
        0 => Err(EMPTY.to_owned()),
        length if length > longest => Err(format!("must be at most {longest} bytes, has {length}")),
        _ => Ok(raw.to_owned()),
    }
}

pub(super) fn switch(raw: &str) -> Result<bool, &'static str> {
    match raw.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" => Ok(true),
        "false" | "0" | "off" => Ok(false),
        _ => Err("must be true or false"),
    }
}

pub(super) fn address(raw: &str) -> Result<SocketAddr, &'static str> {
    raw.parse().map_err(|_| "must be an IP address and a port, such as 0.0.0.0:8080 or [::]:8080")
}

pub(super) fn path(raw: &str) -> Result<PathBuf, &'static str> {
    if raw.is_empty() { Err(EMPTY) } else { Ok(raw.into()) }
}

pub(super) fn prefix(raw: &str) -> Result<String, &'static str> {
    Names::new(raw).map(|_| raw.to_owned()).map_err(|_| "must be 1 to 32 of A-Z a-z 0-9 _ : -")
}

pub(super) fn log_filter(raw: &str) -> Result<String, String> {
    if raw.is_empty() {
        return Err(EMPTY.to_owned());
    }
    // A word that is no level would be the name of a part of the program, and silence all others.
    let is_name = |part: &&str| !part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err();
    if let Some(name) = raw.split(',').map(str::trim).find(is_name) {
        return Err(format!(
            "{name} is no level: must be off, error, warn, info, debug or trace, or for a part, {name}=debug"
        ));
    }
    EnvFilter::try_new(raw)
        .map(|_| raw.to_owned())
        .map_err(|error| format!("must be a level (off, error, warn, info, debug, trace) or a filter: {error}"))
}
