//! Waiting for facts, never for time.

use std::time::{Duration, Instant};

/// How long a fact may take on a busy machine before its absence is a failure.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Asks until `fact` holds, and returns it; fails after `limit` naming what never came true.
pub async fn eventually<T>(what: &str, limit: Duration, mut fact: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = fact().await {
            return found;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The future's output, or a failure that says what was waited for.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}
