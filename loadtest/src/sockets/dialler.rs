//! Reconnects sockets as the browser's client does: with full jitter, or after the wait that the gateway asked for, and
//! from the socket's last position.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Sockets;
use super::watch::Reconnect;
use crate::client::fleet::Fleet;
use crate::measure::latency::Recorder;
use crate::wire::message::{Position, Scanner};

/// Threads that make each attempt when it is due; cheap to clone.
#[derive(Clone)]
pub struct Dialler(Arc<Shared>);

struct Shared {
    fleet: Fleet,
    sockets: Sockets,
    work: Mutex<Work>,
    due: Condvar,
}

#[derive(Default)]
struct Work {
    waiting: BinaryHeap<Attempt>,
    /// Attempts in progress.
    dialling: usize,
    report: Reconnects,
    stopped: bool,
}

/// The result of all attempts.
#[derive(Default)]
pub struct Reconnects {
    /// The moment at which each socket had reconnected.
    pub back: Vec<Instant>,
    /// Failed attempts.
    pub failed: u64,
    /// The error of the last failed attempt.
    pub last_failure: Option<String>,
    /// From the TCP connect to `joined`, of the attempts that succeeded.
    pub connects: Recorder,
    /// From the first attempt to `joined`: includes the time of failed attempts.
    pub reconnects: Recorder,
    /// How late attempts began: the generator's own delay.
    pub lateness: Recorder,
}

struct Attempt {
    at: Instant,
    /// When the first attempt of this socket was due.
    first_at: Instant,
    socket: usize,
    failures: u32,
    from: Option<Position>,
}

/// The longest wait after `failures` in a row; the same as in the client's `backoff.ts`.
fn longest_wait(failures: u32) -> Duration {
    const BASE: Duration = Duration::from_secs(1);
    const CAP: Duration = Duration::from_secs(30);
    BASE.saturating_mul(2_u32.saturating_pow(failures)).min(CAP)
}

/// Full jitter: sockets that were cut off together do not reconnect together.
fn backoff(failures: u32) -> Duration {
    longest_wait(failures).mul_f64(rand::random::<f64>())
}

impl Dialler {
    /// Time between two checks whether every socket has reconnected.
    const POLL: Duration = Duration::from_millis(20);
    /// Attempts at once: one that hangs must not delay all others.
    const THREADS: usize = 64;

    pub fn start(fleet: Fleet, sockets: Sockets) -> Self {
        let dialler = Self(Arc::new(Shared { fleet, sockets, work: Mutex::default(), due: Condvar::new() }));
        for _ in 0..Self::THREADS {
            let dialler = dialler.clone();
            thread::spawn(move || dialler.run());
        }
        dialler
    }

    /// A new browser takes the socket's place at once.
    pub fn replace(&self, socket: usize) {
        let at = Instant::now();
        self.push(Attempt { at, first_at: at, socket, failures: 0, from: None });
    }

    /// Sockets that have not reconnected yet.
    pub fn missing(&self) -> usize {
        let work = self.work();
        work.waiting.len() + work.dialling
    }

    /// Waits until every socket has reconnected, but not past `deadline`; returns how many have not.
    pub fn wait_for_all(&self, deadline: Instant) -> usize {
        while self.missing() > 0 && Instant::now() < deadline {
            thread::sleep(Self::POLL);
        }
        self.missing()
    }

    /// Ends the threads and returns the result of all attempts.
    pub fn stop(self) -> Reconnects {
        let mut work = self.work();
        work.stopped = true;
        self.0.due.notify_all();
        std::mem::take(&mut work.report)
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.0.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, attempt: Attempt) {
        self.work().waiting.push(attempt);
        self.0.due.notify_one();
    }

    fn run(&self) {
        let scanner = Scanner::new();
        while let Some(attempt) = self.next() {
            self.attempt(attempt, &scanner);
        }
    }

    /// Waits until the next attempt is due; `None` after `stop`.
    fn next(&self) -> Option<Attempt> {
        let mut work = self.work();
        loop {
            if work.stopped {
                return None;
            }
            let now = Instant::now();
            let wait = work.waiting.peek().map(|next| next.at.saturating_duration_since(now));
            work = match wait {
                Some(Duration::ZERO) => {
                    let attempt = work.waiting.pop()?;
                    work.report.lateness.record((now - attempt.at).as_micros() as u64);
                    work.dialling += 1;
                    return Some(attempt);
                }
                Some(wait) => self.0.due.wait_timeout(work, wait).unwrap_or_else(PoisonError::into_inner).0,
                None => self.0.due.wait(work).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn attempt(&self, attempt: Attempt, scanner: &Scanner) {
        let Attempt { socket, failures, from, first_at, .. } = attempt;
        let dialled = Instant::now();
        let reconnected = self.0.fleet.reconnect(socket, failures, from.as_ref(), scanner);
        let at = Instant::now();
        let mut work = self.work();
        work.dialling -= 1;
        match reconnected {
            Ok((client, joined)) => {
                work.report.back.push(at);
                work.report.connects.record((at - dialled).as_micros() as u64);
                work.report.reconnects.record((at - first_at).as_micros() as u64);
                drop(work);
                let resumed = from.is_some();
                self.0.sockets.queue(move |driver, watch| {
                    let position = joined.position;
                    if resumed {
                        watch.ledger.reconnected(socket, &position.epoch, position.seq, joined.recovered);
                    } else {
                        watch.ledger.replaced(socket, &position.epoch, position.seq);
                    }
                    let (stream, received) = client.into_parts();
                    Ok(driver.replace(socket, stream, received, watch)?)
                });
            }
            Err(error) => {
                work.report.failed += 1;
                work.report.last_failure = Some(format!("{error:#}"));
                let next = at + backoff(failures);
                work.waiting.push(Attempt { at: next, first_at, socket, failures: failures + 1, from });
                drop(work);
                self.0.due.notify_one();
            }
        }
    }
}

impl Reconnect for Dialler {
    fn reconnect(&self, socket: usize, position: Position, retry_in: Option<Duration>) {
        let at = Instant::now() + retry_in.unwrap_or_else(|| backoff(0));
        let failures = u32::from(retry_in.is_none());
        self.push(Attempt { at, first_at: at, socket, failures, from: Some(position) });
    }
}

/// The earliest attempt is the greatest, so that the heap returns it first.
impl Ord for Attempt {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at)
    }
}

impl PartialOrd for Attempt {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Attempt {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Attempt {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_doubles_from_a_second_to_half_a_minute() {
        let seconds = [0, 1, 2, 3, 4, 5, 60].map(|failures| longest_wait(failures).as_secs());
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn waits_are_spread_over_the_whole_time() {
        let waits: Vec<f64> = (0..1000).map(|_| backoff(2).as_secs_f64()).collect();
        assert!(waits.iter().all(|&wait| wait < 4.0));
        let early = waits.iter().filter(|&&wait| wait < 2.0).count();
        assert!((400..600).contains(&early), "{early} of 1000 in the first half");
    }
}
