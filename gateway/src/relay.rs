//! The relay publishes the rows of the outbox: one leader among all gateways of a database, a tenant's rows in the order in which they
//! became visible, each at least once to Redis and exactly once to clients.
//!
//! This file has the loop around the leader's terms: the relay stands by until it leads, and leads until it can't.

mod leader;
mod rows;
mod upkeep;

use std::time::Duration;

use publisher::internals::{LogThrottle, Term};
use sqlx::postgres::PgConnectOptions;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::Settings;
use crate::engine::Engine;
use crate::metrics::relay::RelayMetrics;
use crate::shutdown::Shutdown;
pub use leader::RelayConfig;
use leader::{Leader, Resigned};
use rows::{NoSession, Session};

/// How often who stands by tries to lead: a leader that dies is succeeded within this, and its events still come in time (500 ms).
const TRY: Duration = Duration::from_millis(200);

/// How often a pooler is looked at again that pools by transaction: it can be configured again while the gateway runs.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// How long a leader that was cut off from Redis stands back: several times as long as the others take to lead.
fn stand_back() -> Duration {
    TRY * rand::random_range(3..=6)
}

/// Starts this instance's relay. What is returned is cancelled when the relay has ended.
pub fn start(
    database: &PgConnectOptions,
    engine: &Engine,
    settings: &Settings,
    shutdown: &Shutdown,
) -> CancellationToken {
    let config = RelayConfig {
        condense_after: settings.outbox_condense_after as usize,
        events_per_second: settings.limits.events_per_second as usize,
    };
    let relay = Relay::new(database.clone(), engine.clone(), config);
    let ended = CancellationToken::new();
    let (end, stop) = (ended.clone().drop_guard(), shutdown.stop());
    shutdown.spawn(async move {
        relay.run(stop).await;
        drop(end);
    });
    ended
}

/// Publishes the outbox. Every instance of a cluster runs one; an advisory lock in the database makes one of them the leader. Only a login
/// with UPDATE on `dashboard.relay` can lead, or keep another from it.
///
/// The connection must be direct, or pooled by session: a lock and a LISTEN belong to a session.
pub struct Relay {
    options: PgConnectOptions,
    engine: Engine,
    config: RelayConfig,
    metrics: RelayMetrics,
}

impl Relay {
    /// A relay of this database into `engine`.
    pub fn new(options: PgConnectOptions, engine: Engine, config: RelayConfig) -> Self {
        let options = options.application_name("crechebooks-relay");
        Self { options, engine, config, metrics: RelayMetrics::register() }
    }

    /// Works until `stop`; then what is being published is finished and marked, and the lock is given back.
    pub async fn run(self, stop: CancellationToken) {
        let mut seen = Term::default();
        let mut throttle = LogThrottle::default();
        while !stop.is_cancelled() {
            let pause = match self.stand_by(seen, &stop).await {
                Ok(None) => return,
                Ok(Some((session, term))) => {
                    // Without Redis the gateways hand the lead round every few seconds.
                    if throttle.is_due("leading") {
                        info!(%term, "leading the relay");
                    }
                    self.metrics.leads(true);
                    let leader =
                        Leader::new(&self.options, &self.engine, self.config, &self.metrics, &mut throttle, term);
                    let resigned = leader.lead(session, &stop).await;
                    self.metrics.leads(false);
                    match resigned {
                        Resigned::Stopped => return,
                        Resigned::Superseded(by) => {
                            warn!(%term, %by, "a later leader has been here, standing by");
                            seen = by;
                            TRY
                        }
                        Resigned::CutOff => {
                            if throttle.is_due("cut off") {
                                warn!(%term, "Redis can't be reached, the lead of the relay is given up");
                            }
                            stand_back()
                        }
                        Resigned::Lost(error) => {
                            warn!(%term, %error, "the relay's session is lost, standing by");
                            TRY
                        }
                    }
                }
                Err(error) => {
                    match &error {
                        error if !throttle.is_due(&error.to_string()) => {
                            debug!(%error, "the outbox can't be reached")
                        }
                        NoSession::Pooled(_) => warn!(%error, "the relay can't lead, and the rows of the outbox wait"),
                        NoSession::Database(error) => warn!(%error, "the outbox can't be reached, its rows wait"),
                    }
                    if matches!(error, NoSession::Pooled(_)) { LOOK_AGAIN } else { TRY }
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Tries to lead until it does; `None` when it is to stop.
    async fn stand_by(&self, seen: Term, stop: &CancellationToken) -> Result<Option<(Session, Term)>, NoSession> {
        let mut session = Session::open(&self.options).await?;
        loop {
            if let Some(term) = session.lead(seen).await? {
                return Ok(Some((session, term)));
            }
            tokio::select! {
                () = sleep(TRY) => {}
                () = stop.cancelled() => return Ok(None),
            }
        }
    }
}
