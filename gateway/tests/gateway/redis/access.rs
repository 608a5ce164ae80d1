//! Redis behind TLS, with users that may do no more than the runbook gives them.

use std::time::{Duration, Instant};

use publisher::Publisher;
use serde_json::json;

use crate::harness::events::payment_json;
use crate::harness::failover::{assert_sockets_stayed_open, until_all_arrives};
use crate::harness::ledger::{Entry, Ledger};
use crate::harness::ports::free_port;
use crate::harness::process::scratch;
use crate::harness::redis::RedisServer;
use crate::harness::resp::Reply;
use crate::harness::tls::self_signed;
use crate::harness::{
    Dashboard, Follower, Gateway, RedisCluster, Sentinels, Setup, Stack, Token, eventually, follower, http, payment,
    tenant, tenants, traffic,
};

const RUNBOOK: &str = include_str!("../../../../deploy/README.md");
const PASSWORD: &str = "p@ss:w/rd";
/// The same where it stands in a URL.
const ENCODED: &str = "p%40ss%3Aw%2Frd";

/// The runbook's commands for this user, with our password and prefix: the one for any Redis, and the one on top for a Cluster.
fn acl(user: &str, prefix: &str) -> Vec<Vec<String>> {
    let commands = commands_for(user, prefix);
    assert_eq!(commands.len(), 2, "the runbook has two commands for {user}");
    commands
}

fn commands_for(user: &str, prefix: &str) -> Vec<Vec<String>> {
    let command = format!("    ACL SETUSER {user} ");
    let commands = RUNBOOK.split(&command).skip(1).map(|rest| {
        // A command goes on where its line ends in a backslash.
        let (mut rules, mut lines) = (String::new(), rest.lines());
        while let Some(line) = lines.next().map(str::trim) {
            rules.push_str(line.trim_end_matches('\\'));
            if !line.ends_with('\\') {
                break;
            }
        }
        let ours = rules.replace(">…", &format!(">{PASSWORD}")).replace("dash:", &format!("{prefix}:"));
        // What stands in quotes is one word.
        let words = ours.split('\'').enumerate().flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        });
        ["ACL", "SETUSER", user].map(str::to_owned).into_iter().chain(words).collect()
    });
    commands.collect()
}

