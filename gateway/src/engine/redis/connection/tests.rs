#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use publisher::internals::topology::RedisUrl;
use testkit::proxy::{Direction, Fate, Proxy};
use testkit::redis::RedisServer;
use testkit::wait::eventually;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection, and what it brought.
struct Bench {
    connection: Connection,
    names: Names,
    messages: Vec<(TenantId, Message)>,
    malformed: usize,
    kicks: usize,
    ended: Vec<TenantId>,
    broken: Vec<String>,
}

impl Bench {
    fn to(url: &str) -> Self {
        let (url, names) = (RedisUrl::parse(url).unwrap(), Names::new("dash").unwrap());
        let connection = Connection::open(url.target(&url.seeds()[0]), names.clone());
        Self { connection, names, messages: Vec::new(), malformed: 0, kicks: 0, ended: Vec::new(), broken: Vec::new() }
    }

    /// Takes in what comes until there is a connection.
    async fn connected(&mut self) -> Orders {
        loop {
            if let Some(orders) = tokio::time::timeout(PATIENCE, self.step()).await.unwrap() {
                return orders;
            }
        }
    }

    async fn step(&mut self) -> Option<Orders> {
        match self.connection.next().await {
            Incoming::Connected(orders) => return Some(orders),
            Incoming::Broken(error) => self.broken.push(error.to_string()),
            Incoming::Received(mut received) => {
                self.messages.append(&mut received.messages);
                self.ended.append(&mut received.ended);
                self.malformed += received.malformed.len();
                self.kicks += received.kicks;
            }
        }
        None
    }

    /// Takes in what comes while this is done.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = self.step() => {}
                () = tokio::time::sleep(PATIENCE) => panic!("neither anything came nor was it done"),
            }
        }
    }

    fn channels(&self, tenants: &[TenantId]) -> Vec<String> {
        tenants.iter().map(|tenant| self.names.events(tenant)).collect()
    }
}

fn tenants(count: usize) -> Vec<TenantId> {
    (0..count).map(|n| format!("t{n}").parse().unwrap()).collect()
}

fn message(seq: usize) -> String {
    format!("e {seq} id{seq} - payment_received 1\n{{\"seq\":{seq},\"id\":\"id{seq}\"}}")
}

#[tokio::test]
async fn an_answer_comes_after_all_that_was_published_before_it() {
    let redis = RedisServer::start().await;
    let mut bench = Bench::to(&redis.url());
    let orders = bench.connected().await;
    let tenants = tenants(1000);
    let channels = bench.channels(&tenants);
    let refused = bench.during(orders.subscribe(Kind::Plain, &channels)).await;
    assert_eq!(refused, Ok(vec![]));
    let mut client = redis.client().await;
    for (seq, channel) in channels.iter().enumerate() {
        client.command(&["PUBLISH", channel, &message(seq + 1)]).await;
    }
    client.command(&["PUBLISH", &channels[0], "something else"]).await;
    bench.during(orders.barrier()).await.unwrap();
    // The control channel was not subscribed to.
    assert_eq!((bench.messages.len(), bench.malformed, bench.kicks), (1000, 1, 0));
    for (seq, ((of, message), tenant)) in bench.messages.iter().zip(&tenants).enumerate() {
        assert_eq!((of, message.seq), (tenant, seq as u64 + 1));
    }

    // A push between an order and its answer.
    let control = vec![bench.names.control()];
    bench.during(orders.subscribe(Kind::Plain, &control)).await.unwrap();
    let published = bench.during(orders.ask(&["PUBLISH", &control[0], "kick"])).await.unwrap();
    assert!(matches!(published, Frame::Number { data: 1, .. }), "{published:?}");
    assert_eq!(bench.kicks, 1);
    let info = bench.during(orders.ask(&["INFO", "server"])).await.unwrap();
    assert!(text(&info).unwrap().contains(&format!("run_id:{}", orders.run)));

    bench.during(orders.unsubscribe(Kind::Plain, &channels)).await.unwrap();
    assert_eq!(redis.subscribed_channels("dash").await, Vec::<String>::new());
    assert_eq!((bench.ended.len(), bench.broken.len()), (0, 0));
}

