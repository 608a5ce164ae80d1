//! The kicks in force: which tokens they revoke.
//!
//! A kick revokes every token of a tenant or a user that was issued up to and including its second, for as long as such a token can
//! live. Its moment is of the engine's clock. Only the latest kick of a tenant or a user counts, so that one entry is enough for it.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use publisher::TenantId;
use tracing::warn;

use crate::engine::{Kick, Kicked, MOST_KICKS};

/// All kicks that this gateway has heard of. They stay when Redis loses them in a failover.
pub struct Kicks {
    /// How long a token can live.
    lifetime: Duration,
    revoked: RwLock<Revoked>,
}

#[derive(Default)]
struct Revoked {
    tenants: HashMap<TenantId, Entry>,
    users: HashMap<Box<str>, Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    /// The kick's moment, in milliseconds of the engine's clock.
    at: u64,
    /// From then on every token that it revokes has expired.
    until: Instant,
}

impl Entry {
    fn revokes(self, issued_at: u64) -> bool {
        issued_at <= self.at / 1000 && Instant::now() < self.until
    }
}

impl Kicks {
    /// No kick yet; each will count for `lifetime`.
    pub fn new(lifetime: Duration) -> Self {
        Self { lifetime, revoked: RwLock::default() }
    }

    /// Adds kicks, at this time of the engine's clock in milliseconds; returns those that are new.
    pub fn hear(&self, kicks: Vec<Kick>, now: u64) -> Vec<Kick> {
        if kicks.is_empty() {
            return kicks;
        }
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        revoked.forget_old();
        let life = |kick: &Kick| self.lifetime.saturating_sub(Duration::from_millis(now.saturating_sub(kick.at)));
        let is_news = |kick: &Kick| revoked.take(kick, Instant::now() + life(kick));
        kicks.into_iter().filter(is_news).collect()
    }

    /// The tenant or user whose kick revokes a token with this `sub`, shown for this tenant, issued in this second (0 if unknown).
    pub fn revoking(&self, tenant: &TenantId, subject: Option<&str>, issued_at: u64) -> Option<Kicked> {
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        if revoked.tenants.get(tenant).is_some_and(|entry| entry.revokes(issued_at)) {
            return Some(Kicked::Tenant(tenant.clone()));
        }
        let user = subject.filter(|user| revoked.users.get(*user).is_some_and(|entry| entry.revokes(issued_at)));
        user.map(|user| Kicked::User(user.into()))
    }

    /// All kicks, to be given to a Redis that may have lost some.
    pub fn all(&self) -> Vec<Kick> {
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        let tenants = revoked.tenants.iter().map(|(tenant, entry)| (Kicked::Tenant(tenant.clone()), entry.at));
        let users = revoked.users.iter().map(|(user, entry)| (Kicked::User(user.clone()), entry.at));
        tenants.chain(users).map(|(who, at)| Kick { who, at }).collect()
    }
}

impl Revoked {
    /// Adds a kick; false when a later one is known, or when there are too many.
    fn take(&mut self, kick: &Kick, until: Instant) -> bool {
        let full = self.tenants.len() + self.users.len() >= MOST_KICKS;
        let known = match &kick.who {
            Kicked::Tenant(tenant) => self.tenants.get_mut(tenant),
            Kicked::User(user) => self.users.get_mut(user),
        };
        let entry = Entry { at: kick.at, until };
        match known {
            Some(known) if known.at >= kick.at => return false,
            Some(known) => *known = entry,
            None if full => {
                warn!(most = MOST_KICKS, "too many kicks are in force, one is ignored");
                return false;
            }
            None => match &kick.who {
                Kicked::Tenant(tenant) => drop(self.tenants.insert(tenant.clone(), entry)),
                Kicked::User(user) => drop(self.users.insert(user.clone(), entry)),
            },
        }
        true
    }

    fn forget_old(&mut self) {
        let now = Instant::now();
        self.tenants.retain(|_, entry| now < entry.until);
        self.users.retain(|_, entry| now < entry.until);
    }
}

#[cfg(test)]
mod tests;