async fn give(redis: &RedisServer, command: &[String]) {
    redis.command(&command.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

async fn publisher_as_billing(stack: &Stack, address: &str) -> Publisher {
    let mut config = stack.publisher_config();
    config.redis_url = address.replace("//", &format!("//billing:{ENCODED}@"));
    Publisher::connect(config).await.unwrap()
}

#[tokio::test]
async fn the_least_rights_of_the_runbook_are_enough_over_tls() {
    let directory = scratch(&format!("redis-tls-{}", free_port()));
    let certificate = self_signed(&directory);
    let (certificate, key) = (certificate.to_str().unwrap(), directory.join("certificate.key"));
    let tls = free_port().to_string();
    let redis = RedisServer::start_with(&[
        "--tls-port",
        &tls,
        "--tls-cert-file",
        certificate,
        "--tls-key-file",
        key.to_str().unwrap(),
        "--tls-auth-clients",
        "no",
    ])
    .await;
    let url = format!("rediss://gateway:{ENCODED}@127.0.0.1:{tls}");
    let setup = Setup::new().redis_url(&url).env("SSL_CERT_FILE", certificate).env("HEARTBEAT_SECONDS", "1");
    // Before the users are there: a gateway that is refused tries again until it isn't.
    let stack = setup.start_on(Some(redis)).await;
    for user in ["gateway", "billing"] {
        give(stack.redis(), &acl(user, &stack.prefix)[0]).await;
    }
    stack.gateway().metric_becomes("gateway_redis_up", &[], 1.0).await;
    stack.redis().command(&["ACL", "LOG", "RESET"]).await;

    // Joins, events from billing and over HTTP, heartbeats with their comparisons, resumes.
    let billing = publisher_as_billing(&stack, &stack.redis().url()).await;
    let room = tenant();
    let token = Token::of(room.as_str()).claim("iat", json!(1)).sign();
    let mut dashboard = stack.dashboard(&room).await;
    traffic::publish(&billing, &room, &payment()).await;
    dashboard.next_event().await;
    let path = format!("/v1/tenants/{room}/events");
    http::post(stack.gateway().internal, &path, &payment_json()).await.expect(202);
    dashboard.until_event().await;
    dashboard.until("heartbeat").await;
    dashboard.until("heartbeat").await;
    let cursor = dashboard.cursor();
    dashboard.close().await;
    traffic::publish(&billing, &room, &payment()).await;
    let mut resumed = Dashboard::open(stack.addr()).await;
    resumed.resume(room.as_str(), &token, &cursor).await;
    resumed.until_event().await;

    // A cut, after which everything is subscribed anew, and a kick.
    stack.redis().kill_subscribers().await;
    stack
        .gateway()
        .metric_until("gateway_redis_reconnects_total", &[], Duration::from_secs(5), "grows", |n| n > 0.0)
        .await;
    traffic::publish(&billing, &room, &payment()).await;
    resumed.until_event().await;
    let kicked = http::post(stack.gateway().internal, &format!("/v1/tenants/{room}/disconnect"), "").await;
    assert!((200..300).contains(&kicked.status), "{kicked:?}");
    resumed.until("error").await;
    assert_eq!(resumed.close_code().await, 4401);

    let refused = stack.redis().command(&["ACL", "LOG"]).await;
    assert!(matches!(&refused, Reply::Array(entries) if entries.is_empty()), "{refused:?}");
    eventually("the room closes", Duration::from_secs(5), async || {
        stack.redis().subscribed_channels(&stack.prefix).await.is_empty().then_some(())
    })
    .await;
    billing.close().await;
    stack.finish().await;
}

/// SUBSCRIBE has many channels, and is refused as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_a_tenant_whose_channel_is_refused_degrades_nobody_else() {
    let redis = RedisServer::start().await;
    let url = redis.url().replace("//", &format!("//gateway:{ENCODED}@"));
    let mut stack = Setup::new().redis_url(&url).start_on(Some(redis)).await;
    give(stack.redis(), &acl("gateway", &stack.prefix)[0]).await;
    stack.gateway().metric_becomes("gateway_redis_up", &[], 1.0).await;
    let rooms = tenants(6);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let names = publisher::internals::Names::new(&stack.prefix).unwrap();
    let events = |room| format!("&{}", names.events(room));

    // Of one room, and all connections: everything is subscribed to anew.
    let mut rights = vec!["ACL".to_owned(), "SETUSER".into(), "gateway".into(), "resetchannels".into()];
    rights.extend([format!("&{}", names.control()), format!("&{}", names.probe("*"))]);
    rights.extend(rooms[1..].iter().map(events));
    give(stack.redis(), &rights).await;
    stack.redis().kill_everyone().await;
    let told = |ledger: &Ledger| ledger.count(|entry| matches!(entry, Entry::Degraded));
    eventually("the room is told", Duration::from_secs(10), async || (told(&followers[0].ledger()) > 0).then_some(()))
        .await;
    stack.gateway().metric_becomes("gateway_redis_up", &[], 1.0).await;
    let publisher = stack.publisher().await;
    let mut receipts = Vec::new();
    for room in &rooms[1..] {
        receipts.push(traffic::publish(&publisher, room, &payment()).await);
    }
    follower::caught_up(&followers[1..], &receipts).await;
    // Another room opens meanwhile, and is served.
    let opened = tenant();
    give(stack.redis(), &["ACL".into(), "SETUSER".into(), "gateway".into(), events(&opened)]).await;
    let mut dashboard = stack.dashboard(&opened).await;
    traffic::publish(&publisher, &opened, &payment()).await;
    dashboard.until_event().await;
    dashboard.close().await;

    give(stack.redis(), &["ACL".into(), "SETUSER".into(), "gateway".into(), events(&rooms[0])]).await;
    receipts.push(traffic::publish(&publisher, &rooms[0], &payment()).await);
    follower::judge(followers, receipts).await;
    stack.finish().await;
}

/// The billing code's password lets its holder publish any event, and close no dashboard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b70_billing_publishes_and_may_not_kick() {
    let (redis, cluster) = tokio::join!(RedisServer::start(), RedisCluster::start());
    let on_one = Setup::new().start_on(Some(redis)).await;
    let on_cluster = Setup::new().redis_url(&cluster.url()).start_on(None).await;
    for (stack, nodes) in [(on_one, &[][..]), (on_cluster, &cluster.nodes[..])] {
        let nodes: Vec<&RedisServer> = if nodes.is_empty() { vec![stack.redis()] } else { nodes.iter().collect() };
        for node in &nodes {
            let commands = acl("billing", &stack.prefix);
            for command in if nodes.len() == 1 { &commands[..1] } else { &commands[..] } {
                give(node, command).await;
            }
        }
        let room = tenant();
        let mut dashboard = stack.dashboard(&room).await;
        // Another tenant's kick leaves whatever kicks leave.
        let kick = format!("/v1/tenants/{}/disconnect", tenant());
        let kicked = http::post(stack.gateway().internal, &kick, "").await;
        assert!((200..300).contains(&kicked.status), "{kicked:?}");
        let names = publisher::internals::Names::new(&stack.prefix).unwrap();
        let (control, figures, any) = (names.control(), names.figures(&room), format!("{}:any", stack.prefix));
        let mut of_kicks = 0;
        for node in &nodes {
            let keys = node.command(&["KEYS", &format!("{}:*", stack.prefix)]).await;
            let is_of_an_event =
                |key: &&str| key.ends_with(":state") || key.ends_with(":log") || key.contains(":once:");
            let others: Vec<&str> = keys.texts().into_iter().filter(|key| !is_of_an_event(key)).collect();
            of_kicks += others.len();
            let mut commands = vec![
                vec!["PUBLISH", &control, "{}"],
                vec!["SPUBLISH", &control, "{}"],
                vec!["EVAL", "return redis.call('PUBLISH', ARGV[1], '{}')", "0", &control],
                vec!["XADD", &any, "*", "k", "{}"],
                vec!["SET", &figures, "x"],
                vec!["KEYS", "*"],
            ];
            for key in others {
                commands.push(vec!["DEL", key]);
                commands.push(vec!["SET", key, "x"]);
                commands.push(vec!["ZADD", key, "1", "x"]);
                commands.push(vec!["EVAL", "return redis.call('DEL', KEYS[1])", "1", key]);
            }
            let mut billing = node.client().await;
            billing.command(&["AUTH", "billing", PASSWORD]).await;
            for command in commands {
                let answer = billing.try_command(&command).await.unwrap();
                let is_refused =
                    matches!(&answer, Reply::Error(why) if why.contains("NOPERM") || why.contains("can't publish"));
                assert!(is_refused, "{command:?}: {answer:?}");
            }
        }
        assert!(of_kicks > 0, "a kick leaves a name");
        let address = if nodes.len() == 1 { stack.redis().url() } else { cluster.url() };
        let billing = publisher_as_billing(&stack, &address).await;
        traffic::publish(&billing, &room, &payment()).await;
        dashboard.next_event().await;
        billing.close().await;
        dashboard.close().await;
        stack.finish().await;
    }
}

