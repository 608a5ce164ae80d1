//! `gateway serve`: builds the parts in order, serves until it is told to stop, and drains.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use publisher::PublisherConfig;
use sqlx::postgres::PgConnectOptions;
use tokio::net::TcpListener;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::config::{Config, ConfigError, INTERNAL_SEATS, public_seats};
use crate::database::{self, Found};
use crate::engine::memory::{MemoryEngine, MemoryLimits};
use crate::engine::redis::RedisEngine;
use crate::engine::{Engine, Feed};
use crate::http::internal::Internal;
use crate::http::public::Public;
use crate::http::{self, Limits};
use crate::hub::{Hub, RoomLimits};
use crate::logging;
use crate::metrics::{self, Metrics};
use crate::metrics_refresh::MetricsRefresh;
use crate::relay::{Relay, RelayConfig};
use crate::session::access::Access;
use crate::session::audit::Audit;
use crate::session::context;
use crate::session::slots::Slots;
use crate::shutdown::{Shutdown, Signals};
use crate::snapshots::{Books, Snapshots};
use crate::socket::link::QueueLimits;
use crate::systemd;
use crate::tokens::{LEEWAY, Tokens};

/// How often the exporter's histograms are tidied, and slow gauges read.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long the exit waits for a relay that is handing over.
const RELAY_LIMIT: Duration = Duration::from_secs(2);

/// Serves until a signal has been obeyed.
///
/// # Errors
/// What keeps the gateway from starting.
pub async fn run(config: Config) -> anyhow::Result<()> {
    logging::install(&config)?;
    let instance = Instance::start(config, None).await?;
    for warning in instance.config.warnings() {
        warn!("{warning}");
    }
    // The page asks every gateway whether it is a demo; a 404 would be an error in the browser's console.
    let no_demo = Router::new().route("/demo/token", get(async || StatusCode::NO_CONTENT));
    instance.serve(no_demo).await
}

/// A gateway with its ports open, not yet serving.
pub struct Instance {
    config: Config,
    pub(super) engine: Engine,
    pub(super) shutdown: Shutdown,
    metrics: Metrics,
    tokens: Tokens,
    audit: Audit,
    routes: Router,
    internal_routes: Router,
    public: TcpListener,
    internal: TcpListener,
    exporter: PrometheusHandle,
    signals: Signals,
    /// Ends when the relay has.
    relay: Option<CancellationToken>,
}

impl Instance {
    /// Builds the parts and opens the ports. `books` are a simulated centre's, in place of a database's.
    ///
    /// # Errors
    /// What keeps the gateway from starting: Redis being down is not among it.
    pub async fn start(config: Config, books: Option<Books>) -> anyhow::Result<Self> {
        // Before anything is visible from outside: from then on a signal means a drain.
        let signals = Signals::listen()?;
        let exporter = metrics::install()?;
        let metrics = Metrics::register(config.max_connections);
        let shutdown = Shutdown::default();
        let database = database(&config).await?;
        let tokens = Tokens::load(&config.jwt).await?;

        let public = open("LISTEN", config.listen)?;
        let internal = open("INTERNAL_LISTEN", config.internal_listen)?;

        let (engine, feed) = engine(&config, &metrics).await?;
        let limits = RoomLimits {
            heartbeat: config.heartbeat,
            linger: config.unsubscribe_linger,
            max_per_tenant: config.max_connections_per_tenant(),
        };
        let snapshots = books.map(Snapshots::of_books).or_else(|| database.as_ref().map(Snapshots::new));
        let live = snapshots.clone().map(|snapshots| {
            let figures = MetricsRefresh::start(engine.clone(), snapshots.clone(), &shutdown);
            (snapshots, figures)
        });
        let hub = Hub::start(&engine, live.as_ref(), limits, kicks_last(&config), &metrics, &shutdown);
        shutdown.spawn(feed.run(hub.clone(), metrics.clone()));
        let relay = database.map(|database| relay(database, &engine, &config, &shutdown));

        let slots = Slots::new(config.max_connections, config.max_connections_per_user, metrics.clone());
        let audit = Audit::new(metrics.clone());
        let access = Access::new(tokens.clone(), hub.clone(), audit.clone());
        let internal_routes = http::internal::routes(
            Internal {
                access: access.clone(),
                audit: audit.clone(),
                engine: engine.clone(),
                hub: hub.clone(),
                slots: slots.clone(),
                shutdown: shutdown.clone(),
                api_keys: config.publish_api_key.clone(),
                realtime: config.realtime_dashboard,
            },
            exporter.clone(),
        );
        let context = Arc::new(context::Context {
            access: access.clone(),
            hub,
            slots,
            queues: Arc::new(QueueLimits::new(config.send_queue_events, config.send_queue_bytes)),
            limits: context::Limits {
                heartbeat: config.heartbeat,
                join_timeout: config.join_timeout,
                max_message_bytes: config.max_message_bytes,
                realtime: config.realtime_dashboard,
            },
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
            clock: Clock::start(&shutdown),
            sockets: context::SocketIds::default(),
        });
        let routes = http::public::routes(Public {
            context,
            origins: config.allowed_origins.clone(),
            audit: audit.clone(),
            access,
            engine: config.realtime_dashboard.then(|| engine.clone()),
            snapshots,
        });
        Ok(Self {
            config,
            engine,
            shutdown,
            metrics,
            tokens,
            audit,
            routes,
            internal_routes,
            public,
            internal,
            exporter,
            signals,
            relay,
        })
    }

