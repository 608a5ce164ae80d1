//! Tools of these tests besides the test kit: sample events, and a tenant's log.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use publisher::internals::Message;
use publisher::{
    DashboardEvent, MetricsUpdated, Money, Outcome, PaymentReceived, Publisher, PublisherConfig, TenantId,
};
use time::OffsetDateTime;

pub use testkit::{
    proxy::Proxy,
    redis::{RedisClient, RedisServer},
    resp::Reply,
    sentinel::Sentinel,
};

pub fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

pub async fn publisher(redis: &RedisServer) -> Publisher {
    Publisher::connect(PublisherConfig::new(redis.url())).await.unwrap()
}

pub fn payment() -> DashboardEvent {
    DashboardEvent::new(PaymentReceived {
        payment_id: "pay_1".into(),
        amount: Money::from_cents(150_000).unwrap(),
        parent_name: "Thandi".into(),
        child_name: "Lwazi".into(),
        invoice_number: "INV-1".into(),
    })
}

pub fn metrics() -> DashboardEvent {
    DashboardEvent::new(MetricsUpdated {
        total_outstanding: Money::ZERO,
        total_arrears: Money::from_cents(-100).unwrap(),
        accounts_in_arrears: 0,
        payments_today: 1,
        amount_received_today: Money::ZERO,
        invoices_by_status: [("PENDING".to_owned(), 2)].into(),
        as_of: OffsetDateTime::now_utc(),
        condensed: None,
    })
}

/// Publishes payments until one is throttled; returns how many were published.
pub async fn fill(publisher: &Publisher, tenant: &TenantId) -> usize {
    let mut published = 0;
    while let Outcome::Published { .. } = publisher.broadcast_to_tenant(tenant, &payment()).await.unwrap() {
        published += 1;
    }
    published
}

/// The tenant's log, oldest first, read as the gateway reads it.
pub async fn log(redis: &RedisServer, tenant: &TenantId) -> Vec<Message> {
    let entries = redis.command(&["XRANGE", &format!("dash:{{{tenant}}}:log"), "-", "+"]).await.array();
    entries.into_iter().map(|entry| message_of_entry(entry.array())).collect()
}

fn message_of_entry(mut entry: Vec<Reply>) -> Message {
    let mut fields = entry.pop().unwrap().array();
    message(&fields.pop().unwrap())
}

pub fn message(raw: &Reply) -> Message {
    Message::parse(Bytes::from(raw.text().to_owned())).unwrap()
}

/// Every id has one number, and the numbers have no hole.
pub fn assert_once_and_in_order(log: &[Message]) {
    for pair in log.windows(2) {
        assert_eq!(pair[1].epoch, pair[0].epoch);
        assert_eq!(pair[1].seq, pair[0].seq + 1);
        assert_eq!(pair[1].previous.as_ref(), Some(&pair[0].id));
    }
    let ids: std::collections::HashSet<_> = log.iter().map(|message| &message.id).collect();
    assert_eq!(ids.len(), log.len(), "an event was published twice");
}

/// The time by this machine's clock, which is also that of Redis.
pub fn now_micros() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros().try_into().unwrap()
}

/// Polls until there is an answer, up to a limit.
pub async fn eventually(limit: Duration, what: &str, mut fact: impl AsyncFnMut() -> bool) {
    testkit::wait::eventually(what, limit, async || fact().await.then_some(())).await;
}
