//! The configuration, in two steps: what was typed, as variables and flags, and what was checked. Read once, before anything runs.

mod cli;
mod descriptors;
mod error;
mod groups;
mod near_miss;
mod origins;
mod proxies;
mod secret;
mod settings;
mod values;
mod warnings;

pub use cli::{Command, DemoOptions, MigrateOptions, TokenOptions};
pub use descriptors::{INTERNAL_SEATS, public_seats};
pub use error::ConfigError;
pub use groups::{ClaimRules, Limits, LogSettings};
pub use origins::Origins;
pub use proxies::Proxies;
pub use secret::Secret;
pub use settings::{JwtSettings, KeySource, RedisAddress, Settings};
pub use values::LogFormat;

#[cfg(test)]
mod tests;
