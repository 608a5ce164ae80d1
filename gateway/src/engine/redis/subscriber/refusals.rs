//! The tenants that a server won't subscribe to, or won't answer for: their trouble is not the others'.

use std::collections::HashMap;
use std::time::Duration;

use publisher::TenantId;
use publisher::internals::topology::is_elsewhere;
use tokio::time::Instant;

use crate::engine::Outage;
use crate::engine::redis::interruption::Interruption;
use crate::engine::redis::node::RETRY;

/// Between two questions about a tenant that the server refuses to answer. Shorter than an interruption that is reported, so that one
/// refusal is no outage.
const PAUSE: Duration = Duration::from_millis(500);

/// Whether a server refuses a tenant because it is on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// It is, or is on its way there.
    Yes,
    /// It is not.
    No,
}

impl Elsewhere {
    /// As its words say.
    pub fn by(refusal: &str) -> Self {
        if is_elsewhere(refusal) { Self::Yes } else { Self::No }
    }
}

/// They, and until when they are let alone.
#[derive(Default)]
pub struct Refusals(HashMap<TenantId, Refusal>);

struct Refusal {
    /// When the server is asked again; `None` from then on.
    until: Option<Instant>,
    /// Since when nothing is known of the tenant.
    interruption: Interruption,
}

impl Refusals {
    /// The server refuses a tenant, and is asked again after a pause.
    pub fn refuse(&mut self, tenant: &TenantId, elsewhere: Elsewhere) {
        let pause = if elsewhere == Elsewhere::Yes { RETRY } else { PAUSE };
        let now = Instant::now();
        let first = || Refusal { until: None, interruption: Interruption::begin(Some(now)) };
        self.0.entry(tenant.clone()).or_insert_with(first).until = Some(now + pause);
    }

    /// Whether a tenant is refused.
    pub fn contains(&self, tenant: &TenantId) -> bool {
        self.0.contains_key(tenant)
    }

    /// Whether the server isn't to be asked for a tenant now.
    pub fn is_paused(&self, tenant: &TenantId) -> bool {
        self.0.get(tenant).is_some_and(|refusal| refusal.until.is_some())
    }

    /// What a refused tenant's room was told.
    pub fn told(&self, tenant: &TenantId) -> Option<Outage> {
        self.0.get(tenant)?.interruption.told()
    }

    /// A tenant is not known to be refused any more; whether its room was told that it is.
    pub fn absolve(&mut self, tenant: &TenantId) -> bool {
        self.0.remove(tenant).is_some_and(|refusal| refusal.interruption.told().is_some())
    }

    /// All are asked for again at once.
    pub fn end_pauses(&mut self) {
        self.0.values_mut().for_each(|refusal| refusal.until = None);
    }

    /// The tenants whose pauses are over. Those that are not wanted any more are forgotten.
    pub fn pauses_over(&mut self, is_wanted: impl Fn(&TenantId) -> bool) -> Vec<TenantId> {
        let (now, mut over) = (Instant::now(), Vec::new());
        self.0.retain(|tenant, refusal| {
            if refusal.until.take_if(|until| *until <= now).is_some() {
                over.push(tenant.clone());
            }
            refusal.until.is_some() || is_wanted(tenant)
        });
        over
    }

    /// The rooms that should know that their tenants are refused; from now on they do.
    pub fn tell(&mut self, is_wanted: impl Fn(&TenantId) -> bool) -> Vec<(TenantId, Outage)> {
        let wanted = self.0.iter_mut().filter(|(tenant, _)| is_wanted(tenant));
        wanted.filter_map(|(tenant, refusal)| Some((tenant.clone(), refusal.interruption.tell()?))).collect()
    }
}
