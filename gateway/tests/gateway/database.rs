//! PostgreSQL: the outbox and its relay, snapshots, live metrics, migrations.

pub mod emit;
pub mod live_metrics;
pub mod migrate;
pub mod relay;
pub mod relay_backlogs;
pub mod relay_faults;
pub mod relay_lock;
pub mod relay_pooled;
pub mod snapshots;