/// While it runs: its channels, then its password. Browsers are told, the log says why and doesn't go on about it, and it heals
/// by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_rights_that_are_taken_away_are_missed_aloud_and_given_back_unnoticed() {
    let redis = RedisServer::start().await;
    let url = redis.url().replace("//", &format!("//gateway:{ENCODED}@"));
    let mut stack = Setup::new().redis_url(&url).start_on(Some(redis)).await;
    let rights = acl("gateway", &stack.prefix)[0].clone();
    give(stack.redis(), &rights).await;
    stack.gateway().metric_becomes("gateway_redis_up", &[], 1.0).await;
    let rooms = tenants(3);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let mut receipts = Vec::new();
    for (taken, kill, why) in [("resetchannels", false, "ACL LOG"), ("resetpass", true, "WRONGPASS")] {
        until_all_arrives(&mut stack, &followers, &mut receipts).await;
        let told = |ledger: &Ledger| ledger.count(|entry| matches!(entry, Entry::Degraded));
        let before: Vec<_> = followers.iter().map(|follower| told(&follower.ledger())).collect();
        let (lines, begun) = (stack.gateway().log().lines().len(), Instant::now());
        stack.redis().command(&["ACL", "SETUSER", "gateway", taken]).await;
        if kill {
            stack.redis().kill_everyone().await;
        }
        eventually("everybody is told", Duration::from_secs(5), async || {
            followers.iter().zip(&before).all(|(follower, before)| told(&follower.ledger()) > *before).then_some(())
        })
        .await;
        // In the last minute: that the password is wrong it said at its start, before there was a user.
        eventually("the log says why", Duration::from_secs(5), async || {
            stack.gateway().log().text().contains(why).then_some(())
        })
        .await;
        // Meanwhile it tries again, many times a second.
        tokio::time::sleep(Duration::from_secs(2).saturating_sub(begun.elapsed())).await;
        let said = stack.gateway().log().lines()[lines..].join("\n");
        // One line for each connection that is lost, and one for what is refused on it.
        assert!(said.lines().count() <= 6, "{said}");
        give(stack.redis(), &rights).await;
        stack.gateway().metric_becomes("gateway_redis_up", &[], 1.0).await;
    }
    until_all_arrives(&mut stack, &followers, &mut receipts).await;
    let ledgers = follower::judge(followers, receipts).await;
    assert_sockets_stayed_open(&ledgers);
    assert!(ledgers.iter().all(|ledger| ledger.resyncs() == 0), "nothing was lost");
    stack.finish().await;
}

