//! Brings sockets back as the browser's client does: full jitter, the gateway's own pace where it gives one, and from
//! where it was.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Position;
use crate::fleet::Fleet;
use crate::latency::Recorder;
use crate::message::Scanner;
use crate::sockets::Sockets;

/// Threads that dial when a socket's moment has come; cheap to clone.
#[derive(Clone)]
pub struct Dialler(Arc<Shared>);

struct Shared {
    fleet: Arc<Fleet>,
    sockets: Sockets,
    work: Mutex<Work>,
    due: Condvar,
}

#[derive(Default)]
struct Work {
    waiting: BinaryHeap<Attempt>,
    /// Attempts that are under way.
    dialling: usize,
    report: Returns,
    over: bool,
}

/// What came of it.
#[derive(Default)]
pub struct Returns {
    /// When each socket was back.
    pub back: Vec<Instant>,
    /// Attempts that brought no socket back.
    pub failed: u64,
    /// Why the last of them failed.
    pub last_failure: Option<String>,
    /// From the dial to `joined`, of the attempts that brought a socket back.
    pub connects: Recorder,
    /// From the first attempt to `joined`: what failed attempts cost is in it.
    pub reconnects: Recorder,
    /// How late attempts began: the generator's own delay.
    pub lateness: Recorder,
}

struct Attempt {
    at: Instant,
    /// When the first of a row of attempts was due.
    first_at: Instant,
    socket: usize,
    failures: u32,
    from: Option<Position>,
}

/// The longest wait after `failures` in a row; the client's `backoff.ts` says the same.
fn longest_wait(failures: u32) -> Duration {
    const BASE: Duration = Duration::from_secs(1);
    const CAP: Duration = Duration::from_secs(30);
    BASE.saturating_mul(2_u32.saturating_pow(failures)).min(CAP)
}

/// Full jitter: what was cut off together does not return together.
fn backoff(failures: u32) -> Duration {
    longest_wait(failures).mul_f64(rand::random::<f64>())
}

impl Dialler {
    /// Attempts at once: a dial that hangs must not delay all others.
    const THREADS: usize = 64;

    pub fn start(fleet: Arc<Fleet>, sockets: Sockets) -> Self {
        let dialler = Self(Arc::new(Shared { fleet, sockets, work: Mutex::default(), due: Condvar::new() }));
        for _ in 0..Self::THREADS {
            let dialler = dialler.clone();
            thread::spawn(move || dialler.dial());
        }
        dialler
    }

    /// The socket ended at `ended`: it returns with backoff, or when it was `asked` to.
    pub fn bring_back(&self, socket: usize, from: Position, asked: Option<Duration>, ended: Instant) {
        let at = ended + asked.unwrap_or_else(|| backoff(0));
        self.push(Attempt { at, first_at: at, socket, failures: u32::from(asked.is_none()), from: Some(from) });
    }

    /// Another browser takes the socket's place at once.
    pub fn replace(&self, socket: usize) {
        let at = Instant::now();
        self.push(Attempt { at, first_at: at, socket, failures: 0, from: None });
    }

    /// Sockets that are not back yet.
    pub fn missing(&self) -> usize {
        let work = self.work();
        work.waiting.len() + work.dialling
    }

    /// Ends the threads and says what came of it.
    pub fn stop(self) -> Returns {
        let mut work = self.work();
        work.over = true;
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

    fn dial(&self) {
        let scanner = Scanner::new();
        while let Some(attempt) = self.next() {
            self.attempt(attempt, &scanner);
        }
    }

    /// Waits for the next attempt whose moment has come; `None` when all is over.
    fn next(&self) -> Option<Attempt> {
        let mut work = self.work();
        loop {
            if work.over {
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
        let returned = self.0.fleet.return_one(socket, failures, from.as_ref(), scanner);
        let at = Instant::now();
        let mut work = self.work();
        work.dialling -= 1;
        match returned {
            Ok((client, welcome)) => {
                work.report.back.push(at);
                work.report.connects.record((at - dialled).as_micros() as u64);
                work.report.reconnects.record((at - first_at).as_micros() as u64);
                drop(work);
                let resumed = from.is_some();
                self.0.sockets.order(move |driver, watch| {
                    let position = welcome.position;
                    if resumed {
                        watch.ledger.returned(socket, &position.epoch, position.seq, welcome.recovered);
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

/// The earliest is the greatest: what a heap gives first.
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
