//! What was typed: the variables and flags, each by itself, as clap reads them.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use publisher::TenantId;

use super::error::ConfigError;
use super::groups::{ClaimRules, Limits, LogSettings};
use super::origins::Origins;
use super::proxies::Proxies;
use super::secret::{Secret, SecretFiles};
use super::values::{self, prefix, seconds, switch, text, whole};

/// Real-time events for the dashboards of CrecheBooks: from Redis to the browsers of the right centre.
///
/// Every variable is also a flag, and a flag wins. Secrets belong in variables or files, since
/// everyone on the machine sees flags.
#[derive(Debug, clap::Parser)]
#[command(name = "gateway", version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("GIT_COMMIT"), ")"))]
pub(super) struct Cli {
    /// What to do; `serve` when left out.
    #[command(subcommand)]
    pub(super) command: Option<Command>,

    #[command(flatten)]
    pub(super) variables: Variables,
}

/// What the binary can be asked to do.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Serve dashboards (the default).
    Serve,
    /// Serve a simulated centre, with no Redis and no set-up, and print the address to open. On loopback unless LISTEN is given, since
    /// the demo hands out tokens; with a signing key of its own.
    Demo(DemoOptions),
    /// Validate the configuration, load the keys, open the ports, reach Postgres and Redis, and look at rights, views and indexes: one
    /// line for each thing, and for each fault what to write instead.
    Check,
    /// Ask /healthz of INTERNAL_LISTEN; exit 0 when the gateway there is alive. For containers' health checks.
    Healthcheck,
    /// Bring the schema `dashboard` of the database up to date with this binary.
    Migrate(MigrateOptions),
    /// Print a token signed with JWT_SECRET, to try things with; or say what is wrong with a token.
    Token(TokenOptions),
}

/// What the demo shows.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct DemoOptions {
    /// Show the centre of this reference billing API (on the same DATABASE_URL) instead of a simulated one; the page's payments are
    /// recorded there.
    #[arg(long, value_name = "URL", value_parser = http_url)]
    pub billing_api: Option<reqwest::Url>,
}

fn http_url(raw: &str) -> Result<reqwest::Url, String> {
    let url: reqwest::Url = raw.parse().map_err(|error| format!("is no URL: {error}"))?;
    if url.scheme() == "http" { Ok(url) } else { Err("must begin with http://".to_owned()) }
}

/// What is migrated.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct MigrateOptions {
    /// Also create the reference billing tables (schema `billing`) and the two views over them.
    #[arg(long)]
    pub reference: bool,
}

/// What the minted token says, or which token to judge.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct TokenOptions {
    /// A tenant the token is good for; may be given several times.
    #[arg(long = "tenant", required_unless_present = "explain", conflicts_with = "explain", value_name = "ID")]
    pub tenants: Vec<TenantId>,

    /// The user the token speaks for.
    #[arg(long, value_name = "USER", value_parser = text(256))]
    pub sub: Option<String>,

    /// Seconds until the token expires.
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = seconds(1..=31_536_000))]
    pub ttl: Duration,

    /// Print no token: say what this one tells, and which rule of this configuration it breaks. `-` reads it from standard input.
    #[arg(long, value_name = "JWT|-")]
    pub explain: Option<String>,
}

