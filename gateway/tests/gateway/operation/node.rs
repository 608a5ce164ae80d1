//! Billing that isn't written in Rust: the Node example, with the real client library on a real database.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::harness::books::open_books;
use crate::harness::process::scratch;
use crate::harness::{PostgresServer, Setup, tenant};

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

#[tokio::test]
async fn a_payment_recorded_by_node_shows_and_one_that_breaks_a_rule_is_rolled_back() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../publisher/examples/node");
    let directory = scratch("node");
    for file in ["package.json", "package-lock.json", "payments.service.js", "pay.js"] {
        std::fs::copy(example.join(file), directory.join(file)).unwrap();
    }
    let installed = run(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&directory));
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));

    let database = PostgresServer::shared().await.database().await;
    let acorn = tenant();
    open_books(&database, &acorn).await;
    let stack = Setup::new().database(&database).start().await;
    let mut dashboard = stack.dashboard(&acorn).await;
    let pay = |payment: &str, amount: &str| {
        let mut node = Command::new("node");
        node.args(["pay.js", acorn.as_str(), payment, "inv-1", amount]).current_dir(&directory);
        run(node.env("DATABASE_URL", &database.url))
    };
    let paid = pay("p-1", "1500.00");
    assert!(paid.status.success(), "{}", String::from_utf8_lossy(&paid.stderr));
    let event = dashboard.until("payment_received").await;
    assert_eq!(event.id.as_deref(), Some(String::from_utf8_lossy(&paid.stdout).trim()));
    assert!(event.raw.contains(r#""amount":1500.00,"#), "{}", event.raw);

    // An id that is too long for a dashboard, though not for the books.
    let refused = pay(&"p".repeat(129), "10.00");
    assert_eq!(String::from_utf8_lossy(&refused.stderr).trim(), "data.paymentId: must be 1 to 128 characters");
    assert!(!refused.status.success());
    assert_eq!(database.value::<i64>("select count(*) from billing.payments").await, 1);
    dashboard.close().await;
    stack.finish().await;
}
