//! The oracle: what every socket saw, held against what was published. Pure, so that each verdict has a test
//! that makes it red.
//!
//! The cost of a delivery is a few comparisons and one bit; nothing is hashed and nothing is allocated.

use std::fmt;

use serde::Serialize;

use crate::schedule::{Schedule, Stamp};

/// What all sockets together promise and what of it was broken.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Events that reached a socket they were meant for, each counted once a socket.
    pub delivered: u64,
    /// Accepted events times the sockets of their tenants.
    pub expected: u64,
    /// Of `expected`, what never came.
    pub missed: u64,
    /// The same event again on the same socket.
    pub duplicate: u64,
    /// Events of another tenant.
    pub foreign: u64,
    /// A seq that was not the one after the last, without a `resync` or `joined` that allowed it.
    pub out_of_order: u64,
    /// One epoch and seq that meant different events to different sockets.
    pub conflicting: u64,
    /// Heartbeats whose head is not what their socket was given.
    pub wrong_heads: u64,
    /// Text that no gateway may send.
    pub malformed: u64,
    /// Sockets that ended before the run did.
    pub lost_sockets: u64,
    /// Times a socket was told that events are lost to it.
    pub resyncs: u64,
    /// Times a socket was told that delivery can't be vouched for.
    pub degraded: u64,
    /// Times a socket was told that it can again.
    pub restored: u64,
    /// Times a socket was refused something.
    pub errors: u64,
}

impl Verdict {
    /// The promises that were broken. Being told of a loss is no break by itself; the loss is.
    pub fn failures(&self) -> Vec<String> {
        let broken = [
            (self.missed, "missed"),
            (self.duplicate, "duplicate"),
            (self.foreign, "foreign"),
            (self.out_of_order, "out of order"),
            (self.conflicting, "conflicting"),
            (self.wrong_heads, "wrong heads"),
            (self.malformed, "malformed"),
            (self.lost_sockets, "lost sockets"),
        ];
        broken.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "delivered     {} of {}", self.delivered, self.expected)?;
        writeln!(f, "missed        {}", self.missed)?;
        writeln!(f, "duplicate     {}", self.duplicate)?;
        writeln!(f, "foreign       {}", self.foreign)?;
        writeln!(f, "out of order  {}   conflicting {}", self.out_of_order, self.conflicting)?;
        writeln!(
            f,
            "wrong heads   {}   malformed {}   lost sockets {}",
            self.wrong_heads, self.malformed, self.lost_sockets
        )?;
        write!(
            f,
            "told          resync {}   degraded {}   restored {}   error {}",
            self.resyncs, self.degraded, self.restored, self.errors
        )
    }
}

/// What every socket saw.
pub struct Ledger {
    tenants: Vec<Tenant>,
    sockets: Vec<Socket>,
    events_per_tenant: u32,
    tally: Verdict,
}

struct Tenant {
    sockets: u64,
    /// Accepted by Redis, or seen by anyone: what all of them must see.
    expected: Bits,
    epochs: Vec<Epoch>,
}

/// What each seq of an epoch meant to the socket that saw it first.
struct Epoch {
    name: Box<[u8]>,
    first: u64,
    numbers: Vec<Option<u32>>,
}

struct Socket {
    tenant: u32,
    epoch: usize,
    next: u64,
    seen: Bits,
    ended: bool,
}

impl Ledger {
    pub fn new(schedule: &Schedule) -> Self {
        let events_per_tenant = schedule.events_per_tenant();
        let tenant = |_| Tenant { sockets: 0, expected: Bits::new(events_per_tenant), epochs: Vec::new() };
        Self {
            tenants: (0..schedule.tenants()).map(tenant).collect(),
            sockets: Vec::new(),
            events_per_tenant,
            tally: Verdict::default(),
        }
    }

    /// A new socket of `tenant`, joined at this position. Sockets are numbered from 0 in this order.
    pub fn joined(&mut self, tenant: u32, epoch: &[u8], seq: u64) -> usize {
        let room = &mut self.tenants[tenant as usize];
        room.sockets += 1;
        let epoch = room.epoch(epoch, seq);
        let seen = Bits::new(self.events_per_tenant);
        self.sockets.push(Socket { tenant, epoch, next: seq + 1, seen, ended: false });
        self.sockets.len() - 1
    }

