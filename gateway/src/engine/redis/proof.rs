//! The proof of delivery that `/readyz` looks at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When it was last proved that what is published comes back on the subscription.
#[derive(Clone)]
pub struct Proof {
    start: Instant,
    /// Milliseconds since `start`, plus one; 0 for never.
    at: Arc<AtomicU64>,
}

impl Proof {
    /// None yet.
    pub fn new() -> Self {
        Self { start: Instant::now(), at: Arc::default() }
    }

    /// It was proved just now.
    pub fn renew(&self) {
        self.at.store(self.start.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// When it last was.
    pub fn last(&self) -> Option<Instant> {
        let at = self.at.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.start + Duration::from_millis(at))
    }
}
