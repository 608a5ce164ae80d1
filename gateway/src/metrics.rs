//! Every metric of the gateway. Dashboards and alerts use these names and no others.
//!
//! Handles are resolved once: the hot path looks up no name and no label. Callers speak of facts.

pub mod relay;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use publisher::DashboardEventType;
use publisher::internals::{Message, MessageType};

/// From 0.1 ms to 10 s, dense where the promise (500 ms) and the usual (1 ms) lie.
const LATENCY_BUCKETS: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1.0,
    2.5, 10.0,
];
/// From a page that was closed at once to a tab that is open all week.
const CONNECTION_BUCKETS: &[f64] =
    &[1.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 604_800.0];

/// Installs the process' recorder, for [`Metrics::register`] and for the publisher library.
///
/// # Errors
/// When one is installed already.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("gateway_connection_seconds".into()), CONNECTION_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), LATENCY_BUCKETS)?;
    Ok(builder.install_recorder()?)
}

/// Handles of all metrics; cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Handles>);

struct Handles {
    connections: Gauge,
    connections_max: Gauge,
    unauthenticated: Gauge,
    tenants: Gauge,
    tasks: Gauge,
    draining: Gauge,
    redis_up: Gauge,
    subscriptions_pending: Gauge,
    redis_reconnects: Counter,
    probe_failures: Counter,
    received: ByType,
    deliveries: ByType,
    latency: Histogram,
    connection_seconds: Histogram,
    slow_consumers: Counter,
    heartbeat_timeouts: Counter,
    gaps_filled: Counter,
    gaps_resync: Counter,
    recovered: Counter,
    not_recovered: Counter,
    joined: Counter,
    log_lines_dropped: Counter,
}

/// A counter for each known type of event, and one for all unknown types: a name that another program chose makes no time series.
struct ByType {
    known: [Counter; DashboardEventType::ALL.len()],
    other: Counter,
}

impl ByType {
    fn of(name: &'static str) -> Self {
        Self {
            known: DashboardEventType::ALL.map(|kind| counter!(name, "type" => kind.as_str())),
            other: counter!(name, "type" => "other"),
        }
    }

    fn counter(&self, kind: &MessageType) -> &Counter {
        match kind {
            MessageType::Known(known) => &self.known[*known as usize],
            MessageType::Other(_) => &self.other,
        }
    }
}

impl Metrics {
    /// Resolves every handle, so that each metric is there from the start, at zero.
    pub fn register(max_connections: usize) -> Self {
        describe();
        gauge!("gateway_build_info", "version" => env!("CARGO_PKG_VERSION"), "commit" => env!("GIT_COMMIT")).set(1.0);
        for result in HANDSHAKE_RESULTS {
            counter!("gateway_handshakes_total", "result" => result).absolute(0);
        }
        for code in BAD_MESSAGE_CODES {
            counter!("gateway_bad_messages_total", "code" => code).absolute(0);
        }
        for reason in ["expired", "revoked", "wrong_signature", "unknown_key"] {
            counter!("gateway_tokens_refused_total", "reason" => reason).absolute(0);
        }
        for reason in API_KEY_REFUSALS {
            counter!("gateway_api_keys_refused_total", "reason" => reason).absolute(0);
        }
        counter!("gateway_http_requests_total", "status" => "200").absolute(0);
        counter!("gateway_disconnects_total", "reason" => "client").absolute(0);
        let handles = Handles {
            connections: gauge!("gateway_connections"),
            connections_max: gauge!("gateway_connections_max"),
            unauthenticated: gauge!("gateway_unauthenticated"),
            tenants: gauge!("gateway_tenants"),
            tasks: gauge!("gateway_tasks"),
            draining: gauge!("gateway_draining"),
            redis_up: gauge!("gateway_redis_up"),
            subscriptions_pending: gauge!("gateway_subscriptions_pending"),
            redis_reconnects: counter!("gateway_redis_reconnects_total"),
            probe_failures: counter!("gateway_probe_failures_total"),
            received: ByType::of("gateway_events_received_total"),
            deliveries: ByType::of("gateway_deliveries_total"),
            latency: histogram!("gateway_delivery_latency_seconds"),
            connection_seconds: histogram!("gateway_connection_seconds"),
            slow_consumers: counter!("gateway_slow_consumers_total"),
            heartbeat_timeouts: counter!("gateway_heartbeat_timeouts_total"),
            gaps_filled: counter!("gateway_gaps_total", "outcome" => "filled"),
            gaps_resync: counter!("gateway_gaps_total", "outcome" => "resync"),
            recovered: counter!("gateway_recoveries_total", "result" => "recovered"),
            not_recovered: counter!("gateway_recoveries_total", "result" => "snapshot"),
            joined: counter!("gateway_joins_total", "result" => "joined"),
            log_lines_dropped: counter!("gateway_log_lines_dropped_total"),
        };
        handles.connections_max.set(max_connections as f64);
        Self(Arc::new(handles))
    }

