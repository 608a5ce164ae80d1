//! The configuration: one documented struct, read once at start from variables and flags, checked before anything runs.

mod descriptors;
mod error;
mod near_miss;
mod origins;
mod proxies;
mod secret;
mod values;
mod warnings;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};
use publisher::TenantId;

pub use descriptors::{INTERNAL_SEATS, public_seats};
pub use error::ConfigError;
pub use origins::Origins;
pub use proxies::Proxies;
pub use secret::Secret;
pub use values::LogFormat;

use secret::SecretFiles;
use values::{prefix, seconds, switch, text, whole};

/// A small gateway has few tenants, and one of them must not feel the default.
const LEAST_PER_TENANT: usize = 100;

/// What other programs call DATABASE_URL. Beside none of ours such a variable is ours under another name.
const DATABASE_URL_ELSEWHERE: [&str; 4] = ["DB_URL", "PG_URL", "POSTGRES_URL", "POSTGRESQL_URL"];

/// Real-time events for the dashboards of CrecheBooks: from Redis to the browsers of the right centre.
///
/// Every variable is also a flag, and a flag wins. Secrets belong in variables or files, since
/// everyone on the machine sees flags.
#[derive(Debug, clap::Parser)]
#[command(name = "gateway", version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("GIT_COMMIT"), ")"))]
pub struct Cli {
    /// What to do; `serve` when left out.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// How to do it.
    #[command(flatten)]
    pub config: Config,
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

/// Everything that can be configured.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Where browsers connect.
    #[arg(long, env, value_name = "ADDRESS", default_value = "0.0.0.0:8080", value_parser = values::address)]
    pub listen: SocketAddr,

    /// Where metrics, health and the publish API answer; never behind the load balancer.
    #[arg(long, env, value_name = "ADDRESS", default_value = "127.0.0.1:9090", value_parser = values::address)]
    pub internal_listen: SocketAddr,

    /// Redis, as redis://, redis-sentinel:// or redis-cluster://, with rediss for TLS; without it one instance serves from
    /// memory. Also REDIS_URL_FILE.
    #[arg(long, env, value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<Secret>,

    /// What every name in Redis begins with.
    #[arg(long, env, value_name = "PREFIX", default_value = "dash", value_parser = prefix)]
    pub redis_prefix: String,

    /// Postgres, as postgres://; without it there are no snapshots and no outbox. Without `sslmode` another host than this one must
    /// show a certificate that is valid for its name (verify-full). Also DATABASE_URL_FILE.
    #[arg(long, env, value_name = "URL", hide_env_values = true)]
    pub database_url: Option<Secret>,

    /// Events of a tenant that may wait in the outbox; more are condensed into one `metrics_updated`.
    #[arg(long, env, value_name = "EVENTS", default_value = "50", value_parser = whole::<u32>(1..=100_000))]
    pub outbox_condense_after: u32,

    /// Which tokens are believed.
    #[command(flatten)]
    pub jwt: JwtConfig,

    /// Sockets this instance accepts; the next one is answered 503.
    #[arg(long, env, value_name = "SOCKETS", default_value = "1000", value_parser = whole::<usize>(1..=10_000_000))]
    pub max_connections: usize,

    /// Sockets one tenant may hold on this instance; when left out, a quarter of MAX_CONNECTIONS, but not under 100.
    #[arg(long, env, value_name = "SOCKETS", value_parser = whole::<usize>(1..=10_000_000))]
    max_connections_per_tenant: Option<usize>,

    /// Sockets one user (`sub`; else one token) may hold on this instance.
    #[arg(long, env, value_name = "SOCKETS", default_value = "32", value_parser = whole::<u32>(1..=10_000_000))]
    pub max_connections_per_user: u32,

    /// Events a tenant receives in any window of one second, at most.
    #[arg(long, env, value_name = "EVENTS", default_value = "10", value_parser = whole::<u32>(1..=1000))]
    pub events_per_second: u32,