/// Every variable and flag, each read by a rule of its own.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Variables {
    /// Where browsers connect.
    #[arg(long, env, value_name = "ADDRESS", default_value = "0.0.0.0:8080", value_parser = values::address)]
    pub(super) listen: SocketAddr,

    /// Where metrics, health and the publish API answer; never behind the load balancer.
    #[arg(long, env, value_name = "ADDRESS", default_value = "127.0.0.1:9090", value_parser = values::address)]
    pub(super) internal_listen: SocketAddr,

    /// Redis, as redis://, redis-sentinel:// or redis-cluster://, with rediss for TLS; without it one instance serves from
    /// memory. Also REDIS_URL_FILE.
    #[arg(long, env, value_name = "URL", hide_env_values = true)]
    pub(super) redis_url: Option<Secret>,

    /// What every name in Redis begins with.
    #[arg(long, env, value_name = "PREFIX", default_value = "dash", value_parser = prefix)]
    pub(super) redis_prefix: String,

    /// Postgres, as postgres://; without it there are no snapshots and no outbox. Without `sslmode` another host than this one must
    /// show a certificate that is valid for its name (verify-full). Also DATABASE_URL_FILE.
    #[arg(long, env, value_name = "URL", hide_env_values = true)]
    pub(super) database_url: Option<Secret>,

    /// Events of a tenant that may wait in the outbox; more are condensed into one `metrics_updated`.
    #[arg(long, env, value_name = "EVENTS", default_value = "50", value_parser = whole::<u32>(1..=100_000))]
    pub(super) outbox_condense_after: u32,

    #[command(flatten)]
    pub(super) jwt: JwtVariables,

    #[command(flatten)]
    pub(super) limits: Limits,

    /// Web origins that may connect, separated by commas, or `*`.
    #[arg(long, env, value_name = "ORIGINS", default_value = "*")]
    pub(super) allowed_origins: Origins,

    /// Load balancers whose word about a client's address is taken (X-Forwarded-For, or Forwarded): addresses and networks, separated
    /// by commas. Nobody's when left out.
    #[arg(long, env, value_name = "NETWORKS")]
    pub(super) trusted_proxies: Option<Proxies>,

    /// Off: sockets are told to refresh from the snapshot instead. The rollback plan.
    #[arg(
        long, env,
        value_name = "true|false", default_value = "true", value_parser = switch, action = clap::ArgAction::Set
    )]
    pub(super) realtime_dashboard: bool,

    /// The key of the publish API, at least 32 bytes, or several, one a line; what needs it is closed when left out. Also
    /// PUBLISH_API_KEY_FILE.
    #[arg(long, env, value_name = "KEY", hide_env_values = true)]
    pub(super) publish_api_key: Option<Secret>,

    #[command(flatten)]
    pub(super) log: LogSettings,

    #[command(flatten)]
    pub(super) files: SecretFiles,
}

/// Three ways to give keys, of which one may be used, and the rules for claims.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct JwtVariables {
    /// The shared key of HS256, at least 32 bytes, or several, one a line, the current first. Also JWT_SECRET_FILE.
    #[arg(long = "jwt-secret", env = "JWT_SECRET", value_name = "KEY", hide_env_values = true)]
    pub(super) secret: Option<Secret>,

    /// A public key in PEM: RSA means RS256, a P-256 or P-384 curve ES256 or ES384, Ed25519 EdDSA.
    #[arg(long = "jwt-public-key-file", env = "JWT_PUBLIC_KEY_FILE", value_name = "PATH", value_parser = values::path)]
    pub(super) public_key_file: Option<PathBuf>,

    /// A set of public keys (JWKS): a file, or an https:// address that is read again as keys change.
    #[arg(long = "jwt-jwks", env = "JWT_JWKS", value_name = "PATH|URL", value_parser = text(2048))]
    pub(super) jwks: Option<String>,

    #[command(flatten)]
    pub(super) claims: ClaimRules,
}

/// Reads the arguments, the first of which is the program's name; variables fill what they leave out.
pub(super) fn parse<A>(mut command_line: clap::Command, args: A) -> Result<(Cli, ArgMatches), ConfigError>
where
    A: IntoIterator,
    A::Item: Into<OsString> + Clone,
{
    command_line
        .try_get_matches_from_mut(args)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)))
        .map_err(|error| ConfigError::from_clap(&error, &command_line))
}

/// Flags are good before and after the subcommand.
pub(super) fn command_line() -> clap::Command {
    Cli::command().mut_args(|arg| arg.global(true))
}

/// The names of all our variables.
pub(super) fn variables() -> Vec<String> {
    let command_line = command_line();
    let names = command_line.get_arguments().filter_map(clap::Arg::get_env);
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}
