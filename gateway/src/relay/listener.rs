//! Wakes the leader when a transaction with events has committed.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio::time::sleep;

/// The time before a lost connection is replaced.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Wakes the leader at every notification, for ever. A notification can get lost, with its connection or in a pooler: the leader's
/// polling finds the rows all the same.
pub(super) async fn listen(options: PgConnectOptions, wake: Arc<Notify>) {
    loop {
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
        let listening = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen("dashboard_outbox").await?;
            loop {
                // `None` means that the connection was lost, and perhaps a notification with it.
                listener.try_recv().await?;
                wake.notify_one();
            }
        };
        let _: sqlx::Result<()> = listening.await;
        sleep(RECONNECT_PAUSE).await;
    }
}
