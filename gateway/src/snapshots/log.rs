//! The log lines about tenants' data, of which there could be very many.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use publisher::TenantId;
use tokio::time::Instant;
use tracing::warn;

use super::part::Part;
use super::queries::LeftOut;

/// Tenants that fail are logged this often.
const PAUSE: Duration = Duration::from_secs(60);
/// Rows that are remembered after they were logged; each is logged once a day at most.
const ROWS: u64 = 1_000;
const ROW_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);
/// Rows that are logged within [`PAUSE`].
const ROWS_A_MINUTE: u32 = 10;

/// Logs a few of the failures.
pub(super) struct DataLog {
    /// When a tenant's failure was last logged.
    tenant: Mutex<Option<Instant>>,
    rows: Cache<(TenantId, Option<String>), ()>,
    /// How many rows were logged since this moment.
    recent: Mutex<(Instant, u32)>,
}

impl DataLog {
    pub fn new() -> Self {
        Self {
            tenant: Mutex::default(),
            rows: Cache::builder().max_capacity(ROWS).time_to_live(ROW_PAUSE).build(),
            recent: Mutex::new((Instant::now(), 0)),
        }
    }

    /// A view fails for a tenant.
    pub fn failed(&self, tenant: &TenantId, view: Part, error: &dyn Display) {
        let mut logged = self.tenant.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= PAUSE) {
            *logged = Some(Instant::now());
            warn!(%tenant, %view, %error, "view fails for a tenant, its dashboards start without this part");
        }
    }

    /// A row can't be shown.
    pub fn left_out(&self, tenant: &TenantId, LeftOut { payment_id, reason }: LeftOut) {
        let row = (tenant.clone(), payment_id);
        if self.rows.contains_key(&row) {
            return;
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.0.elapsed() >= PAUSE {
            *recent = (Instant::now(), 0);
        }
        if recent.1 < ROWS_A_MINUTE {
            recent.1 += 1;
            let payment_id = row.1.as_deref().unwrap_or("null");
            warn!(%tenant, payment_id, reason, "row of dashboard.recent_payments left out: it can't be shown");
            self.rows.insert(row, ());
        }
    }
}
