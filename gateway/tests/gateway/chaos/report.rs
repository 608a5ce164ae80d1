//! What each fault cost: the table at the end of a run.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use super::arena::Done;
use super::schedule::Fault;
use crate::harness::ledger::{Entry, Ledger};
use crate::harness::oracle::{Breach, Receipt};

/// From the healing of one fault to the next one, for the next one's time to be its own.
const SETTLED: Duration = Duration::from_secs(2);

/// What the faults of a whole run have cost.
#[derive(Default)]
pub struct Report {
    lines: BTreeMap<Fault, Line>,
    events: usize,
    deliveries: usize,
    rounds: usize,
}

#[derive(Default)]
struct Line {
    times: usize,
    /// How many clients were told that they had missed something.
    told: usize,
    missed: usize,
    doubled: usize,
    misnumbered: usize,
    foreign: usize,
    /// Where no other fault had a part in it: from the healing to the last client's next event.
    recoveries: Vec<Duration>,
}

impl Report {
    /// Takes in what a round did and what its clients saw.
    pub fn round(&mut self, done: &[Done], ledgers: &[Ledger], receipts: &[Receipt]) {
        self.rounds += 1;
        self.events += receipts.len();
        self.deliveries += ledgers.iter().map(|ledger| ledger.ids().count()).sum::<usize>();
        for fault in done {
            let line = self.lines.entry(fault.strike.fault).or_default();
            line.times += 1;
            let Some(recovered) = recovered(fault, ledgers, receipts) else { continue };
            // With another fault about, nobody knows whose time it was.
            let alone = done.iter().all(|other| {
                std::ptr::eq(other, fault) || other.begun > recovered || other.healed + SETTLED < fault.begun
            });
            if alone {
                line.recoveries.push(recovered - fault.healed);
            }
        }
    }

    /// Books the telling of a client on the last fault that lost something before it; `false` when none did.
    pub fn told(&mut self, when: Instant, done: &[Done]) -> bool {
        let losses = done.iter().filter(|done| done.strike.fault.loses() && done.begun <= when);
        let Some(reason) = losses.max_by_key(|done| done.begun) else { return false };
        self.lines.entry(reason.strike.fault).or_default().told += 1;
        true
    }

    /// Books a broken promise on every fault of its round.
    pub fn broken(&mut self, breach: Breach, done: &[Done]) {
        for fault in done {
            let line = self.lines.entry(fault.strike.fault).or_default();
            match breach {
                Breach::Missed => line.missed += 1,
                Breach::Doubled => line.doubled += 1,
                Breach::Misnumbered => line.misnumbered += 1,
                Breach::Foreign => line.foreign += 1,
            }
        }
    }
}

/// When the last client had an event that was published after the fault was healed, or had begun afresh.
fn recovered(fault: &Done, ledgers: &[Ledger], receipts: &[Receipt]) -> Option<Instant> {
    let fresh: HashSet<&str> =
        receipts.iter().filter(|receipt| receipt.at >= fault.healed).map(|receipt| receipt.id.as_str()).collect();
    let first = |ledger: &Ledger| {
        let found = ledger.entries.iter().find(|(when, entry)| {
            *when >= fault.healed
                && match entry {
                    Entry::Event { id, .. } => fresh.contains(id.as_str()),
                    Entry::Resync(_) | Entry::Joined { recovered: false, .. } => true,
                    _ => false,
                }
        });
        found.map(|(when, _)| *when)
    };
    ledgers.iter().map(first).collect::<Option<Vec<_>>>()?.into_iter().max()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} rounds, {} events published, {} delivered", self.rounds, self.events, self.deliveries)?;
        writeln!(f, "| fault | times | told | missed | doubled | misnumbered | foreign | recovery p50 | max | of |")?;
        writeln!(f, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
        for (fault, line) in &self.lines {
            let Line { times, told, missed, doubled, misnumbered, foreign, .. } = line;
            write!(f, "| {} | {times} | {told} | {missed} | {doubled} | {misnumbered} | {foreign} |", fault.name())?;
            let mut recoveries = line.recoveries.clone();
            recoveries.sort_unstable();
            match recoveries.as_slice() {
                [] => writeln!(f, " | | 0 |")?,
                [.., longest] => {
                    let median = recoveries[recoveries.len() / 2].as_secs_f32();
                    writeln!(f, " {median:.2} s | {:.2} s | {} |", longest.as_secs_f32(), recoveries.len())?;
                }
            }
        }
        Ok(())
    }
}