    /// `true` when this is an event of the run that the socket was meant to see and had not seen yet.
    /// `stamp` is `None` for an event that isn't of this run: it has a place in the order and nothing else.
    pub fn event(&mut self, socket: usize, seq: u64, stamp: Option<Stamp>) -> bool {
        let socket = &mut self.sockets[socket];
        let room = &mut self.tenants[socket.tenant as usize];
        let number = match stamp {
            Some(stamp) if stamp.tenant != socket.tenant => {
                self.tally.foreign += 1;
                return false;
            }
            Some(stamp) if stamp.number >= self.events_per_tenant => None,
            stamp => stamp.map(|stamp| stamp.number),
        };
        if let Some(number) = number {
            room.expected.insert(number);
            if !socket.seen.insert(number) {
                self.tally.duplicate += 1;
                return false;
            }
        }
        if seq == socket.next {
            if !room.epochs[socket.epoch].means(seq, number) {
                self.tally.conflicting += 1;
            }
        } else {
            self.tally.out_of_order += 1;
        }
        socket.next = socket.next.max(seq + 1);
        self.tally.delivered += u64::from(number.is_some());
        number.is_some()
    }

    /// The socket goes on from here, in whatever epoch. What it missed before stays missed.
    pub fn resync(&mut self, socket: usize, epoch: &[u8], seq: u64) {
        self.tally.resyncs += 1;
        let socket = &mut self.sockets[socket];
        socket.epoch = self.tenants[socket.tenant as usize].epoch(epoch, seq);
        socket.next = seq + 1;
    }

    /// The gateway's own account of what it gave to this socket.
    pub fn heartbeat(&mut self, socket: usize, epoch: &[u8], seq: u64) {
        let socket = &self.sockets[socket];
        let known = &self.tenants[socket.tenant as usize].epochs[socket.epoch];
        self.tally.wrong_heads += u64::from(*known.name != *epoch || seq + 1 != socket.next);
    }

    pub fn degraded(&mut self) {
        self.tally.degraded += 1;
    }

    pub fn restored(&mut self) {
        self.tally.restored += 1;
    }

    pub fn refused(&mut self) {
        self.tally.errors += 1;
    }

    pub fn malformed(&mut self) {
        self.tally.malformed += 1;
    }

    pub fn ended(&mut self, socket: usize) {
        let socket = &mut self.sockets[socket];
        self.tally.lost_sockets += u64::from(!std::mem::replace(&mut socket.ended, true));
    }

    /// Redis took this event: from now on every socket of its tenant owes it.
    pub fn accepted(&mut self, stamp: Stamp) {
        self.tenants[stamp.tenant as usize].expected.insert(stamp.number);
    }

    pub fn verdict(&self) -> Verdict {
        let mut verdict = self.tally.clone();
        verdict.expected = self.tenants.iter().map(|room| room.sockets * room.expected.len()).sum();
        verdict.missed =
            self.sockets.iter().map(|s| self.tenants[s.tenant as usize].expected.missing_in(&s.seen)).sum();
        verdict
    }
}

impl Tenant {
    fn epoch(&mut self, name: &[u8], seq: u64) -> usize {
        self.epochs.iter().position(|epoch| *epoch.name == *name).unwrap_or_else(|| {
            self.epochs.push(Epoch { name: name.into(), first: seq + 1, numbers: Vec::new() });
            self.epochs.len() - 1
        })
    }
}

impl Epoch {
    /// `false` when `seq` meant another event to another socket.
    fn means(&mut self, seq: u64, number: Option<u32>) -> bool {
        // A socket that resynced to an earlier position than the first one of this epoch is judged by order alone.
        let Some(index) = seq.checked_sub(self.first) else { return true };
        let index = index as usize;
        if index >= self.numbers.len() {
            self.numbers.resize(index + 1, None);
        }
        match (self.numbers[index], number) {
            (Some(known), Some(number)) => known == number,
            (None, number) => {
                self.numbers[index] = number;
                true
            }
            (Some(_), None) => false,
        }
    }
}

/// A set of small numbers.
struct Bits(Box<[u64]>);

impl Bits {
    fn new(size: u32) -> Self {
        Self(vec![0; size.div_ceil(64) as usize].into())
    }

