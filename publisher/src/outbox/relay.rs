//! The relay: stands by until it leads, leads until it can't, for ever.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Sink, Term,
    leader::{Leader, Resigned},
    rows::Session,
};
use crate::metrics::RelayMetrics;

/// How often who stands by tries to lead: a leader that dies is succeeded within this, and its events still come in time (500 ms).
const TRY: Duration = Duration::from_millis(200);

/// What a relay keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayConfig {
    /// Rows of a tenant that may wait; more are condensed.
    pub condense_after: usize,
    /// Events of a tenant in any second: more rows than that are not taken up at once.
    pub events_per_second: usize,
}

/// Publishes the outbox. Every instance of a cluster runs one; an advisory lock in the database makes one of them the leader.
///
/// The connection must be direct, or pooled by session: a lock and a LISTEN belong to a session.
pub struct Relay<S> {
    options: PgConnectOptions,
    sink: S,
    config: RelayConfig,
    metrics: RelayMetrics,
}

impl<S: Sink> Relay<S> {
    /// A relay of this database into `sink`.
    pub fn new(options: PgConnectOptions, sink: S, config: RelayConfig) -> Self {
        let options = options.application_name("crechebooks-relay");
        Self { options, sink, config, metrics: RelayMetrics::register() }
    }

    /// Works until `stop`; then what is being published is finished and marked, and the lock is given back.
    pub async fn run(self, stop: CancellationToken) {
        let mut seen = Term::default();
        let mut complained = false;
        while !stop.is_cancelled() {
            match self.stand_by(seen, &stop).await {
                Ok(None) => return,
                Ok(Some((session, term))) => {
                    complained = false;
                    info!(%term, "leading the relay");
                    self.metrics.leads(true);
                    let leader = Leader::new(&self.options, &self.sink, self.config, &self.metrics, term);
                    let resigned = leader.lead(session, &stop).await;
                    self.metrics.leads(false);
                    match resigned {
                        Resigned::Stopped => return,
                        Resigned::Succeeded(by) => {
                            warn!(%term, %by, "a later leader has been here, standing by");
                            seen = by;
                        }
                        Resigned::Lost(error) => warn!(%term, %error, "the relay's session is lost, standing by"),
                    }
                }
                Err(error) if complained => debug!(%error, "the outbox can't be reached"),
                Err(error) => {
                    complained = true;
                    warn!(%error, "the outbox can't be reached, its rows wait");
                }
            }
            tokio::select! {
                () = sleep(TRY) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Tries to lead until it does; `None` when it is to stop.
    async fn stand_by(&self, seen: Term, stop: &CancellationToken) -> sqlx::Result<Option<(Session, Term)>> {
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
