//! The reference API node, built and run as a billing engineer would.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::OnceCell;

use super::http::{self, Response};
use super::ports::free_port;
use super::postgres::Database;
use super::process::Process;
use super::wait::{PATIENCE, eventually};

static BUILT: OnceCell<PathBuf> = OnceCell::const_new();

/// Examples of another package are not built for our tests alone: cargo looks, and builds what is missing.
async fn built() -> &'static PathBuf {
    BUILT
        .get_or_init(async || {
            let build = tokio::task::spawn_blocking(|| {
                Command::new(env!("CARGO"))
                    .args(["build", "--locked", "-p", "publisher", "--features", "outbox", "--example", "billing_api"])
                    .stdin(Stdio::null())
                    .output()
                    .unwrap()
            });
            let build = build.await.unwrap();
            assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
            PathBuf::from(env!("CARGO_BIN_EXE_gateway")).with_file_name("examples").join("billing_api")
        })
        .await
}

pub struct BillingApi {
    pub addr: SocketAddr,
    _process: Process,
}

impl BillingApi {
    /// On this database, its centre seeded.
    pub async fn start(database: &Database) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new(built().await);
        command.args(["--seed", "--sweep-seconds", "3600", "--listen", &addr.to_string()]);
        command.env("DATABASE_URL", &database.url).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::spawn(&mut command);
        eventually("the billing API listens", PATIENCE, async || tokio::net::TcpStream::connect(addr).await.ok()).await;
        tokio::time::timeout(Duration::from_secs(5), http::get(addr, "/healthz")).await.unwrap().expect(200);
        Self { addr, _process: process }
    }

    pub async fn post(&self, path: &str, key: Option<&str>, body: &Value) -> Response {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        http::request(self.addr, "POST", path, &headers, &body.to_string()).await
    }

    pub async fn get(&self, path: &str) -> Value {
        http::get(self.addr, path).await.expect(200).json()
    }
}
