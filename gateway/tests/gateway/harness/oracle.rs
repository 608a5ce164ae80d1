//! Judges a whole run: what was published against what every client saw.
//!
//! O1 nothing lost, O2 no gap, O3 no duplicate, O4 one (epoch, seq) is one event, O5 nothing foreign,
//! O6 no hole without a word, O8 at most ten events in any second of Redis' own clock.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use publisher::TenantId;

use super::ledger::{Cursor, Entry, Ledger};
use super::redis::RedisServer;

/// One published event: what the caller knows.
#[derive(Debug, Clone)]
pub struct Receipt {
    pub tenant: TenantId,
    pub id: String,
    pub seq: u64,
    /// When the call that succeeded had returned; for a duplicate, when the first attempt began: it may have been
    /// that one.
    pub at: Instant,
}

#[derive(Default)]
pub struct Oracle {
    published: HashMap<TenantId, Vec<Receipt>>,
    owners: HashMap<String, TenantId>,
    /// O4, over all clients and gateways.
    identities: HashMap<(String, Cursor), String>,
}

impl Oracle {
    pub fn new(receipts: impl IntoIterator<Item = Receipt>) -> Self {
        let mut oracle = Self::default();
        for receipt in receipts {
            oracle.owners.insert(receipt.id.clone(), receipt.tenant.clone());
            oracle.published.entry(receipt.tenant.clone()).or_default().push(receipt);
        }
        oracle
    }

    /// Everything, for a client that stayed until nothing more was published.
    pub fn judge_to_the_end(&mut self, name: &str, ledger: &Ledger) {
        self.judge(name, ledger);
        self.nothing_lost(name, ledger);
    }

    /// O2–O6, position by position, for any client; `name` is for the failure's text.
    pub fn judge(&mut self, name: &str, ledger: &Ledger) {
        let mut tenant: Option<String> = None;
        let mut at: Option<Cursor> = None;
        let mut seen = HashSet::new();
        for (index, (_, entry)) in ledger.entries.iter().enumerate() {
            let fail = |rule: &str| -> ! {
                let until_here = Ledger { entries: ledger.entries[..=index].to_vec() };
                panic!("{name} breaks {rule}: {until_here}")
            };
            match entry {
                Entry::Joined { tenant: joined, at: head, recovered } => {
                    let resumed = at.as_ref().is_some_and(|at| at.epoch == head.epoch && at.seq <= head.seq);
                    match recovered {
                        true if !resumed => fail("O6 (recovered without a position that could be)"),
                        true => {}
                        false => at = Some(head.clone()),
                    }
                    tenant = Some(joined.clone());
                }
                Entry::Resync(head) => match at {
                    Some(_) => at = Some(head.clone()),
                    None => fail("O5 (resync outside a room)"),
                },
                Entry::Event { seq, id } => {
                    let Some(position) = at.as_mut() else { fail("O5 (event outside a room)") };
                    if *seq != position.seq + 1 {
                        fail("O2 (gap or duplicate)");
                    }
                    position.seq = *seq;
                    if !seen.insert(id.clone()) {
                        fail("O3 (an id twice)");
                    }
                    let room = tenant.clone().expect("a position comes with a tenant");
                    if self.owners.get(id).is_some_and(|owner| owner.as_str() != room) {
                        fail("O5 (foreign event)");
                    }
                    let known = self.identities.entry((room, position.clone())).or_insert_with(|| id.clone());
                    if known != id {
                        fail("O4 (one seq, two events)");
                    }
                }
                Entry::Heartbeat(head) => {
                    if at.as_ref().is_some_and(|at| at != head) {
                        fail("O6 (the heartbeat speaks of a position that was not delivered)");
                    }
                }
                Entry::Left { .. } => (tenant, at) = (None, None),
                Entry::Dialled | Entry::Degraded | Entry::Restored | Entry::Other { .. } | Entry::Closed(_) => {}
            }
        }
    }

    /// O1: what was published after the client's last fresh start, and before the run ended, has arrived.
    ///
    /// A fresh start (a join that recovered nothing, a resync) replaces the client's state as of then.
    fn nothing_lost(&self, name: &str, ledger: &Ledger) {
        let mut room = "";
        let mut fresh: Option<(Instant, u64)> = None;
        for (when, entry) in &ledger.entries {
            match entry {
                Entry::Joined { tenant, at, recovered: false } => {
                    room = tenant;
                    fresh = Some((*when, at.seq));
                }
                Entry::Resync(at) => fresh = Some((*when, at.seq)),
                Entry::Left { .. } => fresh = None,
                _ => {}
            }
        }
        let Some((since, head)) = fresh else { return };
        let seen: HashSet<&str> = ledger.ids().collect();
        let tenant: TenantId = room.parse().unwrap();
        for receipt in self.published.get(&tenant).into_iter().flatten() {
            // A receipt may come back later than the fresh start that already counts its event.
            let replaced = receipt.at <= since || receipt.seq <= head;
            assert!(
                replaced || seen.contains(receipt.id.as_str()),
                "{name} breaks O1: seq {} ({}), published {:?} after its last fresh start at {head}, never came",
                receipt.seq,
                receipt.id,
                receipt.at - since,
            );
        }
    }
}

/// O8, by the timestamps the script wrote; the tenant's log must still reach back to its first event.
pub async fn assert_rate(redis: &RedisServer, prefix: &str, tenant: &TenantId, limit: usize) {
    let log = redis.command(&["XRANGE", &format!("{prefix}:{{{tenant}}}:log"), "-", "+"]).await;
    let messages = log.texts().into_iter().filter(|text| text.contains('\n'));
    let heads = messages.map(|message| message.split('\n').next().unwrap());
    let micros: Vec<u64> = heads.map(|head| head.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!micros.is_empty(), "the log of {tenant} is empty");
    for window in micros.windows(limit + 1) {
        let span = window[limit] - window[0];
        assert!(span >= 1_000_000, "O8: {} events of {tenant} within {span} µs", limit + 1);
    }
}
