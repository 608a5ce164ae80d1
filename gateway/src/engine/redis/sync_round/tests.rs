#![allow(clippy::unwrap_used)]

use std::time::Duration;

use publisher::internals::Names;
use publisher::internals::topology::RedisUrl;
use testkit::redis::RedisServer;

use super::super::connection::{Connection, Incoming};
use super::*;

fn settings() -> Settings {
    let names = Names::new("dash").unwrap();
    Settings { names, recovery_events: 10, token_lifetime: Duration::from_secs(60), kind: Kind::Plain }
}

/// The orders of a new connection.
async fn orders(connection: &mut Connection) -> Orders {
    loop {
        if let Incoming::Connected(orders) = connection.next().await {
            return orders;
        }
    }
}

/// Subscribes to a tenant by one server, and reads its position by another.
async fn round(of_events: &RedisServer, of_positions: &RedisServer) -> Result<Synced, SyncError> {
    let (events, positions) = (of_events.url(), of_positions.url());
    let [events, positions] = [events, positions].map(|url| {
        let url = RedisUrl::parse(&url).unwrap();
        url.target(&url.seeds()[0])
    });
    let mut connection = Connection::open(events, settings().names);
    let orders = orders(&mut connection).await;
    let commands = Arc::new(Commands::open(positions, settings()));
    loop {
        let (reply, _answer) = oneshot::channel();
        let tenant: TenantId = "acorn".parse().unwrap();
        let round = SyncRound {
            scope: Scope::Everything,
            standing: Standing::Holds,
            own: vec!["dash:control".to_owned()],
            subscribe: vec![tenant.clone()],
            unsubscribe: Vec::new(),
            questions: vec![Question::Head { tenant, reply }],
            kicks: KicksRead::Everything,
        };
        let mut running = round.run(orders.clone(), commands.clone(), settings());
        let (_, result) = loop {
            tokio::select! {
                done = &mut running => break done,
                _ = connection.next() => {}
            }
        };
        // Until the command connection is up.
        if !matches!(&result, Ok(Synced { failure: Some(Failure::NotSent), .. })) {
            return result;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_position_counts_only_where_it_is_of_the_process_that_has_the_subscription() {
    let (one, other) = tokio::join!(RedisServer::start(), RedisServer::start());
    let synced = round(&one, &one).await.unwrap();
    assert!(synced.refused.is_empty() && matches!(synced.kicks, Some(Ok(_))));
    assert!(matches!(&synced.readings[..], [Ok(reading)] if reading.head.seq == 0), "{:?}", synced.readings);
    assert!(matches!(round(&one, &other).await, Err(SyncError::Split)));
}

#[tokio::test]
async fn a_server_that_was_left_is_heard_only_while_it_is_a_master() {
    let (master, replica) = tokio::join!(RedisServer::start(), RedisServer::start());
    replica.follow(master.addr()).await;
    for (server, expected) in [(&master, true), (&replica, false)] {
        let url = RedisUrl::parse(&server.url()).unwrap();
        let mut connection = Connection::open(url.target(&url.seeds()[0]), settings().names);
        let orders = orders(&mut connection).await;
        let asked = is_master(&orders);
        tokio::pin!(asked);
        let answer = loop {
            tokio::select! {
                answer = &mut asked => break answer,
                _ = connection.next() => {}
            }
        };
        assert_eq!(answer, Ok(expected));
    }
}
