//! What every failover is looked at with: delivery comes back, sockets stay open, and who was away is told.

use std::time::{Duration, Instant};

use publisher::TenantId;

use super::dashboard::Dashboard;
use super::events::payment;
use super::follower::{Follower, caught_up, judge};
use super::holdings::Holdings;
use super::ledger::{Cursor, Entry, Ledger};
use super::oracle::Receipt;
use super::stack::Stack;
use super::token::Token;
use super::traffic::Traffic;

/// Publishes to every follower's tenant until all of it arrives; says how long ago it broke (`--nocapture`).
pub async fn until_delivery_is_back(
    stack: &mut Stack,
    followers: &[Follower],
    receipts: &mut Vec<Receipt>,
    broke: Instant,
) -> Duration {
    until_all_arrives(stack, followers, receipts).await;
    println!("everybody has a new event {:.2} s after it broke", broke.elapsed().as_secs_f32());
    broke.elapsed()
}

/// Publishes to every follower's tenant until all of it arrives.
pub async fn until_all_arrives(stack: &mut Stack, followers: &[Follower], receipts: &mut Vec<Receipt>) {
    let mut fresh = Vec::new();
    for follower in followers {
        fresh.push(stack.publish(&follower.tenant, &payment()).await);
    }
    caught_up(followers, &fresh).await;
    receipts.extend(fresh);
}

/// The end of a schedule of faults of Redis alone: every event arrived or its client was told, and no more is held than before.
pub async fn ends_well(mut stack: Stack, followers: Vec<Follower>, traffic: Traffic, before: Holdings) {
    let mut receipts = traffic.stop().await;
    until_delivery_is_back(&mut stack, &followers, &mut receipts, Instant::now()).await;
    let published = receipts.len();
    let ledgers = judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    println!("{published} events published, {} times told", ledgers.iter().map(Ledger::resyncs).sum::<usize>());
    before.are_back(&stack).await;
    stack.finish().await;
}

/// Sockets that had to come back, although only Redis was in trouble.
pub fn assert_sockets_stayed_open(ledgers: &[Ledger]) {
    for ledger in ledgers {
        assert_eq!(ledger.count(|entry| matches!(entry, Entry::Closed(_))), 0, "{ledger}");
    }
}

/// A browser that is away during a failover and knows its position by number alone. Nobody else looks at its tenant, so that
/// only Redis knows what its numbers stood for.
pub struct Absent {
    room: TenantId,
    at: Cursor,
}

impl Absent {
    /// Of this tenant, having seen as many events as asked for.
    pub async fn after(stack: &mut Stack, room: TenantId, events: u64) -> Self {
        let mut dashboard = stack.dashboard(&room).await;
        for _ in 0..events {
            stack.publish(&room, &payment()).await;
            dashboard.next_event().await;
        }
        let at = dashboard.cursor();
        let tenants = stack.gateway().metric("gateway_tenants", &[]).await;
        dashboard.close().await;
        stack.gateway().metric_becomes("gateway_tenants", &[], tenants - 1.0).await;
        Self { room, at }
    }

    /// Comes back when its number has been given out again, to another event.
    pub async fn returns_and_is_told(self, stack: &mut Stack) {
        let mut seq = 0;
        while seq < self.at.seq {
            seq = stack.publish(&self.room, &payment()).await.seq.unwrap();
        }
        let mut back = Dashboard::open(stack.addr()).await;
        let joined = back.resume(self.room.as_str(), &Token::of(self.room.as_str()).sign(), &self.at).await;
        assert_eq!(joined.data["recovered"], false, "resumed from {:?}: {}", self.at, joined.raw);
        back.close().await;
    }
}
