//! position.lua: a tenant's position, the messages that a gateway missed, and the end of an epoch.

use publisher::TenantId;
use publisher::internals::{Message, script};

use crate::harness::{RedisClient, RedisServer, Reply, log, message, payment, publisher, tenant};

struct Position {
    epoch: String,
    seq: i64,
    id: String,
    messages: Vec<Message>,
}

/// The position that a caller claims to know.
struct Known<'a> {
    epoch: &'a str,
    seq: &'a str,
    id: &'a str,
    trusted: bool,
}

async fn position(redis: &mut RedisClient, tenant: &TenantId, known: &Known<'_>, limit: &str) -> Position {
    let Known { epoch, seq, id, trusted } = known;
    let (state, log) = (format!("dash:{{{tenant}}}:state"), format!("dash:{{{tenant}}}:log"));
    let (source, trusted, keep) = (script::POSITION.source(), if *trusted { "1" } else { "0" }, "60000");
    let reply = redis.command(&["EVAL", source, "2", &state, &log, epoch, seq, id, trusted, limit, keep]).await;
    let Ok([epoch, seq, id, messages, _]) = <[Reply; 5]>::try_from(reply.clone().array()) else { panic!("{reply:?}") };
    let messages = messages.array().iter().map(message).collect();
    Position { epoch: epoch.text().to_owned(), seq: seq.integer(), id: id.text().to_owned(), messages }
}

const NOTHING: Known<'_> = Known { epoch: "", seq: "0", id: "", trusted: false };

/// A tenant with five events, and its log.
async fn five_events() -> (RedisServer, TenantId, Vec<Message>) {
    let redis = RedisServer::start().await;
    let acorn = tenant("acorn");
    let publisher = publisher(&redis).await;
    for _ in 0..5 {
        publisher.broadcast_to_tenant(&acorn, &payment()).await.unwrap();
    }
    let log = log(&redis, &acorn).await;
    (redis, acorn, log)
}

fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.id.as_str()).collect()
}

#[tokio::test]
async fn a_tenant_that_never_published_has_a_position_that_stays() {
    let redis = RedisServer::start().await;
    let first = position(&mut redis.client().await, &tenant("acorn"), &NOTHING, "10").await;
    let again = position(&mut redis.client().await, &tenant("acorn"), &NOTHING, "10").await;
    assert_eq!((first.seq, first.id.as_str(), first.messages.len()), (0, "", 0));
    assert_eq!(again.epoch, first.epoch);
    assert!(
        first.epoch.parse::<publisher::internals::Epoch>().is_ok() && !first.epoch.contains('+'),
        "{}",
        first.epoch
    );
}

#[tokio::test]
async fn the_messages_after_a_known_position_are_given_oldest_first() {
    let (redis, acorn, log) = five_events().await;
    let mut redis = redis.client().await;
    let epoch = log[0].epoch.as_str();
    for trusted in [true, false] {
        let known = Known { epoch, seq: "2", id: log[1].id.as_str(), trusted };
        let all = position(&mut redis, &acorn, &known, "10").await;
        assert_eq!((all.epoch.as_str(), all.seq, all.id.as_str()), (epoch, 5, log[4].id.as_str()));
        assert_eq!(all.messages, log[2..]);
        assert_eq!(position(&mut redis, &acorn, &known, "2").await.messages, log[2..4]);
        assert!(position(&mut redis, &acorn, &known, "0").await.messages.is_empty());
    }
    let head = Known { epoch, seq: "5", id: log[4].id.as_str(), trusted: true };
    assert!(position(&mut redis, &acorn, &head, "10").await.messages.is_empty());
}

#[tokio::test]
async fn a_caller_that_knows_another_epoch_gets_no_messages() {
    let (redis, acorn, log) = five_events().await;
    for epoch in ["", "other", "*"] {
        let known = Known { epoch, seq: "2", id: "", trusted: true };
        let position = position(&mut redis.client().await, &acorn, &known, "10").await;
        assert_eq!((position.epoch.as_str(), position.seq), (log[0].epoch.as_str(), 5));
        assert!(position.messages.is_empty());
    }
}

