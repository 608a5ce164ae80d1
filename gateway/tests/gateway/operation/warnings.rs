//! What is named once at the start since it can be used and is rarely wanted (B73, B75).

use serde_json::Value;

use crate::harness::token::SECRET;
use crate::harness::{Gateway, PUBLISH_API_KEY, Setup};

/// The warnings that a gateway starts with, by the variable that each begins with or names.
async fn warnings(arguments: &[&str], setup: Setup) -> Vec<String> {
    let arguments: Vec<&str> = ["serve"].iter().chain(arguments).copied().collect();
    let gateway = Gateway::start_as(&arguments, setup.environment()).await;
    let lines = gateway.log().lines().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    lines.filter(|line| line["level"] == "WARN").map(|line| line["message"].as_str().unwrap().to_owned()).collect()
}

fn alone() -> Setup {
    Setup::new().env("JWT_AUDIENCE", "crechebooks-dashboard")
}

#[tokio::test]
async fn b75_kind_defaults_are_one_line_each_at_the_start() {
    for (expected, setup) in [
        (&[][..], alone()),
        (&[], alone().without("JWT_AUDIENCE").env("JWT_ISSUER", "https://crechebooks.example")),
        (&["neither JWT_ISSUER nor JWT_AUDIENCE is set"], alone().without("JWT_AUDIENCE")),
        (&["ALLOWED_ORIGINS is *"], alone().env("LISTEN", "0.0.0.0:0")),
        (&[], alone().env("LISTEN", "0.0.0.0:0").env("ALLOWED_ORIGINS", "https://dash.example.com")),
        (
            &["ALLOWED_ORIGINS is *", "neither JWT_ISSUER nor JWT_AUDIENCE is set"],
            alone().without("JWT_AUDIENCE").env("LISTEN", "0.0.0.0:0"),
        ),
    ] {
        let found = warnings(&[], setup).await;
        let all =
            found.len() == expected.len() && found.iter().zip(expected).all(|(line, begins)| line.starts_with(begins));
        assert!(all, "{found:?}, not {expected:?}");
    }
}

#[tokio::test]
async fn b73_secrets_in_the_list_of_processes_are_named() {
    let found =
        warnings(&["--jwt-secret", SECRET, "--publish-api-key", PUBLISH_API_KEY], alone().without("JWT_SECRET")).await;
    assert_eq!(found.len(), 2, "{found:?}");
    for (line, variable) in found.iter().zip(["JWT_SECRET", "PUBLISH_API_KEY"]) {
        assert!(line.starts_with(&format!("{variable} was given as a flag")), "{line}");
    }
}
