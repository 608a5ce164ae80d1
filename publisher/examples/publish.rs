//! Publishes random payments, the way billing code does. Needs a Redis, for example that of a running gateway:
//!
//! ```text
//! redis-server --save '' &
//! cargo run -p publisher --example publish -- redis://localhost:6379 acorn --count 100 --rate 5
//! ```

use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use publisher::{DashboardEvent, Money, Outcome, PaymentReceived, PublishError, Publisher, PublisherConfig, TenantId};
use rand::{RngExt, seq::IndexedRandom};
use tokio::time::{MissedTickBehavior, interval, sleep};

#[derive(Parser)]
struct Arguments {
    /// The stack's Redis.
    redis_url: String,
    /// The tenant whose dashboards show the payments.
    tenant: TenantId,
    /// How many payments.
    #[arg(long, default_value_t = 20)]
    count: u32,
    /// Payments in a second. Those beyond the tenant's limit are throttled, and wait.
    #[arg(long, default_value_t = 2.0, value_parser = positive)]
    rate: f64,
}

fn positive(text: &str) -> Result<f64, String> {
    let rate = text.parse().map_err(|_| "is no number")?;
    if (0.001..=10_000.0).contains(&rate) { Ok(rate) } else { Err("must lie between 0.001 and 10000".into()) }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { redis_url, tenant, count, rate } = Arguments::parse();
    let dashboards = Publisher::connect(PublisherConfig::new(redis_url)).await?;
    let mut pace = interval(Duration::from_secs_f64(1.0 / rate));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 1..=count {
        pace.tick().await;
        let event = DashboardEvent::new(random_payment(number));
        let outcome = publish(&dashboards, &tenant, &event).await.context("a payment is not on the dashboards")?;
        println!("{} {outcome:?}", event.id);
    }
    dashboards.close().await;
    Ok(())
}

/// Publishes an event until there is an outcome: the same event again when the outcome is unknown, and after the limit's time when it is
/// throttled.
async fn publish(dashboards: &Publisher, tenant: &TenantId, event: &DashboardEvent) -> Result<Outcome, PublishError> {
    loop {
        match dashboards.broadcast_to_tenant(tenant, event).await {
            Ok(Outcome::Throttled { retry_after }) => sleep(retry_after).await,
            Err(PublishError::Unknown { .. }) => {}
            answer => return answer,
        }
    }
}

fn random_payment(number: u32) -> PaymentReceived {
    let mut random = rand::rng();
    let mut one_of = |names: &[&str]| (*names.choose(&mut random).expect("a name")).to_owned();
    let parent = one_of(&["Thandi", "Pieter", "Fatima", "Sipho", "Anja"]);
    let family = one_of(&["Mokoena", "van der Merwe", "Naidoo", "Dlamini", "Jacobs"]);
    let child = one_of(&["Lwazi", "Mia", "Aisha", "Themba", "Liam"]);
    PaymentReceived {
        payment_id: format!("pay_{number}_{}", random.random::<u32>()),
        amount: Money::from_cents(random.random_range(50_000..500_000)).expect("a few thousand rand"),
        parent_name: format!("{parent} {family}"),
        child_name: format!("{child} {family}"),
        invoice_number: format!("INV-{}", random.random_range(1000..10_000)),
    }
}
