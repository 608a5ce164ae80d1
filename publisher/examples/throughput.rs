//! Measures how many events a second one publisher publishes, over many tenants. Needs a Redis:
//!
//! ```text
//! redis-server --save '' &
//! cargo run --release -p publisher --example throughput -- redis://localhost:6379
//! ```
//!
//! It writes under a prefix of its own. Each event takes about 1 KiB of that Redis' memory until the log expires.

use std::time::{Duration, Instant};

use clap::Parser;
use publisher::{Money, Outcome, PaymentReceived, Publisher, PublisherConfig, TenantId};
use tokio::task::JoinSet;

#[derive(Parser)]
struct Arguments {
    /// A Redis to measure against.
    redis_url: String,
    /// Tenants that the events are spread over.
    #[arg(long, default_value_t = 5000)]
    tenants: usize,
    /// Tasks that publish, each as fast as it is answered.
    #[arg(long, default_value_t = 256)]
    tasks: usize,
    /// Connections of the publisher.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// How long to measure.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// What one task saw.
#[derive(Default)]
struct Tally {
    published: u64,
    other: u64,
    micros: Vec<u64>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut config = PublisherConfig::new(arguments.redis_url);
    (config.prefix, config.connections) = ("throughput".into(), arguments.connections);
    let publisher = Publisher::connect(config).await?;
    let payment = PaymentReceived {
        payment_id: "pay_8714".into(),
        amount: "1500.00".parse::<Money>()?,
        parent_name: "Thandi Mokoena".into(),
        child_name: "Lwazi".into(),
        invoice_number: "INV-2026-0412".into(),
    };

    let started = Instant::now();
    let until = started + Duration::from_secs(arguments.seconds);
    let mut tasks = JoinSet::new();
    for task in 0..arguments.tasks {
        let (publisher, payment) = (publisher.clone(), payment.clone());
        // Each task has its own tenants, and takes them in turn.
        let tenants: Vec<TenantId> = (task..arguments.tenants)
            .step_by(arguments.tasks)
            .map(|n| format!("t{n}").parse())
            .collect::<Result<_, _>>()?;
        tasks.spawn(async move {
            let mut tally = Tally::default();
            for tenant in tenants.iter().cycle().take_while(|_| Instant::now() < until) {
                let asked = Instant::now();
                match publisher.send_payment_received(tenant, payment.clone()).await {
                    Ok(Outcome::Published { .. }) => tally.published += 1,
                    _ => tally.other += 1,
                }
                tally.micros.push(asked.elapsed().as_micros() as u64);
            }
            tally
        });
    }
    let tallies = tasks.join_all().await;
    let took = started.elapsed().as_secs_f64();

    let published: u64 = tallies.iter().map(|tally| tally.published).sum();
    let other: u64 = tallies.iter().map(|tally| tally.other).sum();
    let mut micros: Vec<u64> = tallies.into_iter().flat_map(|tally| tally.micros).collect();
    micros.sort_unstable();
    let percentile = |hundredth: usize| micros.get(micros.len() * hundredth / 100).copied().unwrap_or_default();
    println!("{:.0} publishes/s ({published} published, {other} not, {took:.1} s)", published as f64 / took);
    println!("p50 {} µs, p99 {} µs", percentile(50), percentile(99));
    publisher.close().await;
    Ok(())
}
