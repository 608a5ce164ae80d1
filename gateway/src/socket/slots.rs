//! Slots: how many sockets this instance holds, with those that have yet to join counted apart, so that whoever connects
//! without a token can't take the place of those who have one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::metrics::Metrics;

/// The slots of an instance.
#[derive(Clone)]
pub struct Slots(Arc<Counts>);

struct Counts {
    max: usize,
    verified: AtomicUsize,
    unverified: AtomicUsize,
    metrics: Metrics,
}

/// A socket's place; given back when it is dropped, wherever that happens.
pub struct Slot {
    slots: Slots,
    verified: bool,
}

impl Slots {
    /// `max` for sockets with a good token, and as many for those that have shown none.
    pub fn new(max: usize, metrics: Metrics) -> Self {
        Self(Arc::new(Counts { max, verified: AtomicUsize::new(0), unverified: AtomicUsize::new(0), metrics }))
    }

    /// Whether a socket with a good token would be refused.
    pub fn full(&self) -> bool {
        self.0.verified.load(Ordering::Relaxed) >= self.0.max
    }

    /// Takes a slot, unless all are taken. Without a good token, none is given either while it could not be used.
    pub fn take(&self, verified: bool) -> Option<Slot> {
        if !verified && self.full() {
            return None;
        }
        let take = |count| (count < self.0.max).then_some(count + 1);
        self.count(verified).fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        self.show(verified, 1);
        Some(Slot { slots: self.clone(), verified })
    }

    fn count(&self, verified: bool) -> &AtomicUsize {
        if verified { &self.0.verified } else { &self.0.unverified }
    }

    fn show(&self, verified: bool, change: i8) {
        if verified { self.0.metrics.connections(change) } else { self.0.metrics.unauthenticated(change) }
    }
}

impl Slot {
    /// The slot of a socket that has just shown a good token; `false` when none is left.
    pub fn verify(&mut self) -> bool {
        if self.verified {
            return true;
        }
        let slot = self.slots.take(true);
        let taken = slot.is_some();
        if let Some(slot) = slot {
            // The old place is given back as it is dropped.
            *self = slot;
        }
        taken
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.count(self.verified).fetch_sub(1, Ordering::Relaxed);
        self.slots.show(self.verified, -1);
    }
}
