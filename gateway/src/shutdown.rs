//! Shutdown is a value that is passed: it tells sockets when to close, and knows when all have. Every task of the gateway is started
//! here, so that each has an answer to "what if it panics"; `clippy.toml` forbids the other ways.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::logging;
use crate::metrics::Metrics;
use crate::systemd;

/// A second signal gives sockets this long to be told.
const HURRY: Duration = Duration::from_millis(250);

/// The exit code after the panic of an essential task: an internal software error (`sysexits.h`).
const PANICKED: i32 = 70;

/// One token that says drain, one that says now, and one tracker that knows when every socket has closed.
#[derive(Clone, Default)]
pub struct Shutdown(Arc<State>);

#[derive(Default)]
struct State {
    draining: CancellationToken,
    hurry: CancellationToken,
    sockets: TaskTracker,
    schedule: OnceLock<Schedule>,
}

/// The drain's timetable: sockets are closed one after the other, evenly over the time there is.
struct Schedule {
    begin: Instant,
    over: Duration,
    sockets: usize,
    taken: AtomicUsize,
}

/// The signals that would otherwise end the process without a drain, listened to from when this is made.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    ignored: [(&'static str, Signal); 3],
}

impl Signals {
    /// Listens.
    ///
    /// # Errors
    /// The operating system's.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            ignored: [
                ("SIGQUIT", signal(SignalKind::quit())?),
                ("SIGUSR1", signal(SignalKind::user_defined1())?),
                ("SIGUSR2", signal(SignalKind::user_defined2())?),
            ],
        })
    }
}

/// One socket's place in the timetable.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// When it is closed.
    pub at: Instant,
    /// How long after that its client should come back.
    pub retry_in_ms: u64,
}

/// Runs a task that soon ends by itself, and whose panic ends nothing but its own work: one connection, one question.
#[expect(clippy::disallowed_methods, reason = "nothing waits for it")]
pub fn spawn_brief(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

impl Shutdown {
    /// Runs a task of the gateway's own, which ends with the process. The process ends with the task, if the task panics: what the
    /// task owned can't be trusted any more, and a gateway that looks ready without it would be worse than none.
    #[expect(clippy::disallowed_methods, reason = "the panic ends the process")]
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                error!("essential task panicked, leaving");
                logging::flush();
                std::process::exit(PANICKED);
            }
        });
    }

    /// Runs a socket's task, which the drain waits for.
    pub fn spawn_socket(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.sockets.spawn(task);
    }

    /// Whether no new sockets are taken.
    pub fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// Is cancelled when the drain begins.
    pub fn stop(&self) -> CancellationToken {
        self.0.draining.child_token()
    }

    /// Waits for the drain to begin.
    pub async fn draining(&self) {
        self.0.draining.cancelled().await;
    }

    /// Waits for the order to close at once.
    pub async fn hurried(&self) {
        self.0.hurry.cancelled().await;
    }

    /// Takes the next place in the drain's timetable.
    pub fn turn(&self) -> Turn {
        let Some(schedule) = self.0.schedule.get() else { return Turn { at: Instant::now(), retry_in_ms: 0 } };
        let place = schedule.taken.fetch_add(1, Ordering::Relaxed);
        let share = place as f64 / schedule.sockets.max(1) as f64;
        // Each client comes back at a moment of its own, and no more than a thousand a second even when all are closed at once.
        let spread =
            Duration::from_millis(schedule.sockets as u64).saturating_sub(schedule.over).max(Duration::from_secs(1));
        Turn {
            at: schedule.begin + schedule.over.mul_f64(share.min(1.0)),
            retry_in_ms: spread.mul_f64(rand::random::<f64>()).as_millis() as u64,
        }
    }

    /// Waits for SIGTERM, SIGINT or SIGHUP, then drains: every socket is closed in its turn. Returns when all are closed, or when
    /// SIGTERM or SIGINT came again and the rest were closed at once. A terminal that closes may send SIGHUP twice: the second one
    /// changes nothing.
    pub async fn on_signal(&self, signals: Signals, over: Duration, metrics: &Metrics) {
        let Signals { mut terminate, mut interrupt, mut hangup, ignored } = signals;
        for (name, mut signal) in ignored {
            self.spawn(async move {
                while signal.recv().await.is_some() {
                    info!(signal = name, "signal ignored");
                }
            });
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
        let sockets = self.0.sockets.len();
        info!(sockets, seconds = over.as_secs(), "draining");
        let schedule = Schedule { begin: Instant::now(), over, sockets, taken: AtomicUsize::new(0) };
        let _ = self.0.schedule.set(schedule);
        metrics.draining();
        systemd::stopping();
        self.0.draining.cancel();
        self.0.sockets.close();

        tokio::select! {
            // A socket that closes at the end gets the time that its peer may take to answer.
            gone = timeout(over + Duration::from_millis(1500), self.0.sockets.wait()) => {
                if gone.is_err() {
                    warn!(sockets = self.0.sockets.len(), "the drain's time is over, sockets are left behind");
                }
            }
            _ = terminate.recv() => self.hurry().await,
            _ = interrupt.recv() => self.hurry().await,
        }
    }

    async fn hurry(&self) {
        warn!("second signal, leaving at once");
        self.0.hurry.cancel();
        let _ = timeout(HURRY, self.0.sockets.wait()).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::{Command, Stdio};

    use super::*;

    /// Runs in a process of its own, for [`f60_the_panic_of_an_essential_task_ends_the_process`].
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "ends its process"]
    async fn essential_task_that_panics() {
        logging::report_panics();
        Shutdown::default().spawn(async { panic!("on purpose") });
        std::future::pending().await
    }

    #[test]
    fn f60_the_panic_of_an_essential_task_ends_the_process() {
        // Standard error is read, is closed, or is full.
        let (reader, unread) = std::io::pipe().unwrap();
        drop(reader);
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        for errors in [Stdio::piped(), unread.into(), full.into()] {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "shutdown::tests::essential_task_that_panics", "--ignored", "--nocapture"]);
            let ended = command.stdout(Stdio::null()).stderr(errors).output().unwrap();
            assert_eq!(ended.status.code(), Some(PANICKED), "{ended:?}");
            let words = String::from_utf8_lossy(&ended.stderr);
            assert!(words.is_empty() || words.contains("on purpose"), "{words}");
        }
    }
}
