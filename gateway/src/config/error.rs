//! Why the configuration stops the start: always one line.

use std::fmt;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// One clear line: the variable, its value unless that is secret, and the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    line: String,
}

impl ConfigError {
    /// What `main` exits with: the caller's mistake, as for every command-line tool.
    pub const EXIT_CODE: u8 = 2;

    /// For secrets, and where the value says nothing.
    pub fn new(variable: &str, rule: impl fmt::Display) -> Self {
        Self::line(format!("{variable}: {rule}"))
    }

    /// For everything else.
    pub fn with_value(variable: &str, value: &str, rule: impl fmt::Display) -> Self {
        const SHOWN: usize = 80;
        let cut = if value.chars().nth(SHOWN).is_some() { "…" } else { "" };
        let shown: String = value.chars().take(SHOWN).collect();
        Self::line(format!("{variable}={shown}{cut}: {rule}"))
    }

    /// Turns clap's several lines about a flag into ours; help and version are no errors and end the process.
    pub(super) fn from_clap(error: &clap::Error, command: &clap::Command) -> Self {
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            error.exit();
        }
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let flag = context(ContextKind::InvalidArg)
            .and_then(|arg| arg.split_whitespace().next())
            .and_then(|arg| arg.strip_prefix("--"));
        let arg = flag.and_then(|flag| command.get_arguments().find(|arg| arg.get_long() == Some(flag)));
        match (arg, error.kind()) {
            (Some(arg), ErrorKind::ValueValidation | ErrorKind::InvalidValue) => {
                // Every variable is a flag of the same letters.
                let variable = arg.get_long().unwrap_or_default().to_uppercase().replace('-', "_");
                let rule =
                    std::error::Error::source(error).map_or_else(|| "needs a value".to_owned(), ToString::to_string);
                match context(ContextKind::InvalidValue) {
                    Some(value) if !arg.is_hide_env_values_set() && !value.is_empty() => {
                        Self::with_value(&variable, value, rule)
                    }
                    _ => Self::new(&variable, rule),
                }
            }
            _ => {
                let whole = error.to_string();
                let sentences: Vec<&str> = whole
                    .lines()
                    .map(str::trim)
                    .take_while(|line| !line.starts_with("Usage:"))
                    .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
                    .collect();
                Self::line(sentences.join(" ").trim_start_matches("error: ").replace(" tip: ", "; "))
            }
        }
    }

    /// A value may hold line breaks and terminal escapes; the line may not.
    fn line(text: String) -> Self {
        let line = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        Self { line }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for ConfigError {}