    /// How often a socket hears a heartbeat; one that stays silent for longer is closed.
    #[arg(
        long = "heartbeat-seconds", env = "HEARTBEAT_SECONDS",
        value_name = "SECONDS", default_value = "30", value_parser = seconds(1..=3600)
    )]
    pub heartbeat: Duration,

    /// How long a socket may stay without a tenant.
    #[arg(
        long = "join-timeout-seconds", env = "JOIN_TIMEOUT_SECONDS",
        value_name = "SECONDS", default_value = "10", value_parser = seconds(1..=600)
    )]
    pub join_timeout: Duration,

    /// The longest message a browser may send; a token has to fit.
    #[arg(long, env, value_name = "BYTES", default_value = "16384", value_parser = whole::<usize>(1024..=1_048_576))]
    pub max_message_bytes: usize,

    /// Events that may wait for a slow socket before it is closed, to resume later.
    #[arg(long, env, value_name = "EVENTS", default_value = "256", value_parser = whole::<u32>(1..=65_536))]
    pub send_queue_events: u32,

    /// Bytes that may wait for a slow socket before it is closed; one larger message may wait alone.
    #[arg(long, env, value_name = "BYTES", default_value = "1048576", value_parser = whole::<u32>(65_536..=1_073_741_824))]
    pub send_queue_bytes: u32,

    /// Events of a tenant kept for sockets that come back.
    #[arg(long, env, value_name = "EVENTS", default_value = "512", value_parser = whole::<u32>(1..=100_000))]
    pub recovery_events: u32,

    /// How long they are kept.
    #[arg(
        long = "recovery-seconds", env = "RECOVERY_SECONDS",
        value_name = "SECONDS", default_value = "300", value_parser = seconds(1..=86_400)
    )]
    pub recovery: Duration,

    /// How long a tenant stays subscribed after its last dashboard closed, so that a page reload costs nothing.
    #[arg(
        long = "unsubscribe-linger-seconds", env = "UNSUBSCRIBE_LINGER_SECONDS",
        value_name = "SECONDS", default_value = "5", value_parser = seconds(0..=3600)
    )]
    pub unsubscribe_linger: Duration,

    /// The time over which a stopping instance closes its sockets.
    #[arg(
        long = "drain-seconds", env = "DRAIN_SECONDS",
        value_name = "SECONDS", default_value = "30", value_parser = seconds(0..=3600)
    )]
    pub drain: Duration,

    /// Web origins that may connect, separated by commas, or `*`.
    #[arg(long, env, value_name = "ORIGINS", default_value = "*")]
    pub allowed_origins: Origins,

    /// Load balancers whose word about a client's address is taken (X-Forwarded-For, or Forwarded): addresses and networks, separated
    /// by commas. Nobody's when left out.
    #[arg(long, env, value_name = "NETWORKS")]
    pub trusted_proxies: Option<Proxies>,

    /// Off: sockets are told to refresh from the snapshot instead. The rollback plan.
    #[arg(
        long, env,
        value_name = "true|false", default_value = "true", value_parser = switch, action = clap::ArgAction::Set
    )]
    pub realtime_dashboard: bool,

    /// The key of the publish API, at least 32 bytes, or several, one a line; what needs it is closed when left out. Also
    /// PUBLISH_API_KEY_FILE.
    #[arg(long, env, value_name = "KEY", hide_env_values = true)]
    pub publish_api_key: Option<Secret>,

    /// What is logged: a level, or a filter such as `info,gateway::hub=debug`.
    #[arg(long, env, value_name = "FILTER", default_value = "info", value_parser = values::log_filter)]
    pub log: String,

    /// How it is written: text, or json with one object a line.
    #[arg(long, env, value_name = "text|json", default_value = "text")]
    pub log_format: LogFormat,

    #[command(flatten)]
    files: SecretFiles,

    /// Secrets that the list of processes shows.
    #[arg(skip)]
    secret_flags: Vec<&'static str>,
}

