//! The relay's fence in publish.lua (F35): who has been succeeded publishes nothing more.

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
async fn f35_an_older_term_is_refused_from_the_moment_a_newer_one_shows_up() {
    let redis = RedisServer::start().await;
    let (acorn, hazel): (TenantId, TenantId) = (tenant("acorn"), tenant("hazel"));
    let publisher = publisher(&redis).await;
    let (old, new) = (Term(4), Term(5));
    assert_eq!(seq(publisher.relay(&acorn, &payment(), old).await.unwrap()), 1);
    assert_eq!(seq(publisher.relay(&acorn, &payment(), new).await.unwrap()), 2);
    let refused = publisher.relay(&acorn, &payment(), old).await.unwrap();
    assert_eq!(refused, Relayed::Superseded { term: new });
    assert_eq!(log(&redis, &acorn).await.len(), 2, "a refused event leaves nothing behind");
    // Another tenant that the new leader has not come to is still open.
    assert_eq!(seq(publisher.relay(&hazel, &payment(), old).await.unwrap()), 1);
    // Who publishes directly has no term.
    let direct = publisher.broadcast_to_tenant(&acorn, &payment()).await.unwrap();
    assert!(matches!(direct, Outcome::Published { seq: 3, .. }), "{direct:?}");
}

#[tokio::test]
async fn f35_a_leader_that_was_only_throttled_has_shown_up_too() {
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
    // As a failover leaves it: the state of another server.
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