    /// `false` when it was there already.
    fn insert(&mut self, number: u32) -> bool {
        let (word, bit) = (&mut self.0[number as usize / 64], 1 << (number % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many of ours `other` lacks.
    fn missing_in(&self, other: &Self) -> u64 {
        self.0.iter().zip(&other.0).map(|(ours, theirs)| u64::from((ours & !theirs).count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Two tenants; sockets 0 and 1 are of the first, socket 2 of the second, all joined at seq 10 of epoch `e`.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(&Schedule::new(2, 10.0, 10, Duration::from_secs(10)));
        for tenant in [0, 0, 1] {
            ledger.joined(tenant, b"e", 10);
        }
        ledger
    }

    fn stamp(tenant: u32, number: u32) -> Stamp {
        Stamp { tenant, number, intended_micros: 0 }
    }

    /// Every event accepted and given to every socket it is for.
    fn clean() -> Ledger {
        let mut ledger = ledger();
        for number in 0..5 {
            for (socket, tenant) in [(0, 0), (1, 0), (2, 1)] {
                ledger.accepted(stamp(tenant, number));
                assert!(ledger.event(socket, 11 + u64::from(number), Some(stamp(tenant, number))));
            }
        }
        ledger
    }

    #[test]
    fn a_run_without_a_fault_is_clean() {
        let mut ledger = clean();
        ledger.heartbeat(0, b"e", 15);
        let verdict = ledger.verdict();
        assert_eq!(verdict.failures(), [""; 0]);
        assert_eq!((verdict.delivered, verdict.expected), (15, 15));
    }

    #[test]
    fn an_accepted_event_that_never_comes_is_missed_once_for_each_socket() {
        let mut ledger = clean();
        ledger.accepted(stamp(0, 5));
        assert_eq!(ledger.verdict().failures(), ["2 missed"]);
    }

    #[test]
    fn an_event_that_one_socket_saw_is_owed_to_its_siblings_even_if_its_receipt_was_lost() {
        let mut ledger = clean();
        ledger.event(0, 16, Some(stamp(0, 5)));
        assert_eq!(ledger.verdict().failures(), ["1 missed"]);
    }

    #[test]
    fn a_hole_is_out_of_order_and_missed() {
        let mut ledger = clean();
        ledger.event(2, 17, Some(stamp(1, 6)));
        ledger.accepted(stamp(1, 5));
        assert_eq!(ledger.verdict().failures(), ["1 missed", "1 out of order"]);
    }

    #[test]
    fn two_events_swapped_are_out_of_order_and_not_missed() {
        let mut ledger = clean();
        ledger.event(2, 17, Some(stamp(1, 6)));
        ledger.event(2, 16, Some(stamp(1, 5)));
        assert_eq!(ledger.verdict().failures(), ["2 out of order"]);
    }

    #[test]
    fn the_same_event_again_is_a_duplicate_under_its_own_seq_or_another() {
        let mut ledger = clean();
        assert!(!ledger.event(0, 15, Some(stamp(0, 4))));
        assert!(!ledger.event(0, 16, Some(stamp(0, 4))));
        assert_eq!(ledger.verdict().failures(), ["2 duplicate"]);
    }

    #[test]
    fn an_event_of_another_tenant_is_foreign() {
        let mut ledger = clean();
        assert!(!ledger.event(2, 16, Some(stamp(0, 5))));
        assert_eq!(ledger.verdict().failures(), ["1 foreign"]);
    }

    #[test]
    fn one_seq_with_two_meanings_is_a_conflict() {
        let mut ledger = clean();
        ledger.event(0, 16, Some(stamp(0, 5)));
        ledger.event(1, 16, Some(stamp(0, 6)));
        assert!(ledger.verdict().failures().contains(&"1 conflicting".to_owned()));
    }

    #[test]
    fn an_event_of_someone_else_has_a_place_in_the_order() {
        let mut ledger = clean();
        assert!(!ledger.event(0, 16, None));
        assert!(!ledger.event(1, 16, None));
        assert!(ledger.event(0, 17, Some(stamp(0, 5))));
        assert!(ledger.event(1, 17, Some(stamp(0, 5))));
        assert_eq!(ledger.verdict().failures(), [""; 0]);
    }

    #[test]
    fn a_resync_allows_a_new_position_and_forgives_no_loss() {
        let mut ledger = clean();
        ledger.accepted(stamp(1, 5));
        ledger.resync(2, b"f", 3);
        ledger.event(2, 4, Some(stamp(1, 6)));
        ledger.heartbeat(2, b"f", 4);
        let verdict = ledger.verdict();
        assert_eq!(verdict.resyncs, 1);
        assert_eq!(verdict.failures(), ["1 missed"]);
    }

    #[test]
    fn a_heartbeat_that_claims_more_than_was_given_is_wrong() {
        let mut ledger = clean();
        ledger.heartbeat(0, b"e", 16);
        ledger.heartbeat(0, b"other", 15);
        assert_eq!(ledger.verdict().failures(), ["2 wrong heads"]);
    }

    #[test]
    fn a_lost_socket_counts_once() {
        let mut ledger = clean();
        ledger.ended(1);
        ledger.ended(1);
        assert_eq!(ledger.verdict().failures(), ["1 lost sockets"]);
    }

    #[test]
    fn malformed_text_fails_the_run() {
        let mut ledger = clean();
        ledger.malformed();
        assert_eq!(ledger.verdict().failures(), ["1 malformed"]);
    }
}
