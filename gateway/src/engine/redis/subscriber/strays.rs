//! Events that came, or may have come, to a server that no longer holds their tenants.

use std::collections::HashMap;
use std::time::Duration;

use publisher::TenantId;
use publisher::internals::{Epoch, Message};
use tokio::time::Instant;

/// Between two times that the rooms are told: many events there are one resync.
const PAUSE: Duration = Duration::from_millis(500);

/// The tenants, with the epoch of their events if it is known, and one.
pub struct Strays {
    seen: HashMap<TenantId, Option<Epoch>>,
    told_at: Instant,
}

impl Default for Strays {
    fn default() -> Self {
        Self { seen: HashMap::new(), told_at: Instant::now() }
    }
}

impl Strays {
    /// An event came from there.
    pub fn come_of(&mut self, tenant: &TenantId, message: &Message) {
        let seen = self.seen.entry(tenant.clone()).or_insert_with(|| Some(message.epoch.clone()));
        seen.take_if(|epoch| *epoch != message.epoch);
    }

    /// Events of these tenants may have been published there.
    pub fn may_be_of<'a>(&mut self, tenants: impl IntoIterator<Item = &'a TenantId>) {
        self.seen.extend(tenants.into_iter().map(|tenant| (tenant.clone(), None)));
    }

    /// A tenant's room is closed.
    pub fn forget(&mut self, tenant: &TenantId) {
        self.seen.remove(tenant);
    }

    /// What the rooms are to be told now.
    pub fn due(&mut self) -> HashMap<TenantId, Option<Epoch>> {
        if self.told_at.elapsed() < PAUSE {
            return HashMap::new();
        }
        self.told_at = Instant::now();
        std::mem::take(&mut self.seen)
    }
}
