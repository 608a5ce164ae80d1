//! Secrets: values that are used, and never printed.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::error::ConfigError;
use super::values;

/// A key, or an address with a password in it. Prints as `***`.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Shorter keys can be guessed; for HS256 it is the hash's length (RFC 7518 §3.2).
    pub const SHORTEST_KEY: usize = 32;

    /// More is no key, but a wrong path.
    const LONGEST_FILE: u64 = 64 * 1024;

    /// The value itself. Look twice at where it goes.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The keys that it holds, one a line: several while a key is replaced by the next.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.lines().filter(|line| !line.is_empty())
    }

    /// Which of its keys this is, from 1. The duration of the comparison does not tell how much of a guess was right.
    pub fn which(&self, guess: &[u8]) -> Option<usize> {
        let equal = self.keys().map(|key| bool::from(key.as_bytes().ct_eq(guess)));
        // All of them, whichever is the right one.
        equal.collect::<Vec<_>>().iter().position(|equal| *equal).map(|index| index + 1)
    }

    /// Whether its keys are fit to open or sign everything.
    pub(super) fn check_keys(&self, variable: &str) -> Result<(), ConfigError> {
        let several = self.keys().nth(1).is_some();
        for (index, key) in self.keys().enumerate() {
            let which = if several { format!("key {} ", index + 1) } else { String::new() };
            if is_placeholder(key) {
                let rule = format!("{which}is the placeholder of an example; make a key with: openssl rand -hex 32");
                return Err(ConfigError::new(variable, rule));
            }
            if key.len() < Self::SHORTEST_KEY {
                let rule = format!("{which}must be at least {} bytes, has {}", Self::SHORTEST_KEY, key.len());
                return Err(ConfigError::new(variable, rule));
            }
        }
        match self.keys().next() {
            Some(_) => Ok(()),
            None => Err(ConfigError::new(variable, "holds no key")),
        }
    }

    pub(super) fn from_file(variable: &str, path: &Path) -> Result<Self, ConfigError> {
        let refuse = |rule: String| ConfigError::with_value(variable, &path.to_string_lossy(), rule);
        let mut content = String::new();
        File::open(path)
            .and_then(|file| file.take(Self::LONGEST_FILE + 1).read_to_string(&mut content))
            .map_err(|error| refuse(format!("cannot be read: {error}")))?;
        if content.len() as u64 > Self::LONGEST_FILE {
            return Err(refuse(format!("is longer than {} bytes, that is no secret", Self::LONGEST_FILE)));
        }
        // Editors and `echo` end files with a newline that is no part of the secret.
        let trimmed =
            content.strip_suffix('\n').map_or(content.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
        trimmed.parse().map_err(|rule| refuse(format!("its content {rule}")))
    }
}

/// Whether a key is the placeholder of a template or an example.
fn is_placeholder(key: &str) -> bool {
    const WORDS: [&str; 7] =
        ["changeme", "changethis", "replaceme", "replacewith", "placeholder", "yourkey", "yoursecret"];
    let letters: String = key.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    let is_variable =
        [("${", '}'), ("$(", ')'), ("<", '>')].iter().any(|(begin, end)| key.starts_with(begin) && key.ends_with(*end));
    is_variable || WORDS.iter().any(|word| letters.contains(word))
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(raw: &str) -> Result<Self, String> {
        if raw.is_empty() { Err(values::EMPTY.to_owned()) } else { Ok(Self(raw.into())) }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Files that hold a secret instead of the variable, as container platforms mount them.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct SecretFiles {
    /// A file that holds JWT_SECRET.
    #[arg(long, env, value_name = "PATH", value_parser = values::path)]
    pub(super) jwt_secret_file: Option<PathBuf>,

    /// A file that holds REDIS_URL.
    #[arg(long, env, value_name = "PATH", value_parser = values::path)]
    pub(super) redis_url_file: Option<PathBuf>,

    /// A file that holds DATABASE_URL.
    #[arg(long, env, value_name = "PATH", value_parser = values::path)]
    pub(super) database_url_file: Option<PathBuf>,

    /// A file that holds PUBLISH_API_KEY.
    #[arg(long, env, value_name = "PATH", value_parser = values::path)]
    pub(super) publish_api_key_file: Option<PathBuf>,
}
