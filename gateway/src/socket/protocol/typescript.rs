//! The messages as the browser's client has them: `gateway/web/src/core/messages.ts` is written from the Rust types.

use std::{env, fs, io};

use ts_rs::{Config, TS};

use super::client::JoinData;
use super::server::{Disabled, ErrorData, Health, Heartbeat, Joined, Left, Resync, SnapshotData, TokenExpiring};
use crate::socket::snapshot::RecentPayment;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/web/src/core/messages.ts");

fn declaration<T: TS>(config: &Config) -> String {
    format!("\n{}export {}\n", T::docs().unwrap_or_default(), T::decl(config))
}

#[test]
fn the_client_has_the_types_of_the_messages() -> io::Result<()> {
    let config = Config::new().with_large_int("number");
    let mut expected =
        "// Written from the Rust types by `UPDATE_TYPES=1 cargo test typescript`; a test fails when they differ.\n"
            .to_owned();
    expected += "import type { DashboardEvent, MetricsUpdated, Money } from \"./events.js\";\n";
    expected += &declaration::<JoinData>(&config);
    expected += "\n/** A message of a browser. */\nexport type ClientMessage =\n";
    expected += "  | { event: \"join\"; data: JoinData }\n  | { event: \"leave\" }\n  | { event: \"ping\" };\n";
    expected += &declaration::<RecentPayment>(&config);
    expected += &declaration::<SnapshotData>(&config);
    expected += &declaration::<Joined>(&config);
    expected += &declaration::<Left>(&config);
    expected += &declaration::<Resync>(&config);
    expected += &declaration::<Heartbeat>(&config);
    expected += &declaration::<TokenExpiring>(&config);
    expected += &declaration::<Health>(&config);
    expected += &declaration::<Disabled>(&config);
    expected += &declaration::<ErrorData>(&config);
    expected += "\n/** A message of the gateway (gateway/docs/protocol.md). */\nexport type ServerMessage =\n  | DashboardEvent\n";
    for (name, data) in [
        ("joined", Joined::name(&config)),
        ("left", Left::name(&config)),
        ("resync", Resync::name(&config)),
        ("heartbeat", Heartbeat::name(&config)),
        ("token_expiring", TokenExpiring::name(&config)),
        ("degraded", Health::name(&config)),
        ("restored", Health::name(&config)),
        ("disabled", Disabled::name(&config)),
        ("error", ErrorData::name(&config)),
    ] {
        expected += &format!("  | {{ type: \"{name}\"; timestamp: string; data: {data} }}\n");
    }
    expected.insert(expected.len() - 1, ';');
    if env::var_os("UPDATE_TYPES").is_some() {
        fs::write(FILE, &expected)?;
    }
    assert_eq!(fs::read_to_string(FILE)?, expected, "run UPDATE_TYPES=1 cargo test typescript");
    Ok(())
}
