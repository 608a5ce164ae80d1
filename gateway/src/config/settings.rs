//! What was checked: the variables and flags as a whole, as the parts of the gateway take them.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::ArgMatches;
use clap::parser::ValueSource;
use publisher::ConnectError;
use publisher::internals::{database, topology::RedisUrl};
use sqlx::postgres::PgConnectOptions;

use super::cli::{self, Command, JwtVariables, Variables};
use super::error::ConfigError;
use super::groups::{ClaimRules, Limits, LogSettings};
use super::origins::Origins;
use super::proxies::Proxies;
use super::secret::Secret;
use super::{descriptors, near_miss, warnings};

/// What other programs call DATABASE_URL. Without our own name for it, such a variable is a mistake.
const DATABASE_URL_ELSEWHERE: [&str; 4] = ["DB_URL", "PG_URL", "POSTGRES_URL", "POSTGRESQL_URL"];

/// The checked configuration. It can't be printed, since it holds secrets.
pub struct Settings {
    /// The public port.
    pub listen: SocketAddr,
    /// The internal port.
    pub internal_listen: SocketAddr,
    /// `None`: one instance serves from memory.
    pub redis: Option<RedisAddress>,
    /// What every name in Redis begins with.
    pub redis_prefix: String,
    /// `None`: no snapshots and no outbox.
    pub database: Option<PgConnectOptions>,
    /// Events of a tenant that may wait in the outbox without being condensed.
    pub outbox_condense_after: u32,
    /// Which tokens are accepted.
    pub jwt: JwtSettings,
    /// Numbers and times.
    pub limits: Limits,
    /// Web origins that may connect.
    pub origins: Origins,
    /// Load balancers that are trusted to name a client's address.
    pub proxies: Proxies,
    /// Off, sockets are told to poll the snapshot instead.
    pub realtime: bool,
    /// Keys of the publish API.
    pub api_keys: Option<Secret>,
    /// The log.
    pub log: LogSettings,
    /// Values that can be used and are rarely meant, a line each.
    pub warnings: Vec<String>,
}

/// `REDIS_URL`, read.
#[derive(Clone)]
pub struct RedisAddress {
    /// For connections of the gateway's own.
    pub url: RedisUrl,
    /// For the publisher, which reads its address itself.
    pub text: Secret,
}

/// Which tokens are accepted.
#[derive(Debug, Clone)]
pub struct JwtSettings {
    /// Not every command needs keys.
    pub keys: Option<KeySource>,
    /// What the claims must say.
    pub claims: ClaimRules,
}

/// Where the keys come from that tokens are checked with.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// `JWT_SECRET`.
    Secret(Secret),
    /// `JWT_PUBLIC_KEY_FILE`.
    PublicKeyFile(PathBuf),
    /// `JWT_JWKS`: a path or an address.
    Jwks(String),
}

