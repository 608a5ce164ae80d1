//! A running gateway: its parts in the order in which they are built, and what ends it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::clock::Clock;
use crate::config::{ConfigError, INTERNAL_SEATS, Settings, public_seats};
use crate::database;
use crate::engine::{self, Engine};
use crate::http::internal::Internal;
use crate::http::public::Public;
use crate::http::{self, Limits};
use crate::hub::{Hub, RoomLimits};
use crate::logging;
use crate::metrics::{self, Metrics};
use crate::metrics_refresh::MetricsRefresh;
use crate::relay;
use crate::session::access::Access;
use crate::session::audit::Audit;
use crate::session::context::{self, Context, SocketIds};
use crate::session::slots::Slots;
use crate::shutdown::{Shutdown, Signals};
use crate::snapshots::{Books, Snapshots};
use crate::socket::link::QueueLimits;
use crate::systemd;
use crate::tokens::{Tokens, kick_lifetime};

/// How often the exporter's histograms are tidied, and slow gauges read.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long the exit waits for a relay that is handing over.
const RELAY_LIMIT: Duration = Duration::from_secs(2);

/// A gateway with its ports open, not yet serving.
pub(super) struct Instance {
    pub(super) engine: Engine,
    pub(super) shutdown: Shutdown,
    metrics: Metrics,
    signals: Signals,
    public: Port,
    internal: Port,
    /// The time over which the sockets are closed at the end.
    drain: Duration,
    /// Ends when the relay has.
    relay: Option<CancellationToken>,
}

/// An open port and what it will serve.
struct Port {
    listener: TcpListener,
    routes: Router,
    limits: Limits,
}

impl Instance {
    /// Builds the parts and opens the ports. `books` are a simulated centre's, in place of a database's.
    ///
    /// # Errors
    /// What keeps the gateway from starting: Redis being down is not among it.
    pub(super) async fn start(settings: &Settings, books: Option<Books>) -> anyhow::Result<Self> {
        let limits = &settings.limits;
        // Before anything is visible from outside: from then on a signal means a drain.
        let signals = Signals::listen()?;
        let exporter = metrics::install()?;
        let metrics = Metrics::register(limits.max_connections);
        let shutdown = Shutdown::default();
        let database = database::open(settings.database.as_ref()).await?;
        let tokens = Tokens::load(&settings.jwt).await?;
        let public = open("LISTEN", settings.listen)?;
        let internal = open("INTERNAL_LISTEN", settings.internal_listen)?;

        let (engine, feed) = engine::connect(settings, &metrics).await?;
        let snapshots = books.map(Snapshots::of_books).or_else(|| database.map(Snapshots::new));
        let refresh = snapshots.clone().map(|snapshots| MetricsRefresh::start(engine.clone(), snapshots, &shutdown));
        let live = snapshots.clone().zip(refresh);
        let hub = Hub::start(
            &engine,
            live.as_ref(),
            RoomLimits::of(limits),
            kick_lifetime(&settings.jwt.claims),
            &metrics,
            &shutdown,
        );
        shutdown.spawn(feed.run(hub.clone(), metrics.clone()));
        let relay = database.map(|database| relay::start(database, &engine, settings, &shutdown));

        let audit = Audit::new(metrics.clone());
        let access = Access::new(tokens.clone(), hub.clone(), audit.clone());
        let slots = Slots::new(limits.max_connections, limits.max_connections_per_user, metrics.clone());
        let context = Arc::new(Context {
            access: access.clone(),
            hub: hub.clone(),
            slots: slots.clone(),
            queues: Arc::new(QueueLimits::new(limits.send_queue_events, limits.send_queue_bytes)),
            limits: context::Limits::of(settings),
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
            clock: Clock::start(&shutdown),
            sockets: SocketIds::default(),
        });
        shutdown.spawn(async move { tokens.keep_fresh().await });
        shutdown.spawn(upkeep(exporter.clone(), metrics.clone(), audit.clone()));

        let internal = Port {
            listener: internal,
            routes: http::internal::routes(
                Internal {
                    access: access.clone(),
                    audit: audit.clone(),
                    engine: engine.clone(),
                    hub,
                    slots,
                    shutdown: shutdown.clone(),
                    api_keys: settings.api_keys.clone(),
                    realtime: settings.realtime,
                },
                exporter,
            ),
            limits: Limits::of(settings, INTERNAL_SEATS),
        };
        let public = Port {
            listener: public,
            routes: http::public::routes(Public {
                context,
                origins: settings.origins.clone(),
                audit,
                access,
                engine: settings.realtime.then(|| engine.clone()),
                snapshots,
            }),
            limits: Limits::of(settings, public_seats(limits.max_connections)),
        };
        Ok(Self { engine, shutdown, metrics, signals, public, internal, drain: limits.drain, relay })
    }

    /// The public port's address.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn address(&self) -> std::io::Result<SocketAddr> {
        self.public.listener.local_addr()
    }

    /// Serves until a signal, with `more` on the public port, then drains.
    ///
    /// # Errors
    /// When the ports' addresses can't be read.
    pub(super) async fn serve(self, more: Router) -> anyhow::Result<()> {
        let Self { shutdown, metrics, signals, public, internal, drain, relay, engine: _ } = self;
        let (public_address, internal_address) = (public.listener.local_addr()?, internal.listener.local_addr()?);

        // Both stay open through the drain: new sockets are refused with an answer, and /readyz says why.
        for Port { listener, routes, limits } in [internal, Port { routes: public.routes.merge(more), ..public }] {
            shutdown.spawn(http::serve(listener, routes, limits, metrics.clone()));
        }
        info!(public = %public_address, internal = %internal_address, "listening");
        systemd::ready();
        shutdown.on_signal(signals, drain, &metrics).await;
        if let Some(relay) = relay {
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

async fn upkeep(exporter: PrometheusHandle, metrics: Metrics, audit: Audit) {
    let runtime = tokio::runtime::Handle::current();
    let mut tick = interval(UPKEEP);
    loop {
        tick.tick().await;
        exporter.run_upkeep();
        metrics.tasks(runtime.metrics().num_alive_tasks());
        metrics.log_lines_dropped(logging::dropped());
        audit.log_overdue();
    }
}