    /// Sockets whose token is verified came or went.
    pub fn connections(&self, change: i8) {
        self.0.connections.increment(f64::from(change));
    }

    /// Sockets whose token is not verified yet came or went.
    pub fn unauthenticated(&self, change: i8) {
        self.0.unauthenticated.increment(f64::from(change));
    }

    /// Rooms were opened or closed.
    pub fn tenants(&self, change: i8) {
        self.0.tenants.increment(f64::from(change));
    }

    /// Tasks alive in the runtime.
    pub fn tasks(&self, count: usize) {
        self.0.tasks.set(count as f64);
    }

    /// Lines of the log that were dropped since the start.
    pub fn log_lines_dropped(&self, count: u64) {
        self.0.log_lines_dropped.absolute(count);
    }

    /// The drain has begun.
    pub fn draining(&self) {
        self.0.draining.set(1.0);
    }

    /// Whether delivery through the engine is proved to work.
    pub fn engine_up(&self, up: bool) {
        self.0.redis_up.set(f64::from(u8::from(up)));
    }

    /// Subscriptions that the server has not acknowledged yet.
    pub fn subscriptions_pending(&self, count: usize) {
        self.0.subscriptions_pending.set(count as f64);
    }

    /// The subscriber's connection was made again.
    pub fn redis_reconnected(&self) {
        self.0.redis_reconnects.increment(1);
    }

    /// A probe did not come back in time.
    pub fn probe_failed(&self) {
        self.0.probe_failures.increment(1);
    }

    /// A handshake ended; `result` is one of a few fixed words.
    pub fn handshake(&self, result: &'static str) {
        counter!("gateway_handshakes_total", "result" => result).increment(1);
    }

    /// A join was answered; with whether it was recovered, when it resumed.
    pub fn joined(&self, recovered: Option<bool>) {
        self.0.joined.increment(1);
        match recovered {
            Some(true) => self.0.recovered.increment(1),
            Some(false) => self.0.not_recovered.increment(1),
            None => {}
        }
    }

    /// A join was refused; `result` is one of a few fixed words.
    pub fn join_refused(&self, result: &'static str) {
        counter!("gateway_joins_total", "result" => result).increment(1);
    }

    /// A token was refused; `reason` is one of a few fixed words.
    pub fn token_refused(&self, reason: &str) {
        counter!("gateway_tokens_refused_total", "reason" => reason.to_owned()).increment(1);
    }

    /// A key of the publish API was refused; `reason` is one of [`API_KEY_REFUSALS`].
    pub fn api_key_refused(&self, reason: &'static str) {
        counter!("gateway_api_keys_refused_total", "reason" => reason).increment(1);
    }

    /// A message of a browser was refused; `code` is one of [`BAD_MESSAGE_CODES`].
    pub fn message_refused(&self, code: &'static str) {
        counter!("gateway_bad_messages_total", "code" => code).increment(1);
    }

    /// A request was answered with this status, on either port; an incomplete request may be refused with it.
    pub fn answered(&self, status: StatusCode) {
        counter!("gateway_http_requests_total", "status" => status.as_str().to_owned()).increment(1);
    }

    /// A socket closed after this long; `reason` is one of a few fixed words.
    pub fn disconnected(&self, reason: &'static str, after: Duration) {
        counter!("gateway_disconnects_total", "reason" => reason).increment(1);
        self.0.connection_seconds.record(after);
    }