    /// The public port's address.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.public.local_addr()
    }

    /// Serves until a signal has been obeyed, with `more` on the public port.
    ///
    /// # Errors
    /// When the ports' addresses can't be read.
    pub async fn serve(self, more: Router) -> anyhow::Result<()> {
        let Self { config, shutdown, metrics, .. } = self;
        let (public_address, internal_address) = (self.public.local_addr()?, self.internal.local_addr()?);
        let user_timeout = 2 * config.heartbeat;
        let proxies = config.trusted_proxies.clone().unwrap_or_default();

        // Both stay open through the drain: new sockets are refused with an answer, and /readyz says why.
        let limits = Limits { seats: INTERNAL_SEATS, user_timeout, proxies: proxies.clone() };
        shutdown.spawn(http::serve(self.internal, self.internal_routes, limits, metrics.clone()));
        let limits = Limits { seats: public_seats(config.max_connections), user_timeout, proxies };
        shutdown.spawn(http::serve(self.public, self.routes.merge(more), limits, metrics.clone()));
        shutdown.spawn(upkeep(self.exporter, metrics.clone(), self.audit));
        let tokens = self.tokens;
        shutdown.spawn(async move { tokens.keep_fresh().await });

        info!(public = %public_address, internal = %internal_address, "listening");
        systemd::ready();
        shutdown.on_signal(self.signals, config.drain, &metrics).await;
        if let Some(relay) = self.relay {
            let _ = timeout(RELAY_LIMIT, relay.cancelled()).await;
        }
        info!("goodbye");
        Ok(())
    }
}

fn open(variable: &str, address: SocketAddr) -> Result<TcpListener, ConfigError> {
    let closed = |error| ConfigError::with_value(variable, &address.to_string(), http::why_closed(address, &error));
    http::listen(address).map_err(closed)
}

/// The database's address, once it is sure that it can be worked with, or that it is only away.
async fn database(config: &Config) -> anyhow::Result<Option<PgConnectOptions>> {
    let Some(url) = &config.database_url else { return Ok(None) };
    let options = database::options(url)?;
    match database::look(&options).await? {
        Found::Ready { views: true } => {}
        Found::Ready { views: false } => {
            warn!("the database has no views dashboard.metrics and dashboard.recent_payments: snapshots are null");
        }
        Found::Down(reason) => warn!(reason, "Postgres can't be reached: no snapshots, and the outbox waits"),
    }
    Ok(Some(options))
}

/// Starts this instance's relay; what is returned is cancelled when it has ended.
fn relay(database: PgConnectOptions, engine: &Engine, config: &Config, shutdown: &Shutdown) -> CancellationToken {
    let limits = RelayConfig {
        condense_after: config.outbox_condense_after as usize,
        events_per_second: config.events_per_second as usize,
    };
    let relay = Relay::new(database, engine.clone(), limits);
    let ended = CancellationToken::new();
    let (end, stop) = (ended.clone().drop_guard(), shutdown.stop());
    shutdown.spawn(async move {
        relay.run(stop).await;
        drop(end);
    });
    ended
}

/// How long a kick is remembered: for as long as a token can live that it revokes, clocks that differ included.
fn kicks_last(config: &Config) -> Duration {
    config.jwt.max_lifetime + 2 * LEEWAY
}

async fn engine(config: &Config, metrics: &Metrics) -> anyhow::Result<(Engine, Feed)> {
    let Some(url) = &config.redis_url else {
        metrics.engine_up(true);
        let limits = MemoryLimits {
            events_per_second: config.events_per_second,
            recovery_events: config.recovery_events as usize,
            recovery: config.recovery,
        };
        info!("no REDIS_URL: this instance serves alone, from memory");
        let (engine, feed) = MemoryEngine::new(limits);
        return Ok((Engine::Memory(engine), Feed::Memory(feed)));
    };
    let mut redis = PublisherConfig::new(url.expose());
    redis.prefix.clone_from(&config.redis_prefix);
    redis.events_per_second = config.events_per_second;
    redis.recovery_events = config.recovery_events;
    redis.recovery = config.recovery;
    // The HTTP API's share; billing code brings connections of its own.
    redis.connections = 2;
    let (engine, feed) = RedisEngine::connect(redis, kicks_last(config)).await.context("REDIS_URL")?;
    Ok((Engine::Redis(engine), Feed::Redis(feed)))
}

async fn upkeep(exporter: PrometheusHandle, metrics: Metrics, audit: Audit) {
    let runtime = tokio::runtime::Handle::current();
    let mut tick = interval(UPKEEP);
    loop {
        tick.tick().await;
        exporter.run_upkeep();
        metrics.tasks(runtime.metrics().num_alive_tasks());
        metrics.log_lines_dropped(logging::dropped());
        audit.say_overdue();
    }
}
