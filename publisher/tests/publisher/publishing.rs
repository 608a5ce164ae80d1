//! Publishing without faults.

use publisher::{
    DashboardEvent, DashboardEventType, EventData, EventId, Outcome, Publisher, PublisherConfig, internals::Term,
};

use crate::harness::{
    RedisServer, assert_once_and_in_order, fill, log, message, metrics, now_micros, payment, publisher, tenant,
};

#[tokio::test]
async fn an_event_arrives_as_the_contract_says() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let mut browser = redis.client().await;
    browser.command(&["SUBSCRIBE", "dash:{acorn}:events"]).await;
    let publisher = publisher(&redis).await;
    let before = now_micros();

    let (first, second) = (payment(), payment());
    let outcome = publisher.broadcast_to_tenant(&acorn, &first).await;
    assert_eq!(outcome, Ok(Outcome::Published { seq: 1, receivers: 1 }));
    publisher.broadcast_to_tenant(&acorn, &second).await.unwrap();

    let mut received = async || message(browser.next().await.unwrap().array().last().unwrap());
    let (one, two) = (received().await, received().await);
    assert_eq!(one.json, format!("{{\"seq\":1,{}}}", first.body()));
    assert_eq!((&one.id, one.seq, &one.previous), (&first.id, 1, &None));
    assert_eq!((&two.id, two.seq, &two.previous), (&second.id, 2, &Some(first.id)));
    assert_eq!(one.event_type.as_str(), "payment_received");
    assert!((before..=now_micros()).contains(&one.published_micros));
    // The log has the same bytes as the channel.
    assert_eq!(log(&redis, &acorn).await, [one, two]);
}

#[tokio::test]
async fn everything_expires_and_the_log_is_capped() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let mut config = PublisherConfig::new(redis.url());
    (config.recovery_events, config.events_per_second) = (5, 1000);
    let publisher = Publisher::connect(config).await.unwrap();
    let mut last = payment();
    for _ in 0..20 {
        last = payment();
        publisher.broadcast_to_tenant(&acorn, &last).await.unwrap();
    }

    assert_eq!(log(&redis, &acorn).await.iter().map(|message| message.seq).collect::<Vec<_>>(), [16, 17, 18, 19, 20]);
    let mut connection = redis.client().await;
    let mut expires = async |key: &str| connection.command(&["TTL", key]).await.integer();
    assert!((299..=300).contains(&expires("dash:{acorn}:log").await));
    assert!((2_591_990..=2_592_000).contains(&expires("dash:{acorn}:state").await));
    assert!((86_390..=86_400).contains(&expires(&format!("dash:{{acorn}}:once:{}", last.id)).await));
}

#[tokio::test]
async fn the_same_event_is_published_once() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let (one, another) = (publisher(&redis).await, publisher(&redis).await);
    let event = payment();

    one.broadcast_to_tenant(&acorn, &event).await.unwrap();
    one.broadcast_to_tenant(&acorn, &payment()).await.unwrap();
    assert_eq!(another.broadcast_to_tenant(&acorn, &event).await, Ok(Outcome::Duplicate { seq: 1 }));
    // Another tenant's event of the same id is another event.
    let elsewhere = one.broadcast_to_tenant(&tenant("hazel"), &event).await;
    assert_eq!(elsewhere, Ok(Outcome::Published { seq: 1, receivers: 0 }));
}

#[tokio::test]
async fn a_duplicate_is_told_even_when_the_tenant_is_throttled() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let publisher = publisher(&redis).await;
    let event = payment();
    publisher.broadcast_to_tenant(&acorn, &event).await.unwrap();
    fill(&publisher, &acorn).await;
    assert_eq!(publisher.broadcast_to_tenant(&acorn, &event).await, Ok(Outcome::Duplicate { seq: 1 }));
}

#[tokio::test]
async fn a_throttled_event_uses_no_number_and_leaves_no_mark() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let publisher = publisher(&redis).await;
    assert_eq!(fill(&publisher, &acorn).await, 10);

    let refused = payment();
    let Ok(Outcome::Throttled { retry_after }) = publisher.broadcast_to_tenant(&acorn, &refused).await else {
        panic!("an eleventh event within a second");
    };
    let mark = format!("dash:{{acorn}}:once:{}", refused.id);
    assert_eq!(redis.command(&["EXISTS", &mark]).await.integer(), 0);
    tokio::time::sleep(retry_after).await;
    let outcome = publisher.broadcast_to_tenant(&acorn, &refused).await;
    assert_eq!(outcome, Ok(Outcome::Published { seq: 11, receivers: 0 }));
    assert_once_and_in_order(&log(&redis, &acorn).await);
}

