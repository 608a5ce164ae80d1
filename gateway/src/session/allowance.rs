//! How much a browser may say: a token bucket, generous for a dashboard and small for a flood.

use tokio::time::Instant;

/// Messages that may come at once.
const BURST: f64 = 128.0;
/// Messages a second in the long run.
const RATE: f64 = 32.0;

/// What is left of a socket's allowance.
#[derive(Debug)]
pub struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, at: now }
    }

    /// Takes from it; false when it is not enough.
    pub fn spend(&mut self, cost: u32, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * RATE;
        self.at = now;
        self.left = (self.left + earned).min(BURST) - f64::from(cost);
        self.left >= 0.0
    }
}
