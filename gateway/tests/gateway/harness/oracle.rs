//! Judges a whole run: what was published against what every client saw.
//!
//! O1 nothing lost, O2 no gap, O3 no duplicate, O4 one (epoch, seq) is one event, O5 nothing foreign,
//! O6 no hole without a word, O8 at most ten events in any second of Redis' own clock.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::time::{Duration, Instant, SystemTime};

use publisher::TenantId;

use super::ledger::{Cursor, Entry, Ledger};
use super::redis::RedisServer;

/// One published event: what the caller knows.
#[derive(Debug, Clone)]
pub struct Receipt {
    pub tenant: TenantId,
    pub id: String,
    /// `None` when the outbox' relay gives it its number.
    pub seq: Option<u64>,
    /// When the call that succeeded had returned. Where another may have published it before that (a duplicate, the
    /// relay), when the first attempt began.
    pub at: Instant,
}

/// How a promise was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    Missed,
    Doubled,
    /// A position that is another event's, or that doesn't exist.
    Misnumbered,
    Foreign,
}

#[derive(Debug)]
pub struct Violation {
    pub breach: Breach,
    text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One client's life, as far as it has been judged.
#[derive(Default)]
pub struct Life {
    tenant: Option<String>,
    at: Option<Cursor>,
    /// When and where it last began without a past: everything published later must come.
    fresh: Option<(Instant, Cursor)>,
    seen: Recent<String, ()>,
    /// When it was told that it had missed events, since this was last asked.
    pub told: Vec<Instant>,
}

impl Life {
    /// Forgets what can't come again; see [`Oracle::turn`].
    pub fn turn(&mut self) {
        self.seen.turn();
    }

    fn begin(&mut self, when: Instant, head: &Cursor) {
        if let Some(before) = &self.at {
            self.told.push(when);
            // What took the counter away may have taken the publish-once marks as well: an event whose publisher was never
            // answered is then published again, into a state that was replaced.
            if before.epoch != head.epoch {
                self.seen = Recent::default();
            }
        }
        self.at = Some(head.clone());
        self.fresh = Some((when, head.clone()));
    }
}

/// Remembers what came since the turn before the last.
struct Recent<K, V> {
    new: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { new: HashMap::new(), old: HashMap::new() }
    }
}

impl<K: Hash + Eq, V> Recent<K, V> {
    fn insert(&mut self, key: K, value: V) {
        self.new.insert(key, value);
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.new.get(key).or_else(|| self.old.get(key))
    }

    fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.old.iter().chain(&self.new)
    }

    fn turn(&mut self) {
        self.old = std::mem::take(&mut self.new);
    }
}

#[derive(Default)]
pub struct Oracle {
    /// Since the last turn.
    published: HashMap<TenantId, Vec<Receipt>>,
    owners: Recent<String, TenantId>,
    /// O4, over all clients and gateways.
    identities: Recent<(String, Cursor), String>,
}

impl Oracle {
    pub fn new(receipts: impl IntoIterator<Item = Receipt>) -> Self {
        let mut oracle = Self::default();
        oracle.learn(receipts);
        oracle
    }

    /// What else was published.
    pub fn learn(&mut self, receipts: impl IntoIterator<Item = Receipt>) {
        for receipt in receipts {
            self.owners.insert(receipt.id.clone(), receipt.tenant.clone());
            self.published.entry(receipt.tenant.clone()).or_default().push(receipt);
        }
    }

    /// Every client has been judged to the end: what was published until now is settled, and what was published until
    /// the turn before is forgotten, so that a run may last for days.
    pub fn turn(&mut self) {
        self.published.clear();
        self.owners.turn();
        self.identities.turn();
    }

    /// Everything, for a client that stayed until nothing more was published.
    pub fn judge_to_the_end(&mut self, name: &str, ledger: &Ledger) {
        self.check_to_the_end(name, &mut Life::default(), ledger).unwrap_or_else(|violation| panic!("{violation}"));
    }

    /// O2–O6, position by position, for any client; `name` is for the failure's text.
    pub fn judge(&mut self, name: &str, ledger: &Ledger) {
        self.check(name, &mut Life::default(), ledger).unwrap_or_else(|violation| panic!("{violation}"));
    }

    /// The same for the next part of a client's life, at a point where nothing is under way to it.
    pub fn check_to_the_end(&mut self, name: &str, life: &mut Life, ledger: &Ledger) -> Result<(), Violation> {
        self.check(name, life, ledger)?;
        self.nothing_lost(name, life, ledger)
    }

    fn check(&mut self, name: &str, life: &mut Life, ledger: &Ledger) -> Result<(), Violation> {
        for (index, (when, entry)) in ledger.entries.iter().enumerate() {
            self.check_entry(life, *when, entry).map_err(|(breach, rule)| {
                let text = format!("{name} breaks {rule}: {}", ledger.up_to(index));
                Violation { breach, text }
            })?;
        }
        Ok(())
    }

