//! B60: a configuration that can't be used stops the start, at once, with one line that names the variable.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::process::{Process, scratch};
use crate::harness::{Gateway, Setup, Token};

/// Runs the binary until it ends by itself: its exit code and all it wrote.
async fn run(arguments: &[&str], environment: &[(String, String)]) -> (i32, Vec<String>) {
    let begun = Instant::now();
    let (mut process, log): (Process, _) = Gateway::spawn(arguments, environment);
    let (status, _) = process.exit(Duration::from_secs(5)).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{arguments:?} {environment:?} took {:?}", begun.elapsed());
    // The pipes may be read a moment later than the process ends.
    tokio::time::sleep(Duration::from_millis(50)).await;
    log.assert_clean();
    (status.code().expect("no signal ended it"), log.lines())
}

/// Each row: what is changed, the variable that the one line must name, and what it must not tell.
async fn each_is_refused(rows: Vec<(Setup, &str, &str)>) {
    for (setup, variable, untold) in rows {
        let (code, lines) = run(&["serve"], setup.environment()).await;
        assert_ne!(code, 0, "{variable}: {lines:?}");
        assert_eq!(lines.len(), 1, "one line about {variable}: {lines:#?}");
        assert!(lines[0].contains(variable), "{variable} is not named: {lines:?}");
        assert!(untold.is_empty() || !lines[0].contains(untold), "a secret is told: {lines:?}");
    }
}

#[tokio::test]
async fn b60_unusable_values_stop_the_start() {
    let bad = |variable: &'static str, value: &str| (Setup::new().env(variable, value), variable, "");
    let mut rows = vec![
        bad("LISTEN", "nowhere"),
        bad("LISTEN", ""),
        bad("LISTEN", "127.0.0.1:99999"),
        bad("INTERNAL_LISTEN", "localhost:http"),
        bad("REDIS_URL", "http://127.0.0.1:6379"),
        bad("REDIS_URL", "127.0.0.1:6379"),
        bad("REDIS_URL", "redis://"),
        bad("REDIS_URL", ""),
        bad("REDIS_PREFIX", "a{b}"),
        bad("REDIS_PREFIX", "white space"),
        bad("REDIS_PREFIX", ""),
        bad("LOG_FORMAT", "xml"),
        bad("REALTIME_DASHBOARD", "maybe"),
        bad("ALLOWED_ORIGINS", "app.example.com"),
        bad("JWT_TENANT_CLAIM", ""),
    ];
    for (variable, values) in [
        ("MAX_CONNECTIONS", &["0", "-1", "1000000000", "many", ""][..]),
        ("MAX_CONNECTIONS_PER_TENANT", &["0", "-1"]),
        ("HEARTBEAT_SECONDS", &["0", "-5", "1.5", "soon"]),
        ("JOIN_TIMEOUT_SECONDS", &["0"]),
        ("EVENTS_PER_SECOND", &["0", "-1"]),
        ("RECOVERY_EVENTS", &["0"]),
        ("RECOVERY_SECONDS", &["0", "99999999999999999999"]),
        ("MAX_MESSAGE_BYTES", &["0", "1023"]),
        ("SEND_QUEUE_EVENTS", &["0"]),
        ("DRAIN_SECONDS", &["-1"]),
        ("UNSUBSCRIBE_LINGER_SECONDS", &["-1"]),
    ] {
        rows.extend(values.iter().map(|value| bad(variable, value)));
    }
    each_is_refused(rows).await;
}