/// It reads, subscribes, and proves that it hears; whatever it can't do for want of rights, nobody loses an event by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_may_only_read_serves_browsers_all_the_same() {
    let redis = RedisServer::start().await;
    let url = redis.url().replace("//", &format!("//viewer:{ENCODED}@"));
    let setup = Setup::new().redis_url(&url).env("HEARTBEAT_SECONDS", "1").without("PUBLISH_API_KEY");
    let stack = setup.start_on(Some(redis)).await;
    for user in ["viewer", "billing"] {
        give(stack.redis(), &acl(user, &stack.prefix)[0]).await;
    }
    stack.gateway().metric_becomes("gateway_redis_up", &[], 1.0).await;
    let billing = publisher_as_billing(&stack, &stack.redis().url()).await;

    // Nobody ever published for these tenants: their first epoch comes with their first event.
    let rooms = tenants(3);
    let followers = Follower::start_all(&stack.addrs(), &rooms).await;
    let left = stack.dashboard(&rooms[0]).await;
    let before = left.cursor();
    left.close().await;
    let mut receipts = Vec::new();
    for _ in 0..3 {
        for room in &rooms {
            receipts.push(traffic::publish(&billing, room, &payment()).await);
        }
    }
    follower::caught_up(&followers, &receipts).await;
    // A dashboard that saw the provisional epoch has missed the events since.
    let token = Token::of(rooms[0].as_str()).sign();
    let mut back = Dashboard::open(stack.addr()).await;
    let joined = back.resume(rooms[0].as_str(), &token, &before).await;
    assert_eq!(joined.data["recovered"], false, "{}", joined.raw);
    back.close().await;

    // A state that is gone, with a gateway that can't begin another: the next event does.
    stack.redis().command(&["FLUSHALL"]).await;
    for follower in &followers {
        eventually("told of the loss", Duration::from_secs(5), async || {
            (follower.ledger().cursor()?.seq == 0).then_some(())
        })
        .await;
    }
    stack.redis().kill_subscribers().await;
    for room in &rooms {
        receipts.push(traffic::publish(&billing, room, &payment()).await);
    }
    let ledgers = follower::judge(followers, receipts).await;
    assert!(ledgers.iter().all(|ledger| ledger.cursor().unwrap().seq == 1));
    let written = stack.redis().command(&["ACL", "LOG"]).await;
    for refusal in ["hset", "del", "pexpire", "publish", "xadd", "set"] {
        assert!(!written.texts().contains(&refusal), "{written:?}");
    }
    billing.close().await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_rights_of_the_runbook_are_enough_on_a_cluster() {
    let cluster = RedisCluster::start().await;
    let with = |user: &str| cluster.url().replace("//", &format!("//{user}:{ENCODED}@"));
    for user in ["gateway", "viewer"] {
        let stack = Setup::new().env("HEARTBEAT_SECONDS", "1").redis_url(&with(user)).start_on(None).await;
        for node in &cluster.nodes {
            for command in [acl(user, &stack.prefix), acl("billing", &stack.prefix)].concat() {
                give(node, &command).await;
            }
            node.command(&["ACL", "LOG", "RESET"]).await;
        }
        stack.gateway().metric_becomes("gateway_redis_up", &[], 1.0).await;
        let billing = publisher_as_billing(&stack, &cluster.url()).await;
        let rooms = tenants(12);
        let followers = Follower::start_all(&stack.addrs(), &rooms).await;
        let mut receipts = Vec::new();
        for _ in 0..3 {
            for room in &rooms {
                receipts.push(traffic::publish(&billing, room, &payment()).await);
            }
        }
        follower::judge(followers, receipts).await;
        for node in &cluster.nodes {
            let refused = node.command(&["ACL", "LOG"]).await;
            let allowed = user == "viewer" || matches!(&refused, Reply::Array(entries) if entries.is_empty());
            assert!(allowed, "{user}: {refused:?}");
        }
        billing.close().await;
        stack.finish().await;
    }
}

