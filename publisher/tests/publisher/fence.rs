//! The relay's fence in publish.lua (F35): a leader publishes nothing more after a later leader has published.

use publisher::{
    EventData, Outcome, TenantId,
    internals::{Relayed, Term},
};

use crate::harness::{RedisServer, fill, log, metrics, payment, publisher, tenant};

fn seq(relayed: Relayed) -> u64 {
    match relayed {
        Relayed::Outcome(Outcome::Published { seq, .. }) => seq,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn f35_an_older_term_is_refused_after_a_newer_one_was_seen() {
    let redis = RedisServer::start().await;
    let (acorn, hazel): (TenantId, TenantId) = (tenant("acorn"), tenant("hazel"));
    let publisher = publisher(&redis).await;
    let (old, new) = (Term(4), Term(5));
    assert_eq!(seq(publisher.relay(&acorn, &payment(), old).await.unwrap()), 1);
    assert_eq!(seq(publisher.relay(&acorn, &payment(), new).await.unwrap()), 2);
    let refused = publisher.relay(&acorn, &payment(), old).await.unwrap();
    assert_eq!(refused, Relayed::Superseded { term: new });
    assert_eq!(log(&redis, &acorn).await.len(), 2, "a refused event leaves nothing behind");
    // The new leader has not published for the other tenant yet, so that the old one still may.
    assert_eq!(seq(publisher.relay(&hazel, &payment(), old).await.unwrap()), 1);
    // A direct publish has no term.
    let direct = publisher.broadcast_to_tenant(&acorn, &payment()).await.unwrap();
    assert!(matches!(direct, Outcome::Published { seq: 3, .. }), "{direct:?}");
}

#[tokio::test]
async fn f35_a_leader_that_was_only_throttled_was_seen_too() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let publisher = publisher(&redis).await;
    fill(&publisher, &acorn).await;
    let throttled = publisher.relay(&acorn, &payment(), Term(5)).await.unwrap();
    assert!(matches!(throttled, Relayed::Outcome(Outcome::Throttled { .. })), "{throttled:?}");
    let refused = publisher.relay(&acorn, &payment(), Term(4)).await.unwrap();
    assert_eq!(refused, Relayed::Superseded { term: Term(5) });
}

#[tokio::test]
async fn a_term_outlives_an_epoch() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let publisher = publisher(&redis).await;
    publisher.relay(&acorn, &payment(), Term(5)).await.unwrap();
    // The state of another server, as after a failover.
    redis.command(&["HSET", "dash:{acorn}:state", "run", "another"]).await;
    let refused = publisher.relay(&acorn, &payment(), Term(4)).await.unwrap();
    assert_eq!(refused, Relayed::Superseded { term: Term(5) });
}

#[tokio::test]
async fn figures_that_stand_for_payments_take_the_last_token() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let publisher = publisher(&redis).await;
    for _ in 0..9 {
        publisher.broadcast_to_tenant(&acorn, &payment()).await.unwrap();
    }
    let plain = publisher.broadcast_to_tenant(&acorn, &metrics()).await.unwrap();
    assert!(matches!(plain, Outcome::Throttled { .. }), "{plain:?}");
    let mut condensed = metrics();
    if let EventData::MetricsUpdated(metrics) = &mut condensed.data {
        metrics.condensed = Some([(publisher::DashboardEventType::PaymentReceived, 51)].into());
    }
    let condensed = publisher.broadcast_to_tenant(&acorn, &condensed).await.unwrap();
    assert!(matches!(condensed, Outcome::Published { .. }), "{condensed:?}");
}
