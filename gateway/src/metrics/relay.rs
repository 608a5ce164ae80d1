//! The relay's metrics. A gateway whose relay does not lead shows them as zero.

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

/// Handles of the relay's metrics.
pub struct RelayMetrics {
    leader: Gauge,
    pending: Gauge,
    lag: Gauge,
    published: Counter,
    condensed: Counter,
}

impl RelayMetrics {
    /// Resolves every handle.
    pub fn register() -> Self {
        describe_gauge!("relay_leader", "1 where the relay's leader runs");
        describe_gauge!("relay_pending", "Rows of the outbox that wait to be published");
        describe_gauge!("relay_lag_seconds", Unit::Seconds, "Age of the oldest row that waits");
        describe_counter!("relay_published_total", "Rows of the outbox that were published");
        describe_counter!("relay_condensed_total", "Rows of the outbox that were condensed into a metrics_updated");
        Self {
            leader: gauge!("relay_leader"),
            pending: gauge!("relay_pending"),
            lag: gauge!("relay_lag_seconds"),
            published: counter!("relay_published_total"),
            condensed: counter!("relay_condensed_total"),
        }
    }

    /// The relay leads from now on, or not any more.
    pub fn leads(&self, leads: bool) {
        self.leader.set(f64::from(u8::from(leads)));
        if !leads {
            self.waiting(0, 0.0);
        }
    }

    /// This number of rows waits, the oldest of them for this long.
    pub fn waiting(&self, rows: i64, lag_seconds: f64) {
        self.pending.set(rows as f64);
        self.lag.set(lag_seconds);
    }

    /// Rows were published.
    pub fn published(&self, rows: usize) {
        self.published.increment(rows as u64);
    }

    /// Rows were condensed.
    pub fn condensed(&self, rows: usize) {
        self.condensed.increment(rows as u64);
    }
}
