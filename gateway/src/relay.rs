//! The relay publishes the rows of the outbox. One gateway of a database leads; the leader publishes a tenant's rows in the order in which
//! they became visible, each at least once to Redis and exactly once to clients.
//!
//! This file has the loop around the leader's terms: the relay stands by until it leads, and leads until it can't.

mod condensing;
mod contact;
mod delivery;
mod leader;
mod listener;
mod moves;
mod rows;
mod session;
mod tenants;
mod turn;
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
use leader::{Leader, Resigned};
use session::{NoSession, Session};
use tenants::RelayConfig;

/// The time between two attempts to lead. A leader that dies is succeeded within this time, so that its events still come in time
/// (500 ms).
const RETRY: Duration = Duration::from_millis(200);

/// The time between two looks at a pooler that pools by transaction: its configuration can change while the gateway runs.
const POOLER_RETRY: Duration = Duration::from_secs(10);

/// A leader that was cut off from Redis leaves the lead to others for this time: several times as long as the others take to lead.
fn stand_back() -> Duration {
    RETRY * rand::random_range(3..=6)
}

/// Starts this gateway's relay. The returned token is cancelled when the relay has ended.
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

/// Publishes the outbox. Every gateway of a database runs a relay; an advisory lock in the database makes one of them the leader. Only a
/// login with UPDATE on `dashboard.relay` can lead, or keep others from it.
///
/// The connection must be direct, or pooled by session: a lock and a LISTEN belong to a session.
struct Relay {
    options: PgConnectOptions,
    engine: Engine,
    config: RelayConfig,
    metrics: RelayMetrics,
}

impl Relay {
    /// A relay of this database into `engine`.
    fn new(options: PgConnectOptions, engine: Engine, config: RelayConfig) -> Self {
        let options = options.application_name("crechebooks-relay");
        Self { options, engine, config, metrics: RelayMetrics::register() }
    }

    /// Works until `stop`. Then the leader finishes its deliveries, marks their rows and gives the lock back.
    async fn run(self, stop: CancellationToken) {
        let mut seen = Term::default();
        let mut throttle = LogThrottle::default();
        while !stop.is_cancelled() {
            let pause = match self.stand_by(seen, &stop).await {
                Ok(None) => return,
                Ok(Some((session, term))) => {
                    // Without Redis the lead changes every few seconds.
                    if throttle.is_due("leads") {
                        info!(%term, "relay leads");
                    }
                    self.metrics.leads(true);
                    let leader =
                        Leader::new(&self.options, &self.engine, self.config, &self.metrics, &mut throttle, term);
                    let resigned = leader.lead(session, &stop).await;
                    self.metrics.leads(false);
                    match resigned {
                        Resigned::Stopped => return,
                        Resigned::Superseded(by) => {
                            warn!(%term, %by, "relay superseded by a later leader, standing by");
                            seen = by;
                            RETRY
                        }
                        Resigned::CutOff => {
                            if throttle.is_due("cut off") {
                                warn!(%term, "relay gives up the lead: Redis can't be reached");
                            }
                            stand_back()
                        }
                        Resigned::Lost(error) => {
                            warn!(%term, %error, "relay session lost, standing by");
                            RETRY
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
                    if matches!(error, NoSession::Pooled(_)) { POOLER_RETRY } else { RETRY }
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
                () = sleep(RETRY) => {}
                () = stop.cancelled() => return Ok(None),
            }
        }
    }
}
