//! What an engine promises, the same for both: bucket, sequence, log, recovery, duplicates, epoch.

use std::time::{Duration, Instant};

use publisher::TenantId;
use serde_json::{Value, json};

use crate::harness::events::{metrics_json, payment_json, payment_json_with_id};
use crate::harness::ledger::Cursor;
use crate::harness::{Dashboard, Setup, Stack, Token, http, tenant};

/// A gateway on the engine under test, published to through its HTTP API.
struct Bench {
    stack: Stack,
    room: TenantId,
}

impl Bench {
    async fn new(setup: Setup) -> Self {
        Self { stack: setup.lease().await, room: tenant() }
    }

    async fn post(&self, body: &str) -> http::Response {
        http::post(self.stack.gateway().internal, &format!("/v1/tenants/{}/events", self.room), body).await
    }

    /// Publishes, waiting where the limit says so; the seq.
    async fn publish(&self) -> u64 {
        loop {
            let response = self.post(&payment_json()).await;
            if response.status != 429 {
                return response.expect(202).json()["seq"].as_u64().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn join(&self) -> Dashboard {
        self.stack.dashboard(&self.room).await
    }

    /// Resumes on a socket of its own, and returns `joined` as well.
    async fn resume(&self, cursor: &Cursor) -> (Dashboard, Value) {
        let mut dashboard = Dashboard::open(self.stack.addr()).await;
        let joined = dashboard.resume(self.room.as_str(), &Token::of(self.room.as_str()).sign(), cursor).await;
        (dashboard, joined.data)
    }
}

/// Ten at once, the eleventh refused, and the first token back one second after it was spent.
async fn bucket_gives_each_token_back_after_one_second(setup: Setup) {
    let bench = Bench::new(setup).await;
    let begun = Instant::now();
    for seq in 1..=10 {
        assert_eq!(bench.post(&payment_json()).await.expect(202).json()["seq"], seq);
    }
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "the machine is too slow for this test: {:?}",
        begun.elapsed()
    );
    let refused = bench.post(&payment_json()).await.expect(429);
    assert_eq!(refused.header("retry-after"), Some("1"), "whole seconds, rounded up");
    tokio::time::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()) + Duration::from_millis(150)).await;
    // A refused event burned no number.
    assert_eq!(bench.post(&payment_json()).await.expect(202).json()["seq"], 11);
    bench.stack.finish().await;
}

/// MetricsRefresh are refused unless three tokens would remain.
async fn metrics_never_cost_a_payment(setup: Setup) {
    let bench = Bench::new(setup).await;
    for _ in 0..7 {
        bench.post(&metrics_json()).await.expect(202);
    }
    bench.post(&metrics_json()).await.expect(429);
    for seq in 8..=10 {
        assert_eq!(bench.post(&payment_json()).await.expect(202).json()["seq"], seq);
    }
    bench.post(&payment_json()).await.expect(429);
    bench.stack.finish().await;
}

/// The limit is a tenant's own.
async fn tenants_have_buckets_and_counters_of_their_own(setup: Setup) {
    let mut bench = Bench::new(setup).await;
    for _ in 0..10 {
        bench.post(&payment_json()).await.expect(202);
    }
    bench.post(&payment_json()).await.expect(429);
    bench.room = tenant();
    assert_eq!(bench.post(&payment_json()).await.expect(202).json()["seq"], 1);
    bench.stack.finish().await;
}

/// The same id again is the same event: one number, one delivery, no token.
async fn duplicates_are_told_and_shown_once(setup: Setup) {
    let bench = Bench::new(setup).await;
    let mut dashboard = bench.join().await;
    for _ in 0..20 {
        assert_eq!(bench.post(&payment_json_with_id("once")).await.expect(202).json()["seq"], 1);
    }
    for _ in 0..9 {
        bench.post(&payment_json()).await.expect(202);
    }
    for seq in 1..=10 {
        assert_eq!(dashboard.next_event().await.seq, Some(seq));
    }
    // An event that was refused is none that was published.
    bench.post(&payment_json_with_id("refused")).await.expect(429);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(bench.post(&payment_json_with_id("refused")).await.expect(202).json()["seq"], 11);
    assert_eq!(dashboard.next_event().await.id.as_deref(), Some("refused"));
    dashboard.close().await;
    bench.stack.finish().await;
}

/// Who comes back gets exactly what was missed, in order, then what is new.
async fn resume_delivers_what_was_missed(setup: Setup) {
    let bench = Bench::new(setup).await;
    let mut dashboard = bench.join().await;
    bench.publish().await;
    dashboard.next_event().await;
    let cursor = dashboard.cursor();
    dashboard.close().await;
    for _ in 0..3 {
        bench.publish().await;
    }
    let (mut back, joined) = bench.resume(&cursor).await;
    assert_eq!((&joined["recovered"], &joined["epoch"]), (&json!(true), &json!(cursor.epoch)));
    bench.publish().await;
    for seq in 2..=5 {
        assert_eq!(back.next_event().await.seq, Some(seq));
    }
    back.close().await;
    // At the head there is nothing to miss.
    let (mut again, joined) = bench.resume(&Cursor { seq: 5, ..cursor }).await;
    assert_eq!((&joined["recovered"], &joined["seq"]), (&json!(true), &json!(5)));
    bench.publish().await;
    assert_eq!(again.next_event().await.seq, Some(6));
    again.close().await;
    bench.stack.finish().await;
}