impl Settings {
    /// Reads the process' variables and arguments. `--help` and `--version` are answered here, and end the process.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn from_env_and_args() -> Result<(Command, Self), ConfigError> {
        let variables = cli::variables();
        near_miss::refuse(std::env::vars_os(), &variables)?;
        // clap would not say which one.
        if let Some(variable) =
            variables.iter().find(|name| std::env::var_os(name).is_some_and(|value| value.to_str().is_none()))
        {
            return Err(ConfigError::new(variable, "must be UTF-8"));
        }
        let (cli, matches) = cli::parse(cli::command_line(), std::env::args_os())?;
        let (command, settings) = Self::check(cli.command.unwrap_or(Command::Serve), cli.variables, &matches)?;
        if matches!(command, Command::Serve | Command::Demo(_) | Command::Check) {
            descriptors::reserve(settings.limits.max_connections)?;
        }
        if settings.database.is_none() && matches!(command, Command::Serve | Command::Check) {
            near_miss::refuse_other_names("DATABASE_URL", &DATABASE_URL_ELSEWHERE, std::env::vars_os())?;
        }
        Ok((command, settings))
    }

    /// Checks what was typed.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub(super) fn check(
        command: Command,
        mut variables: Variables,
        matches: &ArgMatches,
    ) -> Result<(Command, Self), ConfigError> {
        let secret_flags = warnings::secret_flags(&variables, matches);
        if matches!(command, Command::Demo(_)) && matches.value_source("listen") == Some(ValueSource::DefaultValue) {
            // The demo hands a token to every browser that asks for one.
            variables.listen.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        variables.read_secret_files()?;
        let (listen, internal_listen) = (variables.listen, variables.internal_listen);
        if listen.port() == internal_listen.port() && listen.port() != 0 {
            return Err(ConfigError::with_value(
                "INTERNAL_LISTEN",
                &internal_listen.to_string(),
                format!("needs a port of its own, {} is LISTEN's", listen.port()),
            ));
        }
        let redis = variables.redis_url.map(RedisAddress::read).transpose()?;
        let database = variables.database_url.map(|url| database_address(&url)).transpose()?;
        if let Some(keys) = &variables.publish_api_key {
            keys.check_keys("PUBLISH_API_KEY")?;
        }
        let jwt = JwtSettings::check(variables.jwt)?;
        if matches!(command, Command::Serve | Command::Check) {
            jwt.keys()?;
        }
        let origins = variables.allowed_origins;
        let parts = warnings::Parts {
            secret_flags,
            listen,
            origins: &origins,
            claims: &jwt.claims,
            database: database.as_ref(),
            redis: redis.as_ref().map(|redis| &redis.url),
        };
        let settings = Self {
            warnings: warnings::of(parts),
            listen,
            internal_listen,
            redis,
            redis_prefix: variables.redis_prefix,
            database,
            outbox_condense_after: variables.outbox_condense_after,
            jwt,
            limits: variables.limits,
            origins,
            proxies: variables.trusted_proxies.unwrap_or_default(),
            realtime: variables.realtime_dashboard,
            api_keys: variables.publish_api_key,
            log: variables.log,
        };
        Ok((command, settings))
    }
}

impl Variables {
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
}

impl RedisAddress {
    /// The error never repeats the address: a password may be in it.
    fn read(text: Secret) -> Result<Self, ConfigError> {
        let url = RedisUrl::parse(text.expose()).map_err(|error| match error {
            ConnectError::Url(rule) => ConfigError::new("REDIS_URL", rule),
            other => ConfigError::new("REDIS_URL", other),
        })?;
        Ok(Self { url, text })
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

fn database_address(url: &Secret) -> Result<PgConnectOptions, ConfigError> {
    database::options(url.expose()).map_err(|rule| ConfigError::new("DATABASE_URL", rule))
}

impl JwtSettings {
    fn check(variables: JwtVariables) -> Result<Self, ConfigError> {
        let JwtVariables { secret, public_key_file, jwks, claims } = variables;
        let sources = [
            secret.map(|secret| ("JWT_SECRET", KeySource::Secret(secret))),
            public_key_file.map(|path| ("JWT_PUBLIC_KEY_FILE", KeySource::PublicKeyFile(path))),
            jwks.map(|source| ("JWT_JWKS", KeySource::Jwks(source))),
        ];
        let mut given = sources.into_iter().flatten();
        let keys = given.next();
        if let (Some((one, _)), Some((other, _))) = (&keys, given.next()) {
            let rule = format!("{one} is given too; tokens are checked with one source of keys");
            return Err(ConfigError::new(other, rule));
        }
        let keys = keys.map(|(_, keys)| keys);
        if let Some(KeySource::Secret(secret)) = &keys {
            secret.check_keys("JWT_SECRET")?;
        }
        Ok(Self { keys, claims })
    }

    /// The source of keys.
    ///
    /// # Errors
    /// When none is configured.
    pub fn keys(&self) -> Result<&KeySource, ConfigError> {
        let rule = "give this, JWT_PUBLIC_KEY_FILE or JWT_JWKS: without a key no token can be checked";
        self.keys.as_ref().ok_or_else(|| ConfigError::new("JWT_SECRET", rule))
    }
}
