//! A reference API node: an example of billing code around the dashboards, to be copied.
//!
//!     DATABASE_URL=postgres://… gateway migrate --reference
//!     DATABASE_URL=postgres://… cargo run -p publisher --features outbox --example billing_api -- --seed
//!     curl -X POST 127.0.0.1:8090/payments -H 'Content-Type: application/json' -H 'Idempotency-Key: eft-8714' \
//!          -d '{"tenantId":"acorn-montessori","invoiceId":"inv-001","amount":1500.00}'
//!
//! A payment and its event are written in the same transaction. So no call to the dashboards can fail after the commit, and no dashboard
//! shows a payment that was rolled back. This program does not know Redis.
//!
//! It has no authentication, and listens on the loopback. A real API authenticates its callers, which also decides the tenant.

mod arrears;
mod books;
mod error;
mod invoices;
mod payments;
mod seed;

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use axum::{
    Router,
    routing::{get, post},
};
use clap::Parser;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::{net::TcpListener, signal::unix};
use tracing::info;

#[derive(Debug, Parser)]
struct Options {
    /// The database, migrated with `gateway migrate --reference`.
    #[arg(long, env, hide_env_values = true)]
    database_url: String,

    /// Where the API answers.
    #[arg(long, env, default_value = "127.0.0.1:8090")]
    listen: SocketAddr,

    /// First write a small centre into the books, where it is missing.
    #[arg(long)]
    seed: bool,

    /// Write this number of further centres, `load-1` and on, for load tests.
    #[arg(long, value_name = "CENTRES", default_value_t = 0)]
    seed_load: u32,

    /// The time between two searches for accounts that have crossed their threshold.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    sweep_seconds: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    tracing_subscriber::fmt().init();
    let pool = PgPoolOptions::new().max_connections(16).acquire_timeout(Duration::from_secs(3));
    let pool = pool.connect(&options.database_url).await.context("DATABASE_URL")?;
    if options.seed {
        seed::centre(&pool).await?;
    }
    seed::load(&pool, options.seed_load).await?;

    let sweep = arrears::keep_sweeping(pool.clone(), Duration::from_secs(options.sweep_seconds.max(1)));
    let listener = TcpListener::bind(options.listen).await.context("LISTEN")?;
    info!(address = %listener.local_addr()?, "listening");
    tokio::select! {
        served = axum::serve(listener, routes(pool.clone())).with_graceful_shutdown(stop()).into_future() => served?,
        () = sweep => {}
    }
    pool.close().await;
    Ok(())
}

fn routes(pool: PgPool) -> Router {
    Router::new()
        .route("/payments", post(payments::record))
        .route("/invoices/{id}/status", post(invoices::change_status))
        .route("/arrears/sweep", post(arrears::sweep_now))
        .route("/tenants", get(books::tenants))
        .route("/tenants/{tenant}/invoices", get(books::invoices))
        .route("/tenants/{tenant}/payments", get(books::payments))
        .route("/tenants/{tenant}/metrics", get(books::metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(pool)
}

/// SIGTERM, or Ctrl-C.
async fn stop() {
    let terminate = unix::signal(unix::SignalKind::terminate());
    let terminated = async {
        match terminate {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