/// Beyond the log's length, and with positions that never were, the start is a fresh one.
async fn resume_beyond_the_log_is_told(setup: Setup) {
    let bench = Bench::new(setup.env("RECOVERY_EVENTS", "3")).await;
    let dashboard = bench.join().await;
    let start = dashboard.cursor();
    dashboard.close().await;
    for _ in 0..5 {
        bench.publish().await;
    }
    // The log holds 3, 4, 5: who has 2 can be caught up, who has 1 cannot.
    for (last, recovered) in [(0, false), (1, false), (2, true), (5, true), (6, false)] {
        let (mut back, joined) = bench.resume(&Cursor { epoch: start.epoch.clone(), seq: last }).await;
        assert_eq!(joined["recovered"], recovered, "after {last}: {joined}");
        assert_eq!(joined["seq"], 5, "after {last}: {joined}");
        if recovered {
            for seq in last + 1..=5 {
                assert_eq!(back.next_event().await.seq, Some(seq));
            }
        }
        back.ping().await;
        back.close().await;
    }
    let (back, joined) = bench.resume(&Cursor { epoch: "another".to_owned(), seq: 5 }).await;
    assert_eq!(joined["recovered"], false);
    back.close().await;
    bench.stack.finish().await;
}

/// The log expires; the counter and the epoch do not.
async fn expired_log_recovers_nobody_behind(setup: Setup) {
    let bench = Bench::new(setup.env("RECOVERY_SECONDS", "1")).await;
    let dashboard = bench.join().await;
    let start = dashboard.cursor();
    dashboard.close().await;
    bench.publish().await;
    bench.publish().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (behind, joined) = bench.resume(&Cursor { epoch: start.epoch.clone(), seq: 1 }).await;
    assert_eq!(
        (&joined["recovered"], &joined["seq"], &joined["epoch"]),
        (&json!(false), &json!(2), &json!(start.epoch))
    );
    behind.close().await;
    let (mut at_the_head, joined) = bench.resume(&Cursor { epoch: start.epoch.clone(), seq: 2 }).await;
    assert_eq!(joined["recovered"], true, "nothing was missed");
    assert_eq!(bench.publish().await, 3);
    assert_eq!(at_the_head.next_event().await.seq, Some(3));
    at_the_head.close().await;
    bench.stack.finish().await;
}

/// The counter goes on while nobody looks, and the epoch stays.
async fn position_outlives_the_room(setup: Setup) {
    let bench = Bench::new(setup).await;
    let first = bench.join().await;
    let epoch = first.cursor().epoch;
    first.close().await;
    bench.stack.gateway().metric_becomes("gateway_tenants", &[], 0.0).await;
    assert_eq!(bench.publish().await, 1);
    let second = bench.join().await;
    assert_eq!(second.cursor(), Cursor { epoch, seq: 1 });
    second.close().await;
    bench.stack.finish().await;
}

/// Everyone in the room sees the same, and only the room.
async fn every_member_sees_every_event_once(setup: Setup) {
    let mut bench = Bench::new(setup).await;
    let mut members = Vec::new();
    for _ in 0..5 {
        members.push(bench.join().await);
    }
    let room = std::mem::replace(&mut bench.room, tenant());
    let mut stranger = bench.join().await;
    let strangers = std::mem::replace(&mut bench.room, room);
    for _ in 0..8 {
        bench.publish().await;
    }
    bench.room = strangers;
    bench.publish().await;
    let mut seen = Vec::new();
    for member in &mut members {
        for seq in 1..=8 {
            assert_eq!(member.next_event().await.seq, Some(seq));
        }
        seen.push(member.ledger().ids().map(str::to_owned).collect::<Vec<_>>());
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
    // Anything of the other tenant would have come before this.
    assert_eq!(stranger.next_event().await.seq, Some(1));
    stranger.close().await;
    for member in members {
        member.close().await;
    }
    bench.stack.finish().await;
}

/// A position counts in its own tenant's stream and in no other, whatever its number is.
async fn f57_anothers_position_recovers_nothing(setup: Setup) {
    let mut bench = Bench::new(setup).await;
    let mut mine = bench.join().await;
    bench.publish().await;
    mine.next_event().await;
    let cursor = mine.cursor();
    let room = std::mem::replace(&mut bench.room, tenant());
    bench.publish().await;
    let (foreign, joined) = bench.resume(&cursor).await;
    assert_eq!(joined["recovered"], false, "the position is tenant {room}'s");
    foreign.close().await;
    mine.close().await;
    bench.stack.finish().await;
}

/// One test an engine for each promise.
macro_rules! promises {
    ($($promise:ident),+ $(,)?) => {
        mod redis {
            $(#[tokio::test] async fn $promise() { super::$promise(super::Setup::new()).await })+
        }
        mod memory {
            $(#[tokio::test] async fn $promise() { super::$promise(super::Setup::new().memory()).await })+
        }
    };
}

promises!(
    bucket_gives_each_token_back_after_one_second,
    metrics_never_cost_a_payment,
    tenants_have_buckets_and_counters_of_their_own,
    duplicates_are_told_and_shown_once,
    resume_delivers_what_was_missed,
    resume_beyond_the_log_is_told,
    expired_log_recovers_nobody_behind,
    position_outlives_the_room,
    every_member_sees_every_event_once,
    f57_anothers_position_recovers_nothing,
);

/// Memory is gone with the process, and nobody may take the new counter for the old one.
#[tokio::test]
async fn a_restarted_memory_engine_begins_a_new_epoch() {
    let first = Bench::new(Setup::new().memory()).await;
    let mut dashboard = first.join().await;
    first.publish().await;
    dashboard.next_event().await;
    let cursor = dashboard.cursor();
    drop(dashboard);
    drop(first.stack);
    let second = Bench { stack: Setup::new().memory().start().await, room: first.room };
    second.publish().await;
    let (back, joined) = second.resume(&cursor).await;
    assert_eq!(joined["recovered"], false);
    assert_ne!(joined["epoch"], json!(cursor.epoch));
    back.close().await;
    second.stack.finish().await;
}
