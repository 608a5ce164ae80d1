//! Billing at work: publishes in the background until told to stop.

use std::time::{Duration, Instant};

use publisher::{DashboardEvent, Outcome, PublishError, Publisher, TenantId};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::books::try_emit;
use super::events::payment;
use super::oracle::Receipt;
use super::postgres::Database;

/// How long an outage may last before it is the test's failure.
const OUTAGE_LIMIT: Duration = Duration::from_secs(150);
/// How long one transaction may.
const TRANSACTION_LIMIT: Duration = Duration::from_secs(20);

/// Publishes `event` as billing must: the same event again until its fate is known.
pub async fn publish(publisher: &Publisher, tenant: &TenantId, event: &DashboardEvent) -> Receipt {
    let begun = Instant::now();
    let receipt = |seq, at| Receipt { tenant: tenant.clone(), id: event.id.to_string(), seq: Some(seq), at };
    loop {
        let (pause, why) = match publisher.broadcast_to_tenant(tenant, event).await {
            Ok(Outcome::Published { seq, .. }) => return receipt(seq, Instant::now()),
            Ok(Outcome::Duplicate { seq }) => return receipt(seq, begun),
            Ok(Outcome::Throttled { retry_after }) => (retry_after, "throttled".to_owned()),
            Ok(outcome) => panic!("{tenant}: {outcome:?}"),
            Err(PublishError::Invalid(invalid)) => panic!("{tenant}: {invalid}"),
            // A server that refuses may still be loading, or be a replica that is about to be promoted.
            Err(error) => (Duration::from_millis(50), error.to_string()),
        };
        assert!(begun.elapsed() < OUTAGE_LIMIT, "{tenant}'s event could not be published for {OUTAGE_LIMIT:?}: {why}");
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
        let mut traffic = Self { stop: CancellationToken::new(), tasks: JoinSet::new() };
        for tenant in tenants {
            let (publisher, tenant, stop) = (publisher.clone(), tenant.clone(), traffic.stop.clone());
            traffic.tasks.spawn(async move {
                let mut receipts = Vec::new();
                let mut ticks = ticks(rate);
                while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                    receipts.push(publish(&publisher, &tenant, &payment()).await);
                }
                receipts
            });
        }
        traffic
    }

    /// The same by way of the outbox, whatever happens to the database meanwhile.
    pub fn into_outbox(database: &Database, tenants: &[TenantId], rate: u32) -> Self {
        let mut traffic = Self { stop: CancellationToken::new(), tasks: JoinSet::new() };
        for tenant in tenants {
            traffic.tasks.spawn(record(database.url.clone(), tenant.clone(), rate, traffic.stop.clone()));
        }
        traffic
    }

    /// Lets the publishes under way finish; everything that was published, each tenant's in its order.
    pub async fn stop(self) -> Vec<Receipt> {
        self.stop.cancel();
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}

fn ticks(rate: u32) -> Interval {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Records payments in transactions of their own. One that failed may have been committed all the same: it has no receipt.
async fn record(url: String, tenant: TenantId, rate: u32, stop: CancellationToken) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    let mut client: Option<PgConnection> = None;
    let mut ticks = ticks(rate);
    for number in 0.. {
        if stop.run_until_cancelled(ticks.tick()).await.is_none() {
            break;
        }
        let at = Instant::now();
        let transaction = async {
            let mut connected = match client.take() {
                Some(connected) => connected,
                None => PgConnection::connect(&url).await?,
            };
            let mut transaction = connected.begin().await?;
            let id = try_emit(&mut transaction, &tenant, number).await?;
            transaction.commit().await?;
            client = Some(connected);
            Ok::<_, sqlx::Error>(id)
        };
        if let Ok(Ok(id)) = tokio::time::timeout(TRANSACTION_LIMIT, transaction).await {
            receipts.push(Receipt { tenant: tenant.clone(), id, seq: None, at });
        }
    }
    receipts
}