#[tokio::test]
async fn a_log_that_lost_its_beginning_shows_the_hole() {
    let (redis, acorn, log) = five_events().await;
    let mut redis = redis.client().await;
    redis.command(&["XTRIM", "dash:{acorn}:log", "MAXLEN", "2"]).await;
    let known = Known { epoch: log[0].epoch.as_str(), seq: "1", id: log[0].id.as_str(), trusted: true };
    let position = position(&mut redis, &acorn, &known, "10").await;
    assert_eq!(position.epoch, log[0].epoch.as_str());
    assert_eq!(ids(&position.messages), ids(&log[3..]));
}

#[tokio::test]
async fn f16_a_gateway_that_saw_what_the_counter_did_not_issue_ends_the_epoch() {
    let (redis, acorn, log) = five_events().await;
    let mut redis = redis.client().await;
    let mut epoch = log[0].epoch.to_string();
    // Each is a different way in which the same (epoch, seq) could name two events.
    for (seq, id) in [("6", ""), ("9", "x"), ("5", "another"), ("3", "another")] {
        let known = Known { epoch: &epoch, seq, id, trusted: true };
        let position = position(&mut redis, &acorn, &known, "10").await;
        assert_ne!(position.epoch, epoch, "known {seq} {id}");
        assert_eq!((position.seq, position.id.as_str(), position.messages.len()), (0, "", 0));
        assert_eq!(redis.command(&["EXISTS", "dash:{acorn}:log"]).await.integer(), 0);
        // Five new events for the next case.
        let keys = ["dash:{acorn}:state", "dash:{acorn}:log"];
        redis.command(&["HSET", keys[0], "seq", "5", "id", "e5"]).await;
        for seq in 1..=5 {
            let head = format!(
                "{} {seq} e{seq} {} payment_received 1",
                position.epoch,
                match seq {
                    1 => "-".to_owned(),
                    _ => format!("e{}", seq - 1),
                }
            );
            redis.command(&["XADD", keys[1], &format!("{seq}-0"), "m", &format!("{head}\n{{\"seq\":{seq},}}")]).await;
        }
        epoch = position.epoch;
    }
    // Correct positions do not end the epoch.
    for (seq, id) in [("5", "e5"), ("5", ""), ("3", "e3"), ("3", ""), ("0", "")] {
        let known = Known { epoch: &epoch, seq, id, trusted: true };
        assert_eq!(position(&mut redis, &acorn, &known, "10").await.epoch, epoch, "known {seq} {id}");
    }
}

#[tokio::test]
async fn b34_no_number_of_a_browser_ends_an_epoch() {
    let (redis, acorn, log) = five_events().await;
    for (seq, id) in [("6", ""), ("9007199254740993", ""), ("18446744073709551615", "x"), ("5", "another"), ("3", "no")]
    {
        let known = Known { epoch: log[0].epoch.as_str(), seq, id, trusted: false };
        let position = position(&mut redis.client().await, &acorn, &known, "10").await;
        assert_eq!((position.epoch.as_str(), position.seq), (log[0].epoch.as_str(), 5), "known {seq} {id}");
    }
}

#[tokio::test]
async fn a_new_epoch_keeps_the_bucket() {
    let (redis, acorn, log) = five_events().await;
    let mut redis = redis.client().await;
    let mut bucket = async || redis.command(&["HGET", "dash:{acorn}:state", "bucket"]).await.text().to_owned();
    let before = bucket().await;
    assert_eq!(before.len(), 5 * 16);
    let known = Known { epoch: log[0].epoch.as_str(), seq: "7", id: "", trusted: true };
    position(&mut redis, &acorn, &known, "10").await;
    assert_eq!(redis.command(&["HGET", "dash:{acorn}:state", "bucket"]).await.text(), before);
}
