//! Counts and logs what is refused: one line a minute for each reason, with the count.
//!
//! A line names no token and no user. It quotes text of clients: cut, and without control characters.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use publisher::internals::LogThrottle;
use publisher::internals::sanitised;
use tracing::warn;

use crate::metrics::Metrics;
use crate::tokens::{Hints, TokenError};

const TOKEN: &str = "token refused";
const API_KEY: &str = "API key refused";
const ORIGIN: &str = "origin refused";

/// The throttle of such lines; cheap to clone.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    metrics: Metrics,
    throttle: Mutex<LogThrottle>,
}

impl Audit {
    pub fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Inner { metrics, throttle: Mutex::default() }))
    }

    /// A token was refused, which came from this address if one is known.
    pub fn token_refused(&self, token: &str, error: TokenError, from: Option<IpAddr>) {
        let reason = error.reason();
        self.0.metrics.token_refused(&reason);
        if let Some(count) = self.count(TOKEN, &reason) {
            let Hints { issuer, audience, kid } = Hints::of(token);
            warn!(reason, count, address = shown(from), issuer, audience, kid, "{TOKEN}");
        }
    }

    /// A token was refused that a kick has revoked.
    pub fn token_revoked(&self, from: Option<IpAddr>) {
        const REASON: &str = "revoked";
        self.0.metrics.token_refused(REASON);
        if let Some(count) = self.count(TOKEN, REASON) {
            warn!(reason = REASON, count, address = shown(from), "{TOKEN}");
        }
    }

    /// A key of the publish API was refused.
    pub fn api_key_refused(&self, reason: &'static str, from: Option<IpAddr>) {
        self.0.metrics.api_key_refused(reason);
        if let Some(count) = self.count(API_KEY, reason) {
            warn!(reason, count, address = shown(from), "{API_KEY}");
        }
    }

    /// A page of this origin may not connect.
    pub fn origin_refused(&self, origin: &str, from: Option<IpAddr>) {
        const REASON: &str = "not allowed";
        if let Some(count) = self.count(ORIGIN, REASON) {
            warn!(reason = REASON, count, address = shown(from), origin = sanitised(origin), "{ORIGIN}");
        }
    }

    /// Says what was counted since, where the minute of its last line is over.
    pub fn log_overdue(&self) {
        for (cause, count) in self.throttle().overdue() {
            let (what, reason) = cause.split_once(SEPARATOR).unwrap_or((&cause, ""));
            warn!(reason, count, "{what}");
        }
    }

    fn count(&self, what: &str, reason: &str) -> Option<u64> {
        self.throttle().count(&format!("{what}{SEPARATOR}{reason}"))
    }

    fn throttle(&self) -> MutexGuard<'_, LogThrottle> {
        self.0.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SEPARATOR: char = ':';

/// An address for a log line.
pub fn shown(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}
