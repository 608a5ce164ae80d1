//! What is measured and judged: deliveries against the ledger, latencies, the limit, and what a gateway holds.

pub mod holdings;
pub mod latency;
pub mod ledger;
pub mod limit_watch;
pub mod slope;
