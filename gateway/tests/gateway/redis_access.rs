//! Redis behind TLS, with users that may do no more than the runbook gives them.

use std::time::Duration;

use publisher::{Publisher, PublisherConfig};
use serde_json::json;

use crate::harness::events::payment_json;
use crate::harness::process::scratch;
use crate::harness::redis::{RedisServer, free_port};
use crate::harness::resp::Reply;
use crate::harness::tls::self_signed;
use crate::harness::{Dashboard, Setup, Token, eventually, http, payment, tenant, traffic};

const RUNBOOK: &str = include_str!("../../../deploy/README.md");
const PASSWORD: &str = "p@ss:w/rd";
/// The same where it stands in a URL.
const ENCODED: &str = "p%40ss%3Aw%2Frd";

/// The runbook's command for this user, with our password and prefix.
fn acl(user: &str, prefix: &str) -> Vec<String> {
    let (_, rest) = RUNBOOK.split_once(&format!("ACL SETUSER {user} ")).expect("the runbook has the user");
    // A command goes on where its line ends in a backslash.
    let (mut rules, mut lines) = (String::new(), rest.lines());
    while let Some(line) = lines.next().map(str::trim) {
        rules.push_str(line.trim_end_matches('\\'));
        if !line.ends_with('\\') {
            break;
        }
    }
    let ours = |rule: &str| rule.replace(">…", &format!(">{PASSWORD}")).replace("dash:", &format!("{prefix}:"));
    ["ACL", "SETUSER", user].map(str::to_owned).into_iter().chain(rules.split_whitespace().map(ours)).collect()
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
        let command = acl(user, &stack.prefix);
        stack.redis().command(&command.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    stack.gateway().metric_becomes("gateway_redis_up", &[], 1.0).await;
    stack.redis().command(&["ACL", "LOG", "RESET"]).await;

    // Joins, events from billing and over HTTP, heartbeats with their comparisons, resumes.
    let billing = PublisherConfig {
        redis_url: format!("redis://billing:{ENCODED}@{}", stack.redis().addr()),
        ..stack.publisher_config()
    };
    let billing = Publisher::connect(billing).await.unwrap();
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