#[tokio::test]
async fn f20_a_refused_channel_is_singled_out() {
    let redis = RedisServer::start().await;
    let tenants = tenants(600);
    let mut rights = vec!["ACL".to_owned(), "SETUSER".into(), "gateway".into(), "on".into(), ">secret".into()];
    rights.extend(["+@all".to_owned(), "~*".into(), "resetchannels".into()]);
    let mut bench = Bench::to(&redis.url().replace("//", "//gateway:secret@"));
    let channels = bench.channels(&tenants);
    let is_refused = |n: usize| n == 7 || n == 8 || n == 599;
    rights.extend((0..600).filter(|n| !is_refused(*n)).map(|n| format!("&{}", channels[n])));
    redis.command(&rights.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let orders = bench.connected().await;
    let refused = bench.during(orders.subscribe(Kind::Plain, &channels)).await.unwrap();
    let expected: Vec<_> = (0..600).filter(|n| is_refused(*n)).map(|n| &channels[n]).collect();
    assert_eq!(refused.iter().map(|(channel, _)| channel).collect::<Vec<_>>(), expected);
    assert!(refused.iter().all(|(_, why)| why.starts_with("NOPERM")), "{refused:?}");
    assert_eq!(redis.subscribed_channels("dash").await.len(), 597);
    // The connection is as good as before.
    redis.command(&["PUBLISH", &channels[0], &message(1)]).await;
    bench.during(orders.barrier()).await.unwrap();
    assert_eq!((bench.messages.len(), bench.broken.len()), (1, 0));
}

#[tokio::test]
async fn f19_a_subscription_that_the_server_ends_is_told() {
    let redis = RedisServer::start_with(&["--cluster-enabled", "yes"]).await;
    redis.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    eventually("the Cluster is whole", PATIENCE, async || {
        redis.command(&["CLUSTER", "INFO"]).await.text().contains("cluster_state:ok").then_some(())
    })
    .await;
    let mut bench = Bench::to(&redis.url());
    let orders = bench.connected().await;
    let tenants = tenants(3);
    let channels = bench.channels(&tenants);
    assert_eq!(bench.during(orders.subscribe(Kind::Sharded, &channels)).await, Ok(vec![]));
    let slot = redis.command(&["CLUSTER", "KEYSLOT", &channels[1]]).await.integer().to_string();
    redis.command(&["CLUSTER", "DELSLOTS", &slot]).await;
    bench.during(orders.barrier()).await.unwrap();
    assert_eq!(bench.ended, tenants[1..2]);

    // What this gateway ends itself is not told, whether the server still had it or not; and a refusal is its own channel's.
    bench.during(orders.unsubscribe(Kind::Sharded, &channels[..2])).await.unwrap();
    assert_eq!(bench.ended.len(), 1);
    let refused = bench.during(orders.subscribe(Kind::Sharded, &channels)).await.unwrap();
    assert!(
        refused.iter().any(|(channel, why)| *channel == channels[1] && why.starts_with("CLUSTERDOWN")),
        "{refused:?}"
    );
    assert!(bench.broken.is_empty(), "{:?}", bench.broken);
}

#[tokio::test]
async fn orders_fail_when_the_server_hangs_and_its_successor_takes_new_ones() {
    let redis = RedisServer::start().await;
    let mut bench = Bench::to(&redis.url());
    let orders = bench.connected().await;
    redis.freeze();
    assert_eq!(bench.during(orders.barrier()).await, Err(Unanswered));
    assert!(bench.broken[0].contains("no answer"), "{:?}", bench.broken);
    redis.thaw();
    let successor = bench.connected().await;
    assert_eq!(bench.during(orders.barrier()).await, Err(Unanswered));
    assert_eq!(bench.during(successor.barrier()).await, Ok(()));
    assert_eq!(successor.run, orders.run);
}

#[tokio::test]
async fn f11_a_subscription_that_is_neither_confirmed_nor_refused_is_no_subscription() {
    let redis = RedisServer::start().await;
    let armed = Arc::new(AtomicBool::new(true));
    let trigger = armed.clone();
    let way = Proxy::of_redis(redis.addr(), move |direction, frame| {
        let is_subscribe = direction == Direction::ToServer && frame.is_command("SUBSCRIBE");
        if is_subscribe && trigger.swap(false, Ordering::Relaxed) { Fate::Swallow } else { Fate::Pass }
    })
    .await;
    let mut bench = Bench::to(&format!("redis://{}", way.addr()));
    let orders = bench.connected().await;
    let channels = bench.channels(&tenants(3));
    assert_eq!(bench.during(orders.subscribe(Kind::Plain, &channels)).await, Err(Unanswered));
    assert_eq!(bench.during(orders.subscribe(Kind::Plain, &channels)).await, Ok(vec![]));
}

#[tokio::test]
async fn a_wrong_password_is_told_in_the_words_of_redis() {
    let redis = RedisServer::start().await;
    let mut bench = Bench::to(&redis.url());
    bench.connected().await;
    redis.command(&["CONFIG", "SET", "requirepass", "secret"]).await;
    let mut bench = Bench::to(&redis.url().replace("//", "//:wrong@"));
    bench.step().await;
    let mut without = Bench::to(&redis.url());
    without.step().await;
    assert!(bench.broken[0].starts_with("WRONGPASS") && without.broken[0].starts_with("NOAUTH"), "{:?}", bench.broken);
}
