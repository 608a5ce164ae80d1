//! Whatever breaks, drawn at random: nobody misses an event without being told, whatever meets whatever.
//!
//! A minute by default, on a seed that it prints. By hand, as long as one likes:
//!
//! ```text
//! FAULT_SEED=7 FAULT_SECONDS=1800 cargo test -p gateway --test gateway chaos::whatever_breaks -- --nocapture
//! ```

mod arena;
mod report;
mod schedule;

use std::time::{Duration, Instant};

use futures::future::join_all;
use publisher::{Publisher, TenantId};
use tokio::time::sleep;

use crate::harness::oracle::{Life, Receipt};
use crate::harness::{Follower, Holdings, Oracle, Traffic, tenants};
use arena::{Arena, Done};
use report::Report;
use schedule::{Round, Schedule};

const TENANTS: usize = 10;
/// Half of the tenants publish as fast as they may, the other half slowly and through the outbox as well.
const FAST: u32 = 9;
const SLOW: u32 = 3;
const RECORDED: u32 = 2;
/// Between the healing of a round's last fault and the end of its traffic.
const TAIL: Duration = Duration::from_secs(3);
/// How long after that everybody may take to have everything: longer than the longest pause of a client that has failed a few
/// times.
const CONVERGENCE: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_nobody_misses_an_event_without_being_told() {
    let (seed, time) = fate(60);
    let replay = format!(
        "FAULT_SEED={seed} FAULT_SECONDS={} cargo test -p gateway --test gateway chaos::whatever_breaks -- --nocapture",
        time.as_secs()
    );
    let _reminder = OnFailure(replay);
    let mut run = Run::start().await;
    let begun = Instant::now();
    for round in Schedule::of_seed(seed).take_while(|_| begun.elapsed() < time) {
        run.round(&round).await;
    }
    println!("{}", run.report);
    run.leaves_nothing_behind().await;
}

/// As long as an outage lasts in life.
pub const LASTING: Duration = Duration::from_secs(60);

/// What a random schedule follows from: a seed, which it prints, and the time after which no fault begins.
pub fn fate(seconds: u64) -> (u64, Duration) {
    let seed = variable("FAULT_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let time = Duration::from_secs(variable("FAULT_SECONDS").unwrap_or(seconds));
    println!("FAULT_SEED={seed} FAULT_SECONDS={}", time.as_secs());
    (seed, time)
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Says at the end, too, how to have the same again.
struct OnFailure(String);

impl Drop for OnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("again with: {}", self.0);
        }
    }
}

fn name(index: usize, follower: &Follower) -> String {
    format!("follower {index} of {}", follower.tenant)
}

struct Run {
    arena: Arena,
    /// What was held before anybody joined.
    before: Holdings,
    publisher: Publisher,
    tenants: Vec<TenantId>,
    followers: Vec<Follower>,
    lives: Vec<Life>,
    oracle: Oracle,
    report: Report,
}

impl Run {
    async fn start() -> Self {
        let arena = Arena::start().await;
        let publisher = arena.publisher(10).await;
        let before = arena.holdings().await;
        let tenants = tenants(TENANTS);
        let mut followers = Vec::new();
        for first in 0..arena.addrs.len() {
            let mut order = arena.addrs.clone();
            order.rotate_left(first);
            followers.extend(Follower::start_all(&order, &tenants).await);
        }
        Self {
            before,
            publisher,
            lives: followers.iter().map(|_| Life::default()).collect(),
            arena,
            tenants,
            followers,
            oracle: Oracle::default(),
            report: Report::default(),
        }
    }

    async fn round(&mut self, round: &Round) {
        println!("{round}");
        let (fast, slow) = self.tenants.split_at(TENANTS / 2);
        let traffic = [
            Traffic::start(&self.publisher, fast, FAST),
            Traffic::start(&self.publisher, slow, SLOW),
            Traffic::into_outbox(&self.arena.database, slow, RECORDED),
        ];
        let strikes = round.strikes.iter().map(|strike| async {
            sleep(strike.at).await;
            self.arena.suffer(*strike, &self.followers, &self.tenants).await
        });
        let done: Vec<Done> = join_all(strikes).await;
        sleep(TAIL).await;
        let mut receipts: Vec<Receipt> = done.iter().flat_map(|done| done.receipts.iter().cloned()).collect();
        for stopped in join_all(traffic.into_iter().map(Traffic::stop)).await {
            receipts.extend(stopped);
        }
        let stuck = self.everybody_converges().await;
        self.judge(&done, receipts, stuck);
    }

    /// The quiet point: every client stands where Redis does, and nobody doubts it. Says who never came to it.
    async fn everybody_converges(&self) -> Vec<String> {
        self.arena.outbox_is_empty(CONVERGENCE).await;
        let begun = Instant::now();
        let mut stuck = Vec::new();
        for (index, follower) in self.followers.iter().enumerate() {
            loop {
                let (head, standing) = (self.arena.head(&follower.tenant).await, follower.standing());
                if head.is_some() && standing.at == head && !standing.degraded {
                    break;
                }
                if begun.elapsed() > CONVERGENCE {
                    let name = name(index, follower);
                    stuck.push(format!("{name} stands at {standing:?}, Redis at {head:?}: {}", follower.ledger()));
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        self.arena.assert_unharmed().await;
        stuck
    }

    /// With all clients gone.
    async fn leaves_nothing_behind(self) {
        join_all(self.followers.into_iter().map(Follower::stop)).await;
        self.arena.is_back_to(&self.before).await;
    }

    fn judge(&mut self, done: &[Done], receipts: Vec<Receipt>, mut violations: Vec<String>) {
        let ledgers: Vec<_> = self.followers.iter().map(Follower::take_ledger).collect();
        self.report.round(done, &ledgers, &receipts);
        self.oracle.learn(receipts);
        for (index, (ledger, life)) in ledgers.iter().zip(&mut self.lives).enumerate() {
            let name = name(index, &self.followers[index]);
            if let Err(violation) = self.oracle.check_to_the_end(&name, life, ledger) {
                self.report.broken(violation.breach, done);
                violations.push(violation.to_string());
            }
            for when in life.told.drain(..) {
                if !self.report.told(when, done) {
                    violations
                        .push(format!("{name} was told that it missed something, though nothing was lost: {ledger}"));
                }
            }
            life.turn();
        }
        self.oracle.turn();
        if !violations.is_empty() {
            println!("{}", self.report);
            panic!("{}", violations.join("\n"));
        }
    }
}