    /// A socket is closed because its client showed no sign of life.
    pub fn heartbeat_timed_out(&self) {
        self.0.heartbeat_timeouts.increment(1);
    }

    /// An event came from the engine.
    pub fn event_received(&self, kind: &MessageType) {
        self.0.received.counter(kind).increment(1);
    }

    /// These events were handed to the kernel, each for so many sockets.
    pub fn delivered(&self, messages: &[Message], sockets: usize) {
        if sockets == 0 {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        for message in messages {
            self.0.deliveries.counter(&message.event_type).increment(sockets as u64);
            // Two clocks: the gateway's can be behind that of Redis.
            self.0.latency.record(Duration::from_micros(now.saturating_sub(message.published_micros)));
        }
    }

    /// A socket read too slowly.
    pub fn slow_consumer(&self) {
        self.0.slow_consumers.increment(1);
    }

    /// Lost events were found in the log.
    pub fn gap_filled(&self) {
        self.0.gaps_filled.increment(1);
    }

    /// Lost events were beyond the log, and the room was told.
    pub fn gap_resync(&self) {
        self.0.gaps_resync.increment(1);
    }
}

/// Every word that [`Metrics::api_key_refused`] is called with.
pub const API_KEY_REFUSALS: [&str; 3] = ["missing", "malformed", "wrong"];

/// Every word that [`Metrics::handshake`] is called with.
pub const HANDSHAKE_RESULTS: [&str; 5] = ["accepted", "refused", "forbidden", "full", "draining"];

/// Every word that [`Metrics::message_refused`] is called with.
pub const BAD_MESSAGE_CODES: [&str; 2] = ["unknown_event", "bad_message"];

fn describe() {
    describe_gauge!("gateway_build_info", "The version and the commit that run; always 1");
    describe_gauge!("gateway_connections", "Open sockets whose token was verified");
    describe_gauge!("gateway_connections_max", "MAX_CONNECTIONS");
    describe_gauge!("gateway_unauthenticated", "Open sockets that have yet to join");
    describe_gauge!("gateway_tenants", "Rooms, each with one subscription");
    describe_gauge!("gateway_tasks", "Tasks alive in the async runtime");
    describe_gauge!("gateway_draining", "1 while shutting down");
    describe_gauge!("gateway_redis_up", "1 while what is published is proved to come back");
    describe_gauge!("gateway_subscriptions_pending", "Subscriptions wanted less acknowledged");
    describe_counter!("gateway_redis_reconnects_total", "Times the subscriber connection was made again");
    describe_counter!("gateway_probe_failures_total", "Probes that did not come back in time");
    describe_counter!("gateway_handshakes_total", "WebSocket handshakes by result");
    describe_counter!("gateway_joins_total", "Joins by result");
    describe_counter!("gateway_tokens_refused_total", "Tokens refused, at joins and for snapshots, by reason");
    describe_counter!("gateway_api_keys_refused_total", "Requests refused for want of a PUBLISH_API_KEY, by reason");
    describe_counter!("gateway_bad_messages_total", "Messages of browsers that were refused, by code");
    describe_counter!("gateway_http_requests_total", "HTTP requests of both ports, by status");
    describe_counter!("gateway_disconnects_total", "Closed sockets by reason");
    describe_histogram!("gateway_connection_seconds", "How long sockets were open");
    describe_counter!("gateway_events_received_total", "Events received from the engine");
    describe_counter!("gateway_deliveries_total", "Events handed to the kernel, once for each socket");
    describe_histogram!(
        "gateway_delivery_latency_seconds",
        "Published to handed to the kernel, for the room's last socket"
    );
    describe_counter!("gateway_slow_consumers_total", "Sockets closed because they read too slowly");
    describe_counter!("gateway_gaps_total", "Gaps found in a tenant's stream");
    describe_counter!("gateway_recoveries_total", "Joins that resumed, by result");
    describe_counter!("gateway_log_lines_dropped_total", "Log lines dropped: the output failed, or read too slowly");
    describe_counter!("gateway_heartbeat_timeouts_total", "Sockets closed because they showed no sign of life");
}
