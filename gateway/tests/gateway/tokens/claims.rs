//! B43–B51: tokens with the right signature that say impossible, foreign or far too much, each by all three ways in.

use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::harness::admission::{accepted, refused};
use crate::harness::token::{now, sign_claims_text};
use crate::harness::{Bring, Bystanders, Dashboard, Setup, Token, hostile, http, tenant};

fn good() -> Token {
    Token::of("t1")
}

#[tokio::test]
async fn b43_expiry_is_a_number_in_the_future_with_leeway_5() {
    let counted =
        ["disconnects token_expired", "disconnects unauthorized", "joins token_expired", "joins unauthorized"];
    hostile(Setup::new(), &counted, async |stack, _| {
        let text = |exp: &str| sign_claims_text(&format!(r#"{{"sub":"bursar","tenantId":"t1","exp":{exp}}}"#));
        refused(
            stack,
            4401,
            &[
                ("missing", good().without_claim("exp").sign()),
                ("null", text("null")),
                ("text", text(&format!("\"{}\"", now() + 3600))),
                ("array", text(&format!("[{}]", now() + 3600))),
                ("negative", text("-1")),
                ("zero", text("0")),
                ("one", text("1")),
                ("1e400", text("1e400")),
                ("expired for 7 s", good().expiring_in(-7).sign()),
                ("expired for an hour", good().expiring_in(-3600).sign()),
            ],
        )
        .await;
        accepted(
            stack,
            &[
                ("a float", text(&format!("{}.5", now() + 3600))),
                ("a float in exponents", text(&format!("{:e}", (now() + 3600) as f64))),
            ],
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn b43_leeway_lets_a_token_expired_for_3_s_in() {
    hostile(Setup::new(), &[], async |stack, _| {
        for way in Bring::ALL {
            let mut dashboard = Dashboard::bring(stack.addr(), way, "t1", &good().expiring_in(-3).sign()).await;
            dashboard.until("joined").await;
            dashboard.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn b65_no_token_lives_longer_than_a_kick() {
    hostile(Setup::new(), &["disconnects unauthorized", "joins unauthorized"], async |stack, _| {
        let text = |exp: &str| sign_claims_text(&format!(r#"{{"sub":"bursar","tenantId":"t1","exp":{exp}}}"#));
        let years = [now() + 3_000_000_000, u64::from(u32::MAX) * 1000];
        let mut far: Vec<_> = years.iter().map(|exp| ("far", text(&exp.to_string()))).collect();
        far.push(("18446744073709550000", text("18446744073709550000")));
        far.push(("i64::MAX", text("9223372036854775807")));
        let month = 30 * 24 * 3600;
        far.push(("31 days", text(&(now() + month + 24 * 3600).to_string())));
        refused(stack, 4401, &far).await;
        accepted(stack, &[("30 days", text(&(now() + month).to_string()))]).await;
    })
    .await;
    let stack = Setup::new().env("JWT_MAX_LIFETIME_SECONDS", "60").lease().await;
    refused(&stack, 4401, &[("two minutes", good().expiring_in(120).sign())]).await;
    accepted(&stack, &[("a minute", good().expiring_in(60).sign())]).await;
    stack.refused(&["disconnects unauthorized", "joins unauthorized"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b45_not_before_is_honoured() {
    hostile(Setup::new(), &["disconnects unauthorized", "joins unauthorized"], async |stack, _| {
        let nbf = |value: Value| good().claim("nbf", value).sign();
        refused(
            stack,
            4401,
            &[
                ("in 10 minutes", nbf(json!(now() + 600))),
                ("text in the past", nbf(json!((now() - 600).to_string()))),
                ("text in the future", nbf(json!((now() + 600).to_string()))),
                ("array", nbf(json!([now()]))),
            ],
        )
        .await;
        accepted(
            stack,
            &[
                ("within the leeway", nbf(json!(now() + 4))),
                ("in the past", nbf(json!(now() - 600))),
                ("iat in the future", good().claim("iat", json!(now() + 600)).sign()),
            ],
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn b46_issuer_and_audience_are_required_when_configured() {
    let setup = Setup::new().env("JWT_ISSUER", "https://crechebooks.example").env("JWT_AUDIENCE", "dashboard");
    let stack = setup.lease().await;
    let right = || good().claim("iss", json!("https://crechebooks.example")).claim("aud", json!("dashboard"));
    refused(
        &stack,
        4401,
        &[
            ("neither", good().sign()),
            ("no iss", right().without_claim("iss").sign()),
            ("wrong iss", right().claim("iss", json!("https://crechebooks.example.evil")).sign()),
            ("iss number", right().claim("iss", json!(1)).sign()),
            ("iss null", right().claim("iss", Value::Null).sign()),
            ("no aud", right().without_claim("aud").sign()),
            ("wrong aud", right().claim("aud", json!("billing")).sign()),
            ("aud number", right().claim("aud", json!(1)).sign()),
            ("aud null", right().claim("aud", Value::Null).sign()),
            ("empty aud", right().claim("aud", json!([])).sign()),
            ("no match among aud", right().claim("aud", json!(["billing", "reports"])).sign()),
        ],
    )
    .await;
    accepted(
        &stack,
        &[("right", right().sign()), ("one match", right().claim("aud", json!(["billing", "dashboard"])).sign())],
    )
    .await;
    stack.refused(&["disconnects unauthorized", "joins unauthorized"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b46_issuer_and_audience_are_ignored_when_not_configured() {
    hostile(Setup::new(), &[], async |stack, _| {
        let token = good().claim("iss", json!("anyone")).claim("aud", json!(["anything"]));
        accepted(stack, &[("both", token.sign()), ("aud", good().claim("aud", json!("x")).sign())]).await;
    })
    .await;
}

#[tokio::test]
async fn b47_unusable_tenant_claims_are_4403() {
    hostile(Setup::new(), &["disconnects unusable_claim", "joins unusable_claim"], async |stack, _| {
        let naming = |claim: Value| Token::naming(claim).sign();
        refused(
            stack,
            4403,
            &[
                ("missing", good().without_claim("tenantId").sign()),
                ("null", naming(Value::Null)),
                ("number", naming(json!(1))),
                ("boolean", naming(json!(true))),
                ("object", naming(json!({ "id": "t1" }))),
                ("empty", naming(json!(""))),
                ("empty array", naming(json!([]))),
                ("array of a number", naming(json!([1]))),
                ("array with a number", naming(json!(["t1", 1]))),
                ("array of arrays", naming(json!([["t1"]]))),
                ("65 characters", naming(json!("t".repeat(65)))),
                ("65 characters in an array", naming(json!(["t".repeat(65)]))),
            ],
        )
        .await;
        accepted(
            stack,
            &[("an array of one", naming(json!(["t1"]))), ("duplicates", naming(json!(["t1", "t1", "t1"])))],
        )
        .await;
        let longest = "t".repeat(64);
        Dashboard::joined(stack.addr(), &longest, &Token::of(&longest).sign()).await.close().await;
        // Capped at 256; the message carries this one, no header would.
        let many: Vec<String> = (0..300).map(|n| format!("t{n}")).collect();
        let mut dashboard = Dashboard::bring(stack.addr(), Bring::Join, "t299", &naming(json!(many))).await;
        dashboard.expect_refusal(4403).await;
    })
    .await;
}

#[tokio::test]
async fn b47_tenant_claim_has_the_configured_name() {
    let stack = Setup::new().env("JWT_TENANT_CLAIM", "https://crechebooks.example/centre").lease().await;
    let token = Token::of("t2").claim("https://crechebooks.example/centre", json!("t1"));
    accepted(&stack, &[("by the configured name", token.sign())]).await;
    refused(&stack, 4403, &[("by the default name", good().sign())]).await;
    stack.refused(&["disconnects unusable_claim", "joins unusable_claim"]).await;
    stack.finish().await;
}

const HOSTILE_TENANTS: [&str; 14] = [
    "*",
    "?",
    "[a]",
    "{t1}",
    "t1}:events",
    "a b",
    "t1\r\nFLUSHALL",
    "t1\u{0}",
    "../t2",
    "t\u{0435}nant",
    "%74%31",
    "t1:log",
    "t.1",
    "t1 ",
];

#[tokio::test]
async fn b48_only_tenant_ids_ever_reach_redis() {
    let counted = [
        "disconnects unusable_claim",
        "disconnects wrong_tenant",
        "http_requests 403",
        "joins unusable_claim",
        "joins wrong_tenant",
    ];
    hostile(Setup::new(), &counted, async |stack, bystanders| {
        let mut monitor = stack.redis().client().await;
        monitor.command(&["MONITOR"]).await;
        for name in HOSTILE_TENANTS {
            refused(
                stack,
                4403,
                &[(name, Token::naming(json!(name)).sign()), (name, Token::naming(json!([name])).sign())],
            )
            .await;
            // By a good token, asking for a bad name.
            let mut dashboard = Dashboard::bring(stack.addr(), Bring::Join, name, &bystanders.token()).await;
            let error = dashboard.expect("error").await;
            let refused = error.data["code"] == "bad_message" || dashboard.close_code().await == 4403;
            assert!(refused, "{name:?}: {}", error.raw);
            dashboard.close().await;
            let path = format!("/dashboard/snapshot?tenantId={}", percent_encoded(name));
            let bearer = format!("Bearer {}", bystanders.token());
            let snapshot = http::get_with(stack.addr(), &path, &[("Authorization", &bearer)]).await;
            assert!(matches!(snapshot.status, 400 | 403), "{name:?}: {snapshot:?}");
        }
        let prefix = format!("{}:", stack.prefix);
        for line in monitor.drain(Duration::from_millis(200)).await {
            for word in line.text().split('"').filter(|word| word.starts_with(&prefix)) {
                let name = &word[prefix.len()..];
                let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
                let of_a_tenant = name.strip_prefix('{').and_then(|rest| rest.split_once("}:"));
                let right = match of_a_tenant {
                    Some((tenant, what)) => {
                        (1..=64).contains(&tenant.len()) && plain(tenant) && what.split(':').all(plain)
                    }
                    None => name.split(':').all(plain),
                };
                assert!(right, "{word:?} reached Redis");
            }
        }
    })
    .await;
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn b48_tenants_differ_by_case() {
    hostile(Setup::new(), &["disconnects wrong_tenant", "joins wrong_tenant"], async |stack, _| {
        let mut dashboard = Dashboard::bring(stack.addr(), Bring::Join, "T1", &good().sign()).await;
        dashboard.expect_refusal(4403).await;
    })
    .await;
}

#[tokio::test]
async fn b49_large_tokens() {
    let counted = ["disconnects too_big", "disconnects unauthorized", "joins unauthorized"];
    hostile(Setup::new(), &counted, async |stack, _| {
        let padded = |bytes: usize| good().claim("pad", json!("x".repeat(bytes))).sign();
        let mut dashboard = Dashboard::bring(stack.addr(), Bring::Join, "t1", &padded(45_000)).await;
        assert_eq!(dashboard.close_code().await, 1009, "60 KB exceed MAX_MESSAGE_BYTES");
        accepted(stack, &[("11 KB", padded(8_000)), ("15 KB", padded(11_000))]).await;
        let garbage = "a".repeat(15_000);
        refused(stack, 4401, &[("15 KB of a", garbage)]).await;
    })
    .await;
}

#[tokio::test]
async fn b50_foreign_tenant_is_4403_and_tells_nothing() {
    let counted = ["disconnects wrong_tenant", "http_requests 403", "joins wrong_tenant"];
    hostile(Setup::new(), &counted, async |stack, bystanders| {
        let own = tenant();
        let token = Token::of(own.as_str()).sign();
        let bearer = format!("Bearer {token}");
        let mut texts = Vec::new();
        // One exists and has an open dashboard, the other doesn't.
        for foreign in [&bystanders.victim, &tenant()] {
            let mut dashboard = Dashboard::bring(stack.addr(), Bring::Join, foreign.as_str(), &token).await;
            let error = dashboard.expect_refusal(4403).await;
            let path = format!("/dashboard/snapshot?tenantId={foreign}");
            let snapshot = http::get_with(stack.addr(), &path, &[("Authorization", &bearer)]).await.expect(403);
            let told = format!("{} {}", error.data, snapshot.body).replace(foreign.as_str(), "");
            texts.push(told);
        }
        assert_eq!(texts[0], texts[1]);
        // Nor by the back door: a joined socket that asks for another tenant.
        let mut dashboard = stack.dashboard(&own).await;
        dashboard.send_join(bystanders.victim.as_str(), Some(&token), None).await;
        dashboard.until("error").await;
        assert_eq!(dashboard.close_code().await, 4403);
    })
    .await;
}

#[tokio::test]
async fn b51_flood_of_bad_joins_delays_nobody() {
    let mut stack = Setup::new().lease().await;
    let mut bystanders = Bystanders::join(&stack).await;
    let addr = stack.addr();
    let bad =
        good().sign_with(&EncodingKey::from_secret(b"another secret, as long as the first one is"), Algorithm::HS256);
    let mut floods = Vec::new();
    for _ in 0..8 {
        let bad = bad.clone();
        floods.push(tokio::spawn(async move {
            for _ in 0..50 {
                let mut dashboard = Dashboard::bring(addr, Bring::Join, "t1", &bad).await;
                assert_eq!(dashboard.close_code().await, 4401);
            }
        }));
    }
    let mut slowest = Duration::ZERO;
    while !floods.iter().all(tokio::task::JoinHandle::is_finished) {
        let begun = Instant::now();
        bystanders.receive(&mut stack).await;
        slowest = slowest.max(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    for flood in floods {
        flood.await.unwrap();
    }
    assert!(slowest < Duration::from_millis(500), "a bystander waited {slowest:?}");
    bystanders.unharmed(&mut stack).await;
    bystanders.leave().await;
    stack.refused(&["disconnects unauthorized", "joins unauthorized"]).await;
    stack.finish().await;
}
