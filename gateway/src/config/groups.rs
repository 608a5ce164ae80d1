//! Settings that are checked one by one as they are read: they are the same in what was typed and in what was checked.

use std::time::Duration;

use super::values::{self, LogFormat, seconds, text, whole};

/// A small gateway has few tenants: a quarter of its sockets would be too few for one of them.
const LEAST_PER_TENANT: usize = 100;

/// Numbers and times.
#[derive(Debug, Clone, clap::Args)]
pub struct Limits {
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
}

impl Limits {
    /// Sockets that one tenant may hold on this instance.
    pub fn max_connections_per_tenant(&self) -> usize {
        self.max_connections_per_tenant.unwrap_or((self.max_connections / 4).max(LEAST_PER_TENANT))
    }
}

/// What the claims of a token must say.
#[derive(Debug, Clone, clap::Args)]
pub struct ClaimRules {
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

/// The log.
#[derive(Debug, Clone, clap::Args)]
pub struct LogSettings {
    /// What is logged: a level, or a filter such as `info,gateway::hub=debug`.
    #[arg(long = "log", env = "LOG", value_name = "FILTER", default_value = "info", value_parser = values::log_filter)]
    pub filter: String,

    /// How it is written: text, or json with one object a line.
    #[arg(long = "log-format", env = "LOG_FORMAT", value_name = "text|json", default_value = "text")]
    pub format: LogFormat,
}