/// Which tokens are believed: one source of keys, and what the claims must say.
#[derive(Debug, Clone, clap::Args)]
pub struct JwtConfig {
    /// The shared key of HS256, at least 32 bytes, or several, one a line, the current first. Also JWT_SECRET_FILE.
    #[arg(long = "jwt-secret", env = "JWT_SECRET", value_name = "KEY", hide_env_values = true)]
    pub secret: Option<Secret>,

    /// A public key in PEM: RSA means RS256, a P-256 or P-384 curve ES256 or ES384, Ed25519 EdDSA.
    #[arg(long = "jwt-public-key-file", env = "JWT_PUBLIC_KEY_FILE", value_name = "PATH", value_parser = values::path)]
    pub public_key_file: Option<PathBuf>,

    /// A set of public keys (JWKS): a file, or an https:// address that is read again as keys change.
    #[arg(long = "jwt-jwks", env = "JWT_JWKS", value_name = "PATH|URL", value_parser = text(2048))]
    pub jwks: Option<String>,

    /// The issuer (`iss`) tokens must name; not looked at when left out.
    #[arg(long = "jwt-issuer", env = "JWT_ISSUER", value_name = "ISSUER", value_parser = text(1024))]
    pub issuer: Option<String>,

    /// The audience (`aud`) tokens must name; not looked at when left out.
    #[arg(long = "jwt-audience", env = "JWT_AUDIENCE", value_name = "AUDIENCE", value_parser = text(1024))]
    pub audience: Option<String>,

    /// The claim that names the tenant, or the tenants.
    #[arg(
        long = "jwt-tenant-claim", env = "JWT_TENANT_CLAIM",
        value_name = "CLAIM", default_value = "tenantId", value_parser = text(128)
    )]
    pub tenant_claim: String,

    /// How long a token may live from now, at most; one that expires later is refused. A kick is remembered for as long.
    #[arg(
        long = "jwt-max-lifetime-seconds", env = "JWT_MAX_LIFETIME_SECONDS",
        value_name = "SECONDS", default_value = "2592000", value_parser = seconds(60..=31_536_000)
    )]
    pub max_lifetime: Duration,
}

impl Config {
    /// Sockets one tenant may hold on this instance.
    pub fn max_connections_per_tenant(&self) -> usize {
        self.max_connections_per_tenant.unwrap_or((self.max_connections / 4).max(LEAST_PER_TENANT))
    }

    /// Reads the process' variables and arguments. `--help` and `--version` are answered here, and end the process.
    pub fn from_env_and_args() -> Result<(Command, Self), ConfigError> {
        let variables = variables();
        near_miss::refuse(std::env::vars_os(), &variables)?;
        // clap would not say which one.
        if let Some(variable) =
            variables.iter().find(|name| std::env::var_os(name).is_some_and(|value| value.to_str().is_none()))
        {
            return Err(ConfigError::new(variable, "must be UTF-8"));
        }
        let (command, config) = Self::from_args(std::env::args_os())?;
        if matches!(command, Command::Serve | Command::Demo(_) | Command::Check) {
            descriptors::reserve(config.max_connections)?;
        }
        if config.database_url.is_none() && matches!(command, Command::Serve | Command::Check) {
            near_miss::refuse_other_names("DATABASE_URL", &DATABASE_URL_ELSEWHERE, std::env::vars_os())?;
        }
        Ok((command, config))
    }

    /// The same from given arguments, the first of which is the program's name; variables fill what they leave out.
    pub fn from_args<A>(args: A) -> Result<(Command, Self), ConfigError>
    where
        A: IntoIterator,
        A::Item: Into<OsString> + Clone,
    {
        Self::parse(command_line(), args)
    }

