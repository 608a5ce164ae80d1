//! Billing at work: publishes in the background until told to stop.

use std::time::{Duration, Instant};

use publisher::{DashboardEvent, Outcome, PublishError, Publisher, TenantId};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::events::payment;
use super::oracle::Receipt;

/// Publishes `event` as billing must: the same event again until its fate is known.
pub async fn publish(publisher: &Publisher, tenant: &TenantId, event: &DashboardEvent) -> Receipt {
    let begun = Instant::now();
    let receipt = |seq, at| Receipt { tenant: tenant.clone(), id: event.id.to_string(), seq, at };
    loop {
        assert!(begun.elapsed() < Duration::from_secs(30), "{tenant}'s event could not be published for 30 s");
        let pause = match publisher.broadcast_to_tenant(tenant, event).await {
            Ok(Outcome::Published { seq, .. }) => return receipt(seq, Instant::now()),
            Ok(Outcome::Duplicate { seq }) => return receipt(seq, begun),
            Ok(Outcome::Throttled { retry_after }) => retry_after,
            Err(PublishError::Unavailable | PublishError::Unknown { .. } | PublishError::Overloaded) => {
                Duration::from_millis(50)
            }
            Err(refused) => panic!("{tenant}: {refused}"),
        };
        tokio::time::sleep(pause).await;
    }
}

/// One task a tenant, each publishing at `rate` a second, in order.
pub struct Traffic {
    stop: CancellationToken,
    tasks: JoinSet<Vec<Receipt>>,
}

impl Traffic {
    pub fn start(publisher: &Publisher, tenants: &[TenantId], rate: u32) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for tenant in tenants {
            let (publisher, tenant, stop) = (publisher.clone(), tenant.clone(), stop.clone());
            tasks.spawn(async move {
                let mut receipts = Vec::new();
                let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                    receipts.push(publish(&publisher, &tenant, &payment()).await);
                }
                receipts
            });
        }
        Self { stop, tasks }
    }

    /// Lets the publishes under way finish; everything that was published.
    pub async fn stop(self) -> Vec<Receipt> {
        self.stop.cancel();
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}