#[tokio::test]
async fn b60_unusable_keys_stop_the_start() {
    let keys = format!("{}/tests/gateway/keys", env!("CARGO_MANIFEST_DIR"));
    let file = |name: &str, content: &str| {
        let path = scratch("configuration").join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let no_key = || Setup::new().without("JWT_SECRET");
    let short = "only 31 bytes, which is too few";
    assert_eq!(short.len(), 31);
    each_is_refused(vec![
        (Setup::new().env("JWT_SECRET", short), "JWT_SECRET", short),
        (Setup::new().env("JWT_SECRET", ""), "JWT_SECRET", ""),
        (no_key(), "JWT_SECRET", ""),
        (no_key().env("JWT_SECRET_FILE", "/nowhere/at/all"), "JWT_SECRET_FILE", ""),
        (no_key().env("JWT_SECRET_FILE", &file("short", short)), "JWT_SECRET", short),
        (Setup::new().env("JWT_SECRET_FILE", &file("second", &"x".repeat(40))), "JWT_SECRET", "xxx"),
        (Setup::new().env("JWT_PUBLIC_KEY_FILE", &format!("{keys}/test-only-rsa.pub.pem")), "JWT_", ""),
        (no_key().env("JWT_PUBLIC_KEY_FILE", "/nowhere/at/all"), "JWT_PUBLIC_KEY_FILE", ""),
        (
            no_key().env(
                "JWT_PUBLIC_KEY_FILE",
                &file("garbage.pem", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"),
            ),
            "JWT_PUBLIC_KEY_FILE",
            "",
        ),
        (no_key().env("JWT_PUBLIC_KEY_FILE", &file("empty.pem", "")), "JWT_PUBLIC_KEY_FILE", ""),
        (no_key().env("JWT_JWKS", "/nowhere/at/all.json"), "JWT_JWKS", ""),
        (no_key().env("JWT_JWKS", &file("jwks.json", "{}")), "JWT_JWKS", ""),
        (no_key().env("JWT_JWKS", &file("empty.json", r#"{"keys":[]}"#)), "JWT_JWKS", ""),
        (Setup::new().env("PUBLISH_API_KEY", ""), "PUBLISH_API_KEY", ""),
        (Setup::new().env("PUBLISH_API_KEY", "x"), "PUBLISH_API_KEY", ""),
        (Setup::new().env("PUBLISH_API_KEY", "change-me"), "PUBLISH_API_KEY", ""),
        (
            Setup::new().without("PUBLISH_API_KEY").env("PUBLISH_API_KEY_FILE", &file("short", "a short key")),
            "PUBLISH_API_KEY",
            "a short key",
        ),
        (Setup::new().env("PUBLISH_API_KEY_FILE", &file("key", "another key")), "PUBLISH_API_KEY", "another key"),
        (Setup::new().env("REDIS_URL", "ftp://user:hunter2@127.0.0.1/"), "REDIS_URL", "hunter2"),
    ])
    .await;
}

#[tokio::test]
async fn b60_near_misses_and_unknown_flags_stop_the_start() {
    let near = [
        ("JWT_SECERT", "JWT_SECRET"),
        ("REDIS_ULR", "REDIS_URL"),
        ("MAX_CONECTIONS", "MAX_CONNECTIONS"),
        ("HEARTBEAT_SECOND", "HEARTBEAT_SECONDS"),
        ("PUBLISH_APIKEY", "PUBLISH_API_KEY"),
    ];
    for (miss, ours) in near {
        let (code, lines) = run(&["serve"], Setup::new().env(miss, "x").environment()).await;
        assert!(code != 0 && lines.len() == 1, "{miss}: {code} {lines:?}");
        assert!(lines[0].contains(miss) && lines[0].contains(ours), "{lines:?}");
    }
    let (code, lines) = run(&["serve", "--max-conections", "5"], Setup::new().environment()).await;
    assert_ne!(code, 0);
    assert!(lines.iter().any(|line| line.contains("--max-conections")), "{lines:?}");
    let (code, lines) = run(&["surf"], Setup::new().environment()).await;
    assert!(code != 0 && lines.iter().any(|line| line.contains("surf")), "{lines:?}");
}

#[tokio::test]
async fn b60_innocent_variables_are_nobodys_business() {
    let setup = Setup::new()
        .memory()
        .env("LOGNAME", "creche")
        .env("LANG", "C.UTF-8")
        .env("PATH", "/usr/bin")
        .env("DATABASE", "x")
        .env("HOSTNAME", "gateway-1");
    let stack = setup.start().await;
    stack.finish().await;
}

#[tokio::test]
async fn b60_ports_equal_or_taken_stop_the_start() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    each_is_refused(vec![(
        Setup::new().env("LISTEN", "127.0.0.1:18080").env("INTERNAL_LISTEN", "127.0.0.1:18080"),
        "INTERNAL_LISTEN",
        "",
    )])
    .await;
    for variable in ["LISTEN", "INTERNAL_LISTEN"] {
        let (code, lines) = run(&["serve"], Setup::new().env(variable, &taken).environment()).await;
        assert_ne!(code, 0, "{lines:?}");
        let told = lines.last().unwrap();
        assert!(told.contains(variable) && told.contains(&taken), "{lines:?}");
    }
    drop(listener);
}

#[tokio::test]
async fn help_shows_every_variable_and_no_secret() {
    let (code, lines) = run(&["--help"], Setup::new().environment()).await;
    assert_eq!(code, 0);
    let help = lines.join("\n");
    for variable in [
        "LISTEN",
        "INTERNAL_LISTEN",
        "REDIS_URL",
        "REDIS_PREFIX",
        "DATABASE_URL",
        "JWT_SECRET",
        "JWT_PUBLIC_KEY_FILE",
        "JWT_JWKS",
        "JWT_ISSUER",
        "JWT_AUDIENCE",
        "JWT_TENANT_CLAIM",
        "MAX_CONNECTIONS",
        "MAX_CONNECTIONS_PER_TENANT",
        "EVENTS_PER_SECOND",
        "HEARTBEAT_SECONDS",
        "JOIN_TIMEOUT_SECONDS",
        "MAX_MESSAGE_BYTES",
        "SEND_QUEUE_EVENTS",
        "RECOVERY_EVENTS",
        "RECOVERY_SECONDS",
        "UNSUBSCRIBE_LINGER_SECONDS",
        "DRAIN_SECONDS",
        "ALLOWED_ORIGINS",
        "REALTIME_DASHBOARD",
        "PUBLISH_API_KEY",
        "LOG",
        "LOG_FORMAT",
    ] {
        assert!(help.contains(variable), "{variable} is missing");
    }
}

#[tokio::test]
async fn secrets_may_come_from_files() {
    let secret = scratch("configuration").join("secret");
    // With the newline that editors leave.
    std::fs::write(&secret, format!("{}\n", crate::harness::token::SECRET)).unwrap();
    let setup = Setup::new().memory().without("JWT_SECRET").env("JWT_SECRET_FILE", secret.to_str().unwrap());
    let stack = setup.start().await;
    stack.dashboard(&crate::harness::tenant()).await.close().await;
    stack.finish().await;
}

#[tokio::test]
async fn a_token_is_explained_by_the_running_configuration() {
    let setup = Setup::new().env("JWT_ISSUER", "crechebooks").env("JWT_MAX_LIFETIME_SECONDS", "7200");
    let explained = async |token: String| {
        let (status, log) = Gateway::run(&["token", "--explain", &token], setup.environment()).await;
        let text = log.text();
        assert!(!text.contains(&token), "{text}");
        (status.success(), text)
    };
    let issued = || Token::of("t1").claim("iss", json!("crechebooks"));
    let (good, text) = explained(issued().sign()).await;
    assert!(good && text.contains("accepted: for t1") && text.contains("sub: bursar"), "{text}");
    for (token, rule) in [
        (Token::of("t1").claim("iss", json!("evil\n\u{1b}[2J")), "wrong issuer; JWT_ISSUER is crechebooks"),
        (issued().expiring_in(8000), "expires too far ahead; JWT_MAX_LIFETIME_SECONDS is 7200"),
        (issued().expiring_in(-60), "the token has expired"),
        (issued().without_claim("exp"), "no usable exp; exp is required"),
        (issued().without_claim("tenantId"), "JWT_TENANT_CLAIM is tenantId"),
    ] {
        let (good, text) = explained(token.sign()).await;
        assert!(!good && text.contains(rule) && text.contains("the token is refused"), "{rule}: {text}");
    }
    let (status, log) = Gateway::run(&["token", "--tenant", "t1", "--ttl", "7201"], setup.environment()).await;
    assert!(!status.success() && log.text().contains("JWT_MAX_LIFETIME_SECONDS"), "{}", log.text());
}
