//! The log and the other output of the process: a bounded queue and a thread of its own for each output.
//!
//! A log that can't be written stops nothing else. Callers never wait and never fail: a line that has no room in the queue, or that
//! the output refuses, is dropped and counted.

mod plain;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{ConfigError, LogFormat, LogSettings};

/// Bytes that wait for an output, and as many again that are being written.
const QUEUE_BYTES: usize = 128 * 1024;
/// Pause before the next attempt on an output that was set to refuse instead of to block.
const FULL_PAUSE: Duration = Duration::from_millis(10);
/// The longest that the exit waits for queued lines.
const EXIT_LIMIT: Duration = Duration::from_millis(500);

/// The log's output.
static OUTPUT: LazyLock<&Queue> = LazyLock::new(|| Queue::start("log", io::stdout().as_fd().try_clone_to_owned()));
/// The output of fatal errors and panics.
static ERRORS: LazyLock<&Queue> = LazyLock::new(|| Queue::start("errors", io::stderr().as_fd().try_clone_to_owned()));

/// Installs the log.
///
/// # Errors
/// When `LOG` is no filter, or a log is installed already.
pub fn install(settings: &LogSettings) -> anyhow::Result<()> {
    // The Redis client repeats every failure that the gateway logs, and the page's files are of no interest. LOG can name both.
    let filter = format!("fred=off,memory_serve=warn,{}", settings.filter).parse::<tracing_subscriber::EnvFilter>();
    let filter = filter.map_err(|error| ConfigError::with_value("LOG", &settings.filter, error))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Line(*OUTPUT));
    let log = log.with_ansi(io::stdout().is_terminal());
    let installed = match settings.format {
        LogFormat::Text => log.fmt_fields(plain::fields()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("the log can't be installed: {error}"))
}

/// Sends the report of every panic to standard error through the queue: a report that waits for its reader would keep the
/// thread, and the end of the task that panicked.
pub fn report_panics() {
    LazyLock::force(&ERRORS);
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => error(&format!("thread '{name}' {panic}\n{backtrace}")),
            _ => error(&format!("thread '{name}' {panic}")),
        }
    }));
}

/// Makes a file at its size limit refuse the rest of the log. Without a handler the signal ends the process (`setrlimit(2)`,
/// `RLIMIT_FSIZE`); the handler stays as long as the process lives.
///
/// # Errors
/// When the operating system takes no handler.
pub fn outlive_size_limit() -> io::Result<()> {
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}

/// Writes a line to standard output, between the lines of the log.
pub fn output(line: &str) {
    OUTPUT.push(format!("{line}\n").as_bytes());
}

/// Writes a line to standard error.
pub fn error(line: &str) {
    ERRORS.push(format!("{line}\n").as_bytes());
}

/// Waits until everything is written, for half a second at most. The caller is about to end the process.
pub fn flush() {
    let end = Instant::now() + EXIT_LIMIT;
    for queue in [&*OUTPUT, &*ERRORS] {
        queue.flush(end.saturating_duration_since(Instant::now()));
    }
}

/// How many lines were dropped since the process started.
pub fn dropped() -> u64 {
    [&*OUTPUT, &*ERRORS].map(|queue| queue.dropped.load(Ordering::Relaxed)).iter().sum()
}

/// Takes one event of the log.
struct Line(&'static Queue);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines on their way to one output.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread is writing what it has taken.
    writing: bool,
}

impl Queue {
    /// Starts the thread, which lives as long as the process. Without an output or a thread every line is dropped in the end.
    fn start(name: &str, output: io::Result<impl Into<File>>) -> &'static Self {
        let queue: &'static Self = Box::leak(Box::default());
        if let Ok(output) = output {
            let output = output.into();
            let _ = thread::Builder::new().name(name.to_owned()).spawn(move || queue.write_to(output));
        }
        queue
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.waiting.len() + line.len() > QUEUE_BYTES {
            drop(state);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.waiting.extend_from_slice(line);
        drop(state);
        self.filled.notify_one();
    }

    fn write_to(&self, mut output: impl Write) {
        let mut torn = false;
        loop {
            let batch = self.take();
            if torn {
                // The output refused the rest of a line: the next line begins on one of its own.
                torn = write_all(&mut output, b"\n").is_err();
            }
            if let Err(written) = write_all(&mut output, &batch) {
                torn |= written > 0 && batch[written - 1] != b'\n';
                let lost = batch[written..].iter().filter(|byte| **byte == b'\n').count();
                self.dropped.fetch_add(lost as u64, Ordering::Relaxed);
            }
        }
    }

    /// Waits for lines.
    fn take(&self) -> Vec<u8> {
        let mut state = self.lock();
        state.writing = false;
        if state.waiting.is_empty() {
            self.emptied.notify_all();
        }
        let wait = self.filled.wait_while(state, |state| state.waiting.is_empty());
        let mut state = wait.unwrap_or_else(PoisonError::into_inner);
        state.writing = true;
        std::mem::take(&mut state.waiting)
    }

    fn flush(&self, limit: Duration) {
        let unwritten = |state: &mut State| state.writing || !state.waiting.is_empty();
        let _ = self.emptied.wait_timeout_while(self.lock(), limit, unwritten);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes all of it, however long that takes; fails with the number of bytes that the output took before it refused the rest.
fn write_all(output: &mut impl Write, bytes: &[u8]) -> Result<(), usize> {
    let mut written = 0;
    while written < bytes.len() {
        match output.write(&bytes[written..]) {
            Ok(0) => return Err(written),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL_PAUSE),
            Err(_) => return Err(written),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Takes so many bytes and refuses the rest, once.
    struct Full<'a> {
        room: usize,
        taken: &'a Mutex<Vec<u8>>,
    }

    impl Write for Full<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                self.room = usize::MAX;
                return Err(ErrorKind::StorageFull.into());
            }
            let count = bytes.len().min(self.room);
            self.room -= count;
            self.taken.lock().unwrap().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn f60_the_rest_of_a_torn_line_is_dropped_and_the_next_line_is_whole() {
        let queue: &'static Queue = Box::leak(Box::default());
        let taken: &'static Mutex<Vec<u8>> = Box::leak(Box::default());
        queue.push(b"first\nsecond\nthird\n");
        thread::Builder::new().spawn(|| queue.write_to(Full { room: 9, taken })).unwrap();
        queue.flush(Duration::from_secs(60));
        queue.push(b"fourth\n");
        queue.flush(Duration::from_secs(60));
        assert_eq!(String::from_utf8_lossy(&taken.lock().unwrap()), "first\nsec\nfourth\n");
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 2, "the second line and the third");
    }

    #[test]
    fn f60_a_queue_without_room_drops_whole_lines() {
        let queue = Queue::default();
        let line = [b"x".repeat(1000), b"\n".to_vec()].concat();
        for _ in 0..2 * QUEUE_BYTES / line.len() {
            queue.push(&line);
        }
        let waiting = &queue.lock().waiting;
        assert!(waiting.len() <= QUEUE_BYTES && waiting.len() + line.len() > QUEUE_BYTES, "{}", waiting.len());
        assert_eq!(waiting.len() % line.len(), 0);
    }
}
