//! What the leader knows of its tenants: which are busy, and which have more rows than are published one by one.

use std::collections::HashMap;
use std::time::Duration;

use publisher::TenantId;
use tokio::time::Instant;

use super::condensing::{ALERTS_KEPT, MetricsQuery};
use super::contact::Contact;
use super::turn::Batch;

/// A tenant's metrics are not queried for this time after there were none.
const WITHOUT_METRICS: Duration = Duration::from_secs(5);
/// A tenant's rows go out one by one for this time after they could not be condensed.
const ONE_BY_ONE: Duration = Duration::from_secs(30);
/// A flood counts as going on for this time after its last rows were condensed.
const FLOOD_GOES_ON: Duration = Duration::from_secs(2);

/// When the relay condenses, and how much it publishes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RelayConfig {
    /// Rows of a tenant that may wait; more are condensed.
    pub condense_after: usize,
    /// Events of a tenant in any second: no more rows than that are taken up at once.
    pub events_per_second: usize,
}

/// What is done with a tenant's batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// The tenant is busy; its rows are fetched again afterwards.
    Leave,
    Publish,
    Condense(MetricsQuery),
}

/// Why a tenant's backlog could not be condensed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotCondensed {
    /// Rows were refused; the others may be condensed at once.
    Refused,
    /// No row was fit for it.
    Nothing,
    /// The database failed.
    Failed,
}

/// What a busy tenant is busy with.
#[derive(Debug)]
enum Busy {
    Publishing,
    Condensing,
    /// It waits until this moment, since its limit is reached or Redis can't be reached.
    Parked(Instant),
}

/// The state of all tenants.
#[derive(Debug)]
pub(super) struct Tenants {
    config: RelayConfig,
    busy: HashMap<TenantId, Busy>,
    /// Tenants whose rows were all delivered; they are busy until the rows are marked.
    delivered: Vec<TenantId>,
    /// Tenants whose backlog was condensed lately. A smaller backlog of theirs is condensed too, so that the rest of a flood does not
    /// trickle out.
    flooded: Until,
    /// Tenants that had no metrics.
    without_metrics: Until,
    /// Tenants that could not be condensed.
    one_by_one: Until,
}

impl Tenants {
    pub fn new(config: RelayConfig) -> Self {
        Self {
            config,
            busy: HashMap::new(),
            delivered: Vec::new(),
            flooded: Until::default(),
            without_metrics: Until::default(),
            one_by_one: Until::default(),
        }
    }

    pub fn is_busy(&self, tenant: &TenantId) -> bool {
        self.busy.contains_key(tenant)
    }

    pub fn busy(&self) -> impl Iterator<Item = &TenantId> {
        self.busy.keys()
    }

    /// Decides what is done with a batch. Nothing is condensed only because Redis can't be reached.
    pub fn plan(&mut self, batch: &Batch, contact: &Contact) -> Plan {
        let Batch { tenant, rows, backlog, alerts } = batch;
        if self.is_busy(tenant) {
            return Plan::Leave;
        }
        let RelayConfig { condense_after, events_per_second } = self.config;
        let flooded = self.flooded.contains(tenant);
        let limit = if flooded { events_per_second.min(condense_after) } else { condense_after };
        let can_be_condensed = backlog > alerts || *alerts >= ALERTS_KEPT;
        if *backlog > limit && can_be_condensed && contact.answers() && !self.one_by_one.contains(tenant) {
            let without = self.without_metrics.contains(tenant);
            return Plan::Condense(if without { MetricsQuery::Skip } else { MetricsQuery::Run });
        }
        if flooded && *backlog <= rows.len() {
            self.flooded.remove(tenant);
        }
        Plan::Publish
    }

    pub fn publishing(&mut self, tenant: &TenantId) {
        self.busy.insert(tenant.clone(), Busy::Publishing);
    }

    pub fn condensing(&mut self, tenant: &TenantId) {
        self.busy.insert(tenant.clone(), Busy::Condensing);
    }

    pub fn park(&mut self, tenant: TenantId, wait: Duration) {
        self.busy.insert(tenant, Busy::Parked(Instant::now() + wait));
    }

    /// All rows of the tenant's batch were delivered.
    pub fn delivered(&mut self, tenant: TenantId) {
        self.delivered.push(tenant);
    }

    /// The rows of all deliveries are being marked.
    pub fn marked(&mut self) {
        for tenant in self.delivered.drain(..) {
            self.busy.remove(&tenant);
        }
    }

    /// The tenant's backlog was condensed, and it is busy with the row that took its place.
    pub fn condensed(&mut self, tenant: &TenantId) {
        self.flooded.insert(tenant, FLOOD_GOES_ON);
    }

    /// The tenant had no metrics.
    pub fn had_no_metrics(&mut self, tenant: &TenantId) {
        self.without_metrics.insert_new(tenant, WITHOUT_METRICS);
    }

    /// The tenant's backlog was not condensed. `poll` is the time until the next fetch.
    pub fn not_condensed(&mut self, tenant: &TenantId, why: NotCondensed, poll: Duration) {
        self.busy.remove(tenant);
        self.one_by_one.insert(
            tenant,
            match why {
                NotCondensed::Refused => Duration::ZERO,
                NotCondensed::Nothing => poll,
                NotCondensed::Failed => ONE_BY_ONE,
            },
        );
    }

    /// Frees the parked tenants whose time is over; whether there were any.
    pub fn unpark(&mut self) -> bool {
        let (now, before) = (Instant::now(), self.busy.len());
        self.busy.retain(|_, busy| !matches!(busy, Busy::Parked(until) if *until <= now));
        self.busy.len() < before
    }

    /// When the next parked tenant is free.
    pub fn next_unpark(&self) -> Option<Instant> {
        let parked = self.busy.values().filter_map(|busy| match busy {
            Busy::Parked(until) => Some(*until),
            Busy::Publishing | Busy::Condensing => None,
        });
        parked.min()
    }
}

/// A set of tenants, each of which stays in it for a time.
#[derive(Debug, Default)]
struct Until(HashMap<TenantId, Instant>);

impl Until {
    fn contains(&mut self, tenant: &TenantId) -> bool {
        let now = Instant::now();
        self.0.retain(|_, until| *until > now);
        self.0.contains_key(tenant)
    }

    fn insert(&mut self, tenant: &TenantId, time: Duration) {
        self.0.insert(tenant.clone(), Instant::now() + time);
    }

    /// Does not prolong the time of a tenant that is in the set.
    fn insert_new(&mut self, tenant: &TenantId, time: Duration) {
        self.0.entry(tenant.clone()).or_insert(Instant::now() + time);
    }

    fn remove(&mut self, tenant: &TenantId) {
        self.0.remove(tenant);
    }
}

#[cfg(test)]
mod tests;
