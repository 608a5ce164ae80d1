//! The library's own tasks. A panic of one must leave no publisher, and no gateway, that looks well and hears nothing.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

/// Between a panic and the next start.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs a task that lives on, and starts it again when it panics. It ends when the handle is dropped.
#[expect(clippy::disallowed_methods, reason = "the panic is seen, and the task starts again")]
pub fn keep_running<F>(name: &'static str, task: impl Fn() -> F + Send + 'static) -> AbortOnDropHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    AbortOnDropHandle::new(tokio::spawn(async move {
        while AssertUnwindSafe(task()).catch_unwind().await.is_err() {
            error!(task = name, "task panicked, starting again");
            sleep(PAUSE).await;
        }
    }))
}

/// Runs a task that soon ends, and whose caller looks at how it ended. It ends when the handle is dropped.
#[expect(clippy::disallowed_methods, reason = "the caller sees the panic")]
pub fn run<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn f60_a_task_that_panics_starts_again_until_it_is_dropped() {
        let starts = Arc::new(AtomicUsize::new(0));
        let counted = starts.clone();
        let task = keep_running("test", move || {
            let starts = counted.fetch_add(1, Relaxed);
            async move { assert!(starts >= 2, "the first two starts panic") }
        });
        task.await.expect("the panics stay inside");
        assert_eq!(starts.load(Relaxed), 3);

        let counted = starts.clone();
        let task = keep_running("test", move || {
            counted.fetch_add(1, Relaxed);
            std::future::pending()
        });
        tokio::task::yield_now().await;
        drop(task);
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&starts), 1, "the task is gone");
    }
}