    fn parse<A>(mut command_line: clap::Command, args: A) -> Result<(Command, Self), ConfigError>
    where
        A: IntoIterator,
        A::Item: Into<OsString> + Clone,
    {
        let (cli, matches) = command_line
            .try_get_matches_from_mut(args)
            .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)))
            .map_err(|error| ConfigError::from_clap(&error, &command_line))?;
        let command = cli.command.unwrap_or(Command::Serve);
        let mut config = cli.config;
        config.secret_flags = secret::given_as_flags(config.redis_url.as_ref(), config.database_url.as_ref(), &matches);
        if matches!(command, Command::Demo(_)) && matches.value_source("listen") == Some(ValueSource::DefaultValue) {
            // The demo hands a token to every browser that asks for one.
            config.listen.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        config.read_secret_files()?;
        config.check(&command)?;
        Ok((command, config))
    }

    fn read_secret_files(&mut self) -> Result<(), ConfigError> {
        let files = std::mem::take(&mut self.files);
        for (variable, secret, file) in [
            ("JWT_SECRET", &mut self.jwt.secret, files.jwt_secret_file),
            ("REDIS_URL", &mut self.redis_url, files.redis_url_file),
            ("DATABASE_URL", &mut self.database_url, files.database_url_file),
            ("PUBLISH_API_KEY", &mut self.publish_api_key, files.publish_api_key_file),
        ] {
            let Some(file) = file else { continue };
            if secret.is_some() {
                return Err(ConfigError::new(variable, format!("give this or {variable}_FILE, not both")));
            }
            *secret = Some(Secret::from_file(&format!("{variable}_FILE"), &file)?);
        }
        Ok(())
    }

    /// What no single value can tell.
    fn check(&self, command: &Command) -> Result<(), ConfigError> {
        if self.listen.port() == self.internal_listen.port() && self.listen.port() != 0 {
            return Err(ConfigError::with_value(
                "INTERNAL_LISTEN",
                &self.internal_listen.to_string(),
                format!("needs a port of its own, {} is LISTEN's", self.listen.port()),
            ));
        }
        if let Some(url) = &self.redis_url {
            values::redis_url(url.expose()).map_err(|rule| ConfigError::new("REDIS_URL", rule))?;
        }
        if let Some(url) = &self.database_url {
            publisher::internals::database::options(url.expose())
                .map_err(|rule| ConfigError::new("DATABASE_URL", rule))?;
        }
        if let Some(keys) = &self.publish_api_key {
            keys.check_keys("PUBLISH_API_KEY")?;
        }
        self.jwt.check(command)
    }
}

impl JwtConfig {
    fn check(&self, command: &Command) -> Result<(), ConfigError> {
        let sources = [
            ("JWT_SECRET", self.secret.is_some()),
            ("JWT_PUBLIC_KEY_FILE", self.public_key_file.is_some()),
            ("JWT_JWKS", self.jwks.is_some()),
        ];
        let mut given = sources.iter().filter(|(_, given)| *given).map(|(name, _)| *name);
        match (given.next(), given.next(), command) {
            (Some(one), Some(other), _) => {
                return Err(ConfigError::new(
                    other,
                    format!("{one} is given too; tokens are checked with one source of keys"),
                ));
            }
            (None, _, Command::Serve | Command::Check) => {
                return Err(ConfigError::new(
                    "JWT_SECRET",
                    "give this, JWT_PUBLIC_KEY_FILE or JWT_JWKS: without a key no token can be checked",
                ));
            }
            _ => {}
        }
        match &self.secret {
            Some(secret) => secret.check_keys("JWT_SECRET"),
            None => Ok(()),
        }
    }
}

/// Flags are good before and after the subcommand.
fn command_line() -> clap::Command {
    Cli::command().mut_args(|arg| arg.global(true))
}

/// The names of all our variables.
fn variables() -> Vec<String> {
    let command_line = command_line();
    let names = command_line.get_arguments().filter_map(clap::Arg::get_env);
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests;
