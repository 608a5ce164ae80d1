//! Clients that nothing happens to, while everything happens to others; and billing, which they hear.

use std::ops::Range;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use publisher::{Publisher, TenantId};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::dashboard::{Dashboard, Incoming};
use super::oracle::Receipt;
use super::stack::Stack;
use super::token::Token;
use super::traffic::Traffic;

/// On a thread of their own, since what they measure must not be what the storm costs the tests.
pub struct Calm {
    stop: CancellationToken,
    thread: JoinHandle<(Vec<Receipt>, Latencies)>,
}

/// When each event came, and how long it took from its making.
#[derive(Default)]
pub struct Latencies(Vec<(Instant, Duration)>);

impl Calm {
    /// Publishes for all `tenants`, and watches the first ten of them on each gateway.
    pub async fn start(stack: &Stack, tenants: &[TenantId], rate: u32) -> Self {
        let (config, gateways, tenants) = (stack.publisher_config(), stack.addrs(), tenants.to_vec());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (ready, joined) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut watching = JoinSet::new();
                for tenant in tenants.iter().take(10) {
                    for addr in &gateways {
                        let token = Token::of(tenant.as_str()).sign();
                        let dashboard = Dashboard::joined(*addr, tenant.as_str(), &token).await;
                        watching.spawn(watch(dashboard, stopped.clone()));
                    }
                }
                let traffic = Traffic::start(&Publisher::connect(config).await.unwrap(), &tenants, rate);
                ready.send(()).unwrap();
                stopped.cancelled().await;
                let receipts = traffic.stop().await;
                let seen = watching.join_all().await.into_iter().flat_map(|latencies| latencies.0).collect();
                (receipts, Latencies(seen))
            })
        });
        joined.await.expect("the calm ones have joined");
        Self { stop, thread }
    }

    /// What was published, and what they saw of it.
    pub async fn stop(self) -> (Vec<Receipt>, Latencies) {
        self.stop.cancel();
        tokio::task::spawn_blocking(|| self.thread.join().unwrap()).await.unwrap()
    }
}

async fn watch(mut dashboard: Dashboard, stop: CancellationToken) -> Latencies {
    let mut seen = Latencies::default();
    while let Some(incoming) = stop.run_until_cancelled(dashboard.next_unbounded()).await {
        match incoming {
            Incoming::Message(message) if message.is_event() => seen.0.push((Instant::now(), message.age())),
            Incoming::Message(_) => {}
            Incoming::Closed(code) => panic!("a client that nothing happens to was closed with {code:?}"),
        }
    }
    dashboard.close().await;
    seen
}

impl Latencies {
    /// Of what came in this time, from the shortest.
    pub fn during(&self, time: Range<Instant>) -> Vec<Duration> {
        let within = self.0.iter().filter(|(at, _)| time.contains(at));
        let mut latencies: Vec<_> = within.map(|(_, latency)| *latency).collect();
        latencies.sort_unstable();
        assert!(latencies.len() >= 50, "{} events are too few to judge by", latencies.len());
        latencies
    }
}