#[tokio::test]
async fn metrics_leave_three_places_for_payments() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let publisher = publisher(&redis).await;
    for _ in 0..7 {
        let outcome = publisher.broadcast_to_tenant(&acorn, &metrics()).await.unwrap();
        assert!(matches!(outcome, Outcome::Published { .. }), "{outcome:?}");
    }
    let outcome = publisher.broadcast_to_tenant(&acorn, &metrics()).await.unwrap();
    assert!(matches!(outcome, Outcome::Throttled { .. }), "{outcome:?}");
    assert_eq!(fill(&publisher, &acorn).await, 3);
}

#[tokio::test]
async fn f69_figures_leave_a_mark_for_a_minute_and_everything_else_for_a_day() {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let publisher = publisher(&redis).await;
    let expires = async |event: &DashboardEvent| {
        redis.command(&["TTL", &format!("dash:{{acorn}}:once:{}", event.id)]).await.integer()
    };
    let mut condensed = metrics();
    if let EventData::MetricsUpdated(metrics) = &mut condensed.data {
        metrics.condensed = Some([(DashboardEventType::PaymentReceived, 51)].into());
    }
    let (figures, relayed, payment) = (metrics(), metrics(), payment());
    publisher.broadcast_to_tenant(&acorn, &figures).await.unwrap();
    publisher.relay(&acorn, &relayed, Term(1)).await.unwrap();
    publisher.broadcast_to_tenant(&acorn, &condensed).await.unwrap();
    publisher.broadcast_to_tenant(&acorn, &payment).await.unwrap();
    assert!((50..=60).contains(&expires(&figures).await));
    // A row of the outbox can wait for a day, and condensed figures stand for payments.
    for event in [&relayed, &condensed, &payment] {
        assert!((86_390..=86_400).contains(&expires(event).await), "{event:?}");
    }
    // Within the minute they are published once, like any event.
    assert_eq!(publisher.broadcast_to_tenant(&acorn, &figures).await, Ok(Outcome::Duplicate { seq: 1 }));
}

#[tokio::test]
async fn a_limit_of_one_leaves_metrics_their_turn() {
    let redis = RedisServer::start().await;
    let mut config = PublisherConfig::new(redis.url());
    config.events_per_second = 1;
    let publisher = Publisher::connect(config).await.unwrap();
    let outcome = publisher.broadcast_to_tenant(&tenant("acorn"), &metrics()).await.unwrap();
    assert!(matches!(outcome, Outcome::Published { .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_callers_own_id_is_kept() {
    let redis = RedisServer::start().await;
    let mut event = payment();
    event.id = "invoice-7_paid".parse::<EventId>().unwrap();
    publisher(&redis).await.broadcast_to_tenant(&tenant("acorn"), &event).await.unwrap();
    assert_eq!(log(&redis, &tenant("acorn")).await[0].id, event.id);
}

#[tokio::test]
async fn prefixes_keep_stacks_on_one_redis_apart() {
    let redis = RedisServer::start().await;
    let mut config = PublisherConfig::new(redis.url());
    config.prefix = "staging".into();
    let staging = Publisher::connect(config).await.unwrap();
    staging.broadcast_to_tenant(&tenant("acorn"), &payment()).await.unwrap();
    assert!(log(&redis, &tenant("acorn")).await.is_empty());
    assert_eq!(redis.command(&["XLEN", "staging:{acorn}:log"]).await.integer(), 1);
}

#[tokio::test]
async fn after_close_every_clone_says_unavailable() {
    let redis = RedisServer::start().await;
    let publisher = publisher(&redis).await;
    let clone = publisher.clone();
    publisher.close().await;
    let result = clone.broadcast_to_tenant(&tenant("acorn"), &payment()).await;
    assert_eq!(result, Err(publisher::PublishError::Unavailable));
}