/// With them, and with those that earlier versions needed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_rights_of_the_runbook_are_enough_on_sentinels() {
    let sentinels = Sentinels::start().await;
    let url = format!("{}&sentinelUsername=crechebooks&sentinelPassword={ENCODED}", sentinels.url());
    let rights = commands_for("crechebooks", "").remove(0);
    let earlier = "nocommands +hello +ping +client|id +info +sentinel|get-master-addr-by-name".split(' ');
    let earlier: Vec<_> = rights[..5].iter().cloned().chain(earlier.map(str::to_owned)).collect();
    assert_eq!(earlier[3..5], ["on".to_owned(), format!(">{PASSWORD}")]);
    for rights in [&earlier, &rights] {
        for reply in sentinels.command(&["ACL", "DELUSER", "crechebooks"]).await {
            assert!(matches!(reply, Reply::Integer(_)), "{reply:?}");
        }
        sentinels.command(&rights.iter().map(String::as_str).collect::<Vec<_>>()).await;
        sentinels.command(&["ACL", "LOG", "RESET"]).await;
        let stack = Setup::new().redis_url(&url).start_on(None).await;
        stack.gateway().metric_becomes("gateway_redis_up", &[], 1.0).await;
        stack.finish().await;
    }
    for refused in sentinels.command(&["ACL", "LOG"]).await {
        assert!(matches!(&refused, Reply::Array(entries) if entries.is_empty()), "{refused:?}");
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_not_believed() {
    let directory = scratch(&format!("redis-tls-{}", free_port()));
    let certificate = self_signed(&directory);
    let tls = free_port().to_string();
    let (file, key) = (certificate.to_str().unwrap(), directory.join("certificate.key"));
    let arguments = ["--tls-port", &tls, "--tls-cert-file", file, "--tls-key-file", key.to_str().unwrap()];
    let redis = RedisServer::start_with(&[&arguments[..], &["--tls-auth-clients", "no"]].concat()).await;
    let stack = Setup::new().redis_url(&format!("rediss://127.0.0.1:{tls}")).start_on(Some(redis)).await;
    eventually("the log says why", Duration::from_secs(10), async || {
        stack.gateway().log().text().contains("InvalidCertificate").then_some(())
    })
    .await;
    assert_eq!(stack.gateway().metric("gateway_redis_up", &[]).await, 0.0);
    stack.finish().await;
}

/// What `gateway check` says of a Redis, and whether it is content.
async fn checked(url: &str) -> (bool, String) {
    let setup = Setup::new().env("REDIS_URL", url);
    let begun = Instant::now();
    let (status, log) = Gateway::run(&["check"], setup.environment()).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?} for {url}", begun.elapsed());
    (status.success(), log.lines().into_iter().filter(|line| line.starts_with("redis:")).collect::<Vec<_>>().join("\n"))
}

#[tokio::test]
async fn check_names_the_server_and_what_is_wrong_with_it() {
    let redis = RedisServer::start().await;
    redis.command(&["CONFIG", "SET", "requirepass", PASSWORD]).await;
    let (addr, with) = (redis.addr(), |password: &str| redis.url().replace("//", &format!("//:{password}@")));
    assert_eq!(checked(&with(ENCODED)).await, (true, format!("redis: {addr} answers")));
    for (url, why) in
        [(with("hunter2"), "WRONGPASS"), (redis.url(), "NOAUTH"), ("redis://127.0.0.1:1".into(), "refused")]
    {
        let (content, said) = checked(&url).await;
        assert!(!content && said.contains("cannot be used") && said.contains(why), "{url}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn check_looks_at_every_server_that_there_is() {
    let (cluster, sentinels) = tokio::join!(RedisCluster::start(), Sentinels::start());
    let (content, said) = checked(&cluster.url()).await;
    let mut masters: Vec<_> = cluster.nodes[..3].iter().map(|node| format!("redis: {} answers", node.addr())).collect();
    masters.sort();
    let mut lines: Vec<_> = said.lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!((content, lines), (true, masters));
    let master = format!("redis: {} answers", sentinels.servers[0].addr());
    assert_eq!(checked(&sentinels.url()).await, (true, master));
    let (content, said) = checked(&sentinels.url().replace("sentinelServiceName=books", "sentinelServiceName=b")).await;
    assert!(!content && said.contains("knows no master of that name"), "{said}");
}
