//! What the documents say of the binary is what the binary says of itself.

use std::collections::BTreeMap;

use crate::harness::{Gateway, Setup};

/// The gateway's own page: its commands, its variables, its metrics.
pub const README: &str = include_str!("../../../README.md");

/// The text of a section of the README, up to the next section of its level.
pub fn section(title: &str) -> &'static str {
    let start = format!("{title}\n");
    README.split("\n## ").find(|section| section.starts_with(&start)).unwrap()
}

/// Variables with their defaults, as `--help` shows them.
async fn from_help() -> BTreeMap<String, Option<String>> {
    let (status, log) = Gateway::run(&["--help"], &[]).await;
    assert!(status.success());
    let mut variables = BTreeMap::new();
    let mut last = None;
    for line in log.text().lines().map(str::trim) {
        if let Some(variable) = line.strip_prefix("[env: ") {
            let name = variable.trim_end_matches(']').trim_end_matches('=').to_owned();
            variables.insert(name.clone(), None);
            last = Some(name);
        } else if let Some(default) = line.strip_prefix("[default: ") {
            let name = last.take().expect("each default follows its variable");
            variables.insert(name, Some(default.trim_end_matches(']').to_owned()));
        }
    }
    // Every secret also comes from a file, which the text above the table says once.
    let is_secret_file =
        |name: &String| name.strip_suffix("_FILE").is_some_and(|secret| variables.contains_key(secret));
    let files: Vec<_> = variables.keys().filter(|name| is_secret_file(name)).cloned().collect();
    files.iter().for_each(|file| {
        variables.remove(file);
    });
    variables
}

/// The same, as the table of the README has them.
fn from_readme() -> BTreeMap<String, Option<String>> {
    let quoted = |cell: &str| -> Option<Vec<String>> {
        let unquote = |part: &str| part.strip_prefix('`')?.strip_suffix('`').map(str::to_owned);
        cell.split(", ").map(unquote).collect()
    };
    let rows = section("Configuration").lines().filter(|line| line.starts_with("| `"));
    let variables = rows.flat_map(|row| {
        let mut cells = row.split(" | ");
        let names = quoted(cells.next().unwrap().trim_start_matches("| ")).unwrap();
        let defaults = cells.next().and_then(quoted).unwrap_or_default();
        assert!(defaults.is_empty() || defaults.len() == names.len(), "a default for each of {names:?}: {defaults:?}");
        let defaults: Vec<_> =
            defaults.into_iter().map(Some).chain(std::iter::repeat(None)).take(names.len()).collect();
        names.into_iter().zip(defaults)
    });
    variables.collect()
}

#[tokio::test]
async fn the_table_of_variables_is_what_help_says() {
    assert_eq!(from_readme(), from_help().await);
}

#[tokio::test]
async fn version_and_metrics_name_the_commit() {
    let (status, log) = Gateway::run(&["--version"], &[]).await;
    assert!(status.success());
    let text = log.text();
    let (version, commit) = text.trim().strip_prefix("gateway ").unwrap().split_once(" (").unwrap();
    let commit = commit.strip_suffix(')').unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert!(!commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{text}");

    let stack = Setup::new().memory().start().await;
    let labels = [format!(r#"version="{version}""#), format!(r#"commit="{commit}""#)];
    let labels: Vec<_> = labels.iter().map(String::as_str).collect();
    assert_eq!(stack.gateway().scrape().await.value("gateway_build_info", &labels), 1.0, "{labels:?}");
    stack.finish().await;
}