    fn check_entry(&mut self, life: &mut Life, when: Instant, entry: &Entry) -> Result<(), (Breach, &'static str)> {
        match entry {
            Entry::Joined { tenant, at: head, recovered } => {
                let before = life.at.as_ref().filter(|at| at.epoch == head.epoch);
                if before.is_some_and(|before| before.seq > head.seq) {
                    return Err((Breach::Misnumbered, "O4 (the counter of an epoch went back)"));
                }
                match recovered {
                    true if before.is_none() => {
                        return Err((Breach::Missed, "O6 (recovered without a position that could be)"));
                    }
                    true => {}
                    false => life.begin(when, head),
                }
                life.tenant = Some(tenant.clone());
            }
            Entry::Resync(head) => match &life.at {
                Some(at) if at.epoch == head.epoch && at.seq > head.seq => {
                    return Err((Breach::Misnumbered, "O4 (the counter of an epoch went back)"));
                }
                // The snapshot that a join had to do without: nothing was missed, and nothing comes again.
                Some(at) if at == head => {}
                Some(_) => life.begin(when, head),
                None => return Err((Breach::Foreign, "O5 (resync outside a room)")),
            },
            Entry::Event { seq, id } => return self.check_event(life, *seq, id),
            Entry::Heartbeat(head) => {
                if life.at.as_ref().is_some_and(|at| at != head) {
                    let rule = "O6 (the heartbeat speaks of a position that was not delivered)";
                    return Err((Breach::Missed, rule));
                }
            }
            Entry::Left { .. } => (life.tenant, life.at, life.fresh) = (None, None, None),
            Entry::Dialled
            | Entry::Degraded
            | Entry::Restored
            | Entry::Error { .. }
            | Entry::Other { .. }
            | Entry::Closed(_) => {}
        }
        Ok(())
    }

    fn check_event(&mut self, life: &mut Life, seq: u64, id: &str) -> Result<(), (Breach, &'static str)> {
        let Some(position) = life.at.as_mut() else {
            return Err((Breach::Foreign, "O5 (event outside a room)"));
        };
        let breach = if seq > position.seq { Breach::Missed } else { Breach::Doubled };
        if seq != position.seq + 1 {
            return Err((breach, "O2 (gap or duplicate)"));
        }
        position.seq = seq;
        let id = id.to_owned();
        if life.seen.get(&id).is_some() {
            return Err((Breach::Doubled, "O3 (an id twice)"));
        }
        life.seen.insert(id.clone(), ());
        let room = life.tenant.clone().expect("a position comes with a tenant");
        if self.owners.get(&id).is_some_and(|owner| owner.as_str() != room) {
            return Err((Breach::Foreign, "O5 (foreign event)"));
        }
        let key = (room, position.clone());
        match self.identities.get(&key) {
            Some(known) if *known != id => return Err((Breach::Misnumbered, "O4 (one seq, two events)")),
            Some(_) => {}
            None => self.identities.insert(key, id),
        }
        Ok(())
    }

    /// O1: what was published after the client's last fresh start, and before the run ended, has arrived.
    ///
    /// A fresh start (a join that recovered nothing, a resync) replaces the client's state as of then.
    fn nothing_lost(&self, name: &str, life: &Life, ledger: &Ledger) -> Result<(), Violation> {
        let (Some((since, head)), Some(room)) = (&life.fresh, &life.tenant) else { return Ok(()) };
        let tenant: TenantId = room.parse().unwrap();
        let missing = self.published.get(&tenant).into_iter().flatten().find(|receipt| {
            // A receipt may come back later than the fresh start that already counts its event.
            let replaced = receipt.at <= *since || receipt.seq.is_some_and(|seq| seq <= head.seq);
            !replaced && life.seen.get(&receipt.id).is_none() && !self.is_of_another_epoch(receipt, room, head)
        });
        let Some(receipt) = missing else { return Ok(()) };
        let text = format!(
            "{name} breaks O1: seq {:?} ({}), published {:?} after its last fresh start at {head:?}, never came: {ledger}",
            receipt.seq,
            receipt.id,
            receipt.at - *since,
        );
        Err(Violation { breach: Breach::Missed, text })
    }

    /// Whether others saw it under an epoch that was over when the client began in the present one.
    fn is_of_another_epoch(&self, receipt: &Receipt, room: &str, head: &Cursor) -> bool {
        let mut sightings = self.identities.iter().filter(|(_, id)| **id == receipt.id);
        sightings.any(|((tenant, at), _)| tenant == room && at.epoch != head.epoch)
    }
}

/// The log of a tenant by id: when the script published each event, by Redis' clock.
pub async fn published_at(redis: &RedisServer, prefix: &str, tenant: &TenantId) -> HashMap<String, SystemTime> {
    let log = redis.command(&["XRANGE", &format!("{prefix}:{{{tenant}}}:log"), "-", "+"]).await;
    let heads = log.texts().into_iter().filter_map(|text| text.split_once('\n')).map(|(head, _)| head);
    let published = heads.map(|head| {
        let fields: Vec<&str> = head.split(' ').collect();
        (fields[2].to_owned(), SystemTime::UNIX_EPOCH + Duration::from_micros(fields[5].parse().unwrap()))
    });
    published.collect()
}

/// O8, by the timestamps the script wrote; the tenant's log must still reach back to its first event.
pub async fn assert_rate(redis: &RedisServer, prefix: &str, tenant: &TenantId, limit: usize) {
    let mut times: Vec<SystemTime> = published_at(redis, prefix, tenant).await.into_values().collect();
    times.sort_unstable();
    assert!(!times.is_empty(), "the log of {tenant} is empty");
    for window in times.windows(limit + 1) {
        let span = window[limit].duration_since(window[0]).expect("sorted");
        assert!(span >= Duration::from_secs(1), "O8: {} events of {tenant} within {span:?}", limit + 1);
    }
}
