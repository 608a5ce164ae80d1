//! The ledger: compares the events that each socket received with the events that were published. It does no I/O, so
//! that each kind of failure has a test.
//!
//! A delivery costs a few comparisons and one bit: no hash and no allocation.

use std::fmt;

use serde::Serialize;

use crate::schedule::Stamp;
use crate::wire::message::Position;

/// The counts of all sockets together.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Events of the socket's tenant that it received, each counted once a socket.
    pub delivered: u64,
    /// Accepted events times the sockets of their tenants. A visitor's share is the events that it received in order.
    pub expected: u64,
    /// Events of `expected` that never came.
    pub missed: u64,
    /// Events that a socket received again.
    pub duplicate: u64,
    /// Events of another tenant.
    pub foreign: u64,
    /// Events whose seq did not follow the last one, without a `resync` or `joined` in between.
    pub out_of_order: u64,
    /// Events under an epoch and seq that another socket received with another event.
    pub conflicting: u64,
    /// Heartbeats whose head is not the last position that their socket received.
    pub wrong_heads: u64,
    /// Messages that break the gateway's contract.
    pub malformed: u64,
    /// Sockets that ended before the run did.
    pub lost_sockets: u64,
    /// `resync` messages.
    pub resyncs: u64,
    /// Reconnects that got the missed events.
    pub recovered: u64,
    /// Reconnects that were told to start anew: the events in between do not count as `missed`.
    pub told: u64,
    /// These events in between.
    pub excused: u64,
    /// `degraded` messages.
    pub degraded: u64,
    /// `restored` messages.
    pub restored: u64,
    /// `error` messages.
    pub errors: u64,
}

impl Verdict {
    /// The broken promises. A `resync` alone is not one: the loss that it tells of is.
    pub fn failures(&self, max_missed: u64) -> Vec<String> {
        let broken = [
            (self.missed.saturating_sub(max_missed).min(1) * self.missed, "missed"),
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
        )?;
        if self.recovered + self.told > 0 {
            let Self { recovered, told, excused, .. } = self;
            write!(f, "\nreturned      {recovered} recovered   {told} told to start anew ({excused} events)")?;
        }
        Ok(())
    }
}

/// The record of what each socket received.
pub struct Ledger {
    tenants: Vec<Tenant>,
    sockets: Vec<Socket>,
    events_per_tenant: u32,
    /// Events that sockets were told they would not get.
    hidden: Vec<Hidden>,
    tally: Verdict,
}

/// Seqs of an epoch (half-open) that a socket was told it would not get.
struct Hidden {
    socket: usize,
    epoch: usize,
    from: u64,
    to: u64,
}

struct Tenant {
    sockets: u64,
    /// Events that Redis accepted or that any socket received: all sockets must receive them.
    expected: Bits,
    epochs: Vec<Epoch>,
}

/// The event behind each seq of an epoch, as the first socket that received it reported it.
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
    /// Joined in the middle of the run: only its seqs tell which events it must get, and none may be skipped.
    visitor: bool,
    ended: bool,
}

impl Ledger {
    pub fn new(tenants: u32) -> Self {
        let tenant = |_| Tenant { sockets: 0, expected: Bits::default(), epochs: Vec::new() };
        Self {
            tenants: (0..tenants).map(tenant).collect(),
            sockets: Vec::new(),
            events_per_tenant: 0,
            hidden: Vec::new(),
            tally: Verdict::default(),
        }
    }

    /// Events numbered below this are part of the run from now on.
    pub fn plan(&mut self, events_per_tenant: u32) {
        self.events_per_tenant = events_per_tenant;
        self.tenants.iter_mut().for_each(|tenant| tenant.expected.grow(events_per_tenant));
        self.sockets.iter_mut().filter(|socket| !socket.visitor).for_each(|socket| socket.seen.grow(events_per_tenant));
    }

    /// Adds a socket of `tenant` that joined at this position. Sockets are numbered from 0 in the order of these calls.
    pub fn joined(&mut self, tenant: u32, epoch: &[u8], seq: u64) -> usize {
        let room = &mut self.tenants[tenant as usize];
        room.sockets += 1;
        let epoch = room.epoch(epoch, seq);
        let mut seen = Bits::default();
        seen.grow(self.events_per_tenant);
        self.sockets.push(Socket { tenant, epoch, next: seq + 1, seen, visitor: false, ended: false });
        self.sockets.len() - 1
    }

    /// A visitor that joined at this position takes the place of a socket that left by itself.
    pub fn replaced(&mut self, socket: usize, epoch: &[u8], seq: u64) {
        let socket = &mut self.sockets[socket];
        let room = &mut self.tenants[socket.tenant as usize];
        if !socket.visitor {
            room.sockets -= 1;
            self.tally.expected += socket.seen.len();
        }
        let epoch = room.epoch(epoch, seq);
        *socket = Socket { epoch, next: seq + 1, seen: Bits::default(), visitor: true, ended: false, ..*socket };
    }

    /// The socket reconnected and either recovered or was told to start anew at this position.
    pub fn reconnected(&mut self, socket: usize, epoch: &[u8], seq: u64, recovered: bool) {
        let index = socket;
        let socket = &mut self.sockets[socket];
        let room = &mut self.tenants[socket.tenant as usize];
        if recovered {
            self.tally.recovered += 1;
            self.tally.out_of_order += u64::from(*room.epochs[socket.epoch].name != *epoch);
            return;
        }
        self.tally.told += 1;
        let epoch = room.epoch(epoch, seq);
        let hidden = |epoch, from, to| Hidden { socket: index, epoch, from, to };
        if epoch == socket.epoch {
            self.hidden.push(hidden(epoch, socket.next, seq + 1));
        } else {
            self.hidden.push(hidden(socket.epoch, socket.next, u64::MAX));
            self.hidden.push(hidden(epoch, 0, seq + 1));
        }
        socket.epoch = epoch;
        socket.next = seq + 1;
    }

    /// The position that the socket would resume from.
    pub fn position(&self, socket: usize) -> Position {
        let socket = &self.sockets[socket];
        let epoch = &self.tenants[socket.tenant as usize].epochs[socket.epoch];
        Position { epoch: epoch.name.clone(), seq: socket.next - 1 }
    }

    /// The socket's tenant and its next seq.
    pub fn awaits(&self, socket: usize) -> (u32, u64) {
        let Socket { tenant, next, .. } = self.sockets[socket];
        (tenant, next)
    }

    /// Records an event; `true` when it is of this run and of the socket's tenant, and new to the socket.
    /// `stamp` is `None` for an event that is not of this run: it counts in the order only.
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
            // A visitor's seqs are enough to find repeats: its memory must not grow with the length of a soak.
            if !socket.visitor && !socket.seen.insert(number) {
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
        self.tally.expected += u64::from(number.is_some() && socket.visitor);
        number.is_some()
    }

    /// The socket continues from this position, in this or another epoch. Events that it missed before stay missed.
    pub fn resync(&mut self, socket: usize, epoch: &[u8], seq: u64) {
        self.tally.resyncs += 1;
        let socket = &mut self.sockets[socket];
        socket.epoch = self.tenants[socket.tenant as usize].epoch(epoch, seq);
        socket.next = seq + 1;
    }

    /// The head that the gateway says it delivered to this socket.
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

    /// Redis accepted this event: every socket of its tenant must receive it.
    pub fn accepted(&mut self, stamp: Stamp) {
        self.tenants[stamp.tenant as usize].expected.insert(stamp.number);
    }

    pub fn verdict(&self) -> Verdict {
        let mut verdict = self.tally.clone();
        verdict.expected += self.tenants.iter().map(|room| room.sockets * room.expected.len()).sum::<u64>();
        let residents = self.sockets.iter().filter(|socket| !socket.visitor);
        verdict.missed = residents.map(|s| self.tenants[s.tenant as usize].expected.missing_in(&s.seen)).sum();
        verdict.excused = self.excused();
        verdict.missed -= verdict.excused;
        verdict
    }

    /// Missed events that their sockets were told they would not get.
    fn excused(&self) -> u64 {
        let of = |hidden: &Hidden| {
            let socket = &self.sockets[hidden.socket];
            let numbers =
                self.tenants[socket.tenant as usize].epochs[hidden.epoch].numbers_between(hidden.from, hidden.to);
            numbers.filter(|&number| !socket.seen.has(number)).count() as u64
        };
        self.hidden.iter().map(of).sum()
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
    /// The known events of these seqs.
    fn numbers_between(&self, from: u64, to: u64) -> impl Iterator<Item = u32> {
        let place = |seq: u64| (seq.saturating_sub(self.first).min(self.numbers.len() as u64)) as usize;
        self.numbers[place(from)..place(to)].iter().flatten().copied()
    }

    /// `false` when another socket received another event under `seq`.
    fn means(&mut self, seq: u64, number: Option<u32>) -> bool {
        // For seqs before the first known one, after a resync to an earlier position, only the order is checked.
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
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn grow(&mut self, size: u32) {
        self.0.resize(size.div_ceil(64) as usize, 0);
    }

    fn has(&self, number: u32) -> bool {
        self.0[number as usize / 64] & 1 << (number % 64) != 0
    }

    /// `false` when the set contained it already.
    fn insert(&mut self, number: u32) -> bool {
        let (word, bit) = (&mut self.0[number as usize / 64], 1 << (number % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many members `other` lacks.
    fn missing_in(&self, other: &Self) -> u64 {
        self.0.iter().zip(&other.0).map(|(own, others)| u64::from((own & !others).count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two tenants; sockets 0 and 1 are of the first, socket 2 of the second, all joined at seq 10 of epoch `e`.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(2);
        ledger.plan(99);
        for tenant in [0, 0, 1] {
            ledger.joined(tenant, b"e", 10);
        }
        ledger
    }

    fn stamp(tenant: u32, number: u32) -> Stamp {
        Stamp { tenant, number, due_micros: 0 }
    }

    /// Five events of each tenant, accepted and received by all of its sockets.
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
        assert_eq!(verdict.failures(0), [""; 0]);
        assert_eq!((verdict.delivered, verdict.expected), (15, 15));
    }

    #[test]
    fn an_accepted_event_that_never_comes_is_missed_once_for_each_socket() {
        let mut ledger = clean();
        ledger.accepted(stamp(0, 5));
        assert_eq!(ledger.verdict().failures(0), ["2 missed"]);
    }

    #[test]
    fn an_event_that_one_socket_received_is_due_to_all_even_if_the_publisher_got_no_answer() {
        let mut ledger = clean();
        ledger.event(0, 16, Some(stamp(0, 5)));
        assert_eq!(ledger.verdict().failures(0), ["1 missed"]);
    }

    #[test]
    fn a_hole_is_out_of_order_and_missed() {
        let mut ledger = clean();
        ledger.event(2, 17, Some(stamp(1, 6)));
        ledger.accepted(stamp(1, 5));
        assert_eq!(ledger.verdict().failures(0), ["1 missed", "1 out of order"]);
    }

    #[test]
    fn two_events_swapped_are_out_of_order_and_not_missed() {
        let mut ledger = clean();
        ledger.event(2, 17, Some(stamp(1, 6)));
        ledger.event(2, 16, Some(stamp(1, 5)));
        assert_eq!(ledger.verdict().failures(0), ["2 out of order"]);
    }

    #[test]
    fn a_repeated_event_is_a_duplicate_under_its_own_seq_and_under_another() {
        let mut ledger = clean();
        assert!(!ledger.event(0, 15, Some(stamp(0, 4))));
        assert!(!ledger.event(0, 16, Some(stamp(0, 4))));
        assert_eq!(ledger.verdict().failures(0), ["2 duplicate"]);
    }

    #[test]
    fn an_event_of_another_tenant_is_foreign() {
        let mut ledger = clean();
        assert!(!ledger.event(2, 16, Some(stamp(0, 5))));
        assert_eq!(ledger.verdict().failures(0), ["1 foreign"]);
    }

    #[test]
    fn one_seq_with_two_events_is_a_conflict() {
        let mut ledger = clean();
        ledger.event(0, 16, Some(stamp(0, 5)));
        ledger.event(1, 16, Some(stamp(0, 6)));
        assert!(ledger.verdict().failures(0).contains(&"1 conflicting".to_owned()));
    }

    #[test]
    fn an_event_of_another_publisher_counts_in_the_order() {
        let mut ledger = clean();
        assert!(!ledger.event(0, 16, None));
        assert!(!ledger.event(1, 16, None));
        assert!(ledger.event(0, 17, Some(stamp(0, 5))));
        assert!(ledger.event(1, 17, Some(stamp(0, 5))));
        assert_eq!(ledger.verdict().failures(0), [""; 0]);
    }

    #[test]
    fn a_resync_allows_a_new_position_and_excuses_no_loss() {
        let mut ledger = clean();
        ledger.accepted(stamp(1, 5));
        ledger.resync(2, b"f", 3);
        ledger.event(2, 4, Some(stamp(1, 6)));
        ledger.heartbeat(2, b"f", 4);
        let verdict = ledger.verdict();
        assert_eq!(verdict.resyncs, 1);
        assert_eq!(verdict.failures(0), ["1 missed"]);
    }

    #[test]
    fn a_heartbeat_ahead_of_the_deliveries_is_wrong() {
        let mut ledger = clean();
        ledger.heartbeat(0, b"e", 16);
        ledger.heartbeat(0, b"other", 15);
        assert_eq!(ledger.verdict().failures(0), ["2 wrong heads"]);
    }

    #[test]
    fn a_lost_socket_counts_once() {
        let mut ledger = clean();
        ledger.ended(1);
        ledger.ended(1);
        assert_eq!(ledger.verdict().failures(0), ["1 lost sockets"]);
    }

    #[test]
    fn malformed_text_fails_the_run() {
        let mut ledger = clean();
        ledger.malformed();
        assert_eq!(ledger.verdict().failures(0), ["1 malformed"]);
    }

    #[test]
    fn missed_events_fail_the_run_only_above_the_bound() {
        let mut ledger = clean();
        ledger.accepted(stamp(0, 5));
        assert_eq!(ledger.verdict().failures(2), [""; 0]);
        assert_eq!(ledger.verdict().failures(1), ["2 missed"]);
    }

    #[test]
    fn a_reconnect_that_recovers_must_get_every_event() {
        let mut ledger = clean();
        ledger.event(1, 16, Some(stamp(0, 5)));
        ledger.reconnected(0, b"e", 16, true);
        assert_eq!(ledger.verdict().failures(0), ["1 missed"]);
        ledger.event(0, 16, Some(stamp(0, 5)));
        assert_eq!(ledger.verdict().failures(0), [""; 0]);
        assert_eq!(ledger.verdict().recovered, 1);
    }

    #[test]
    fn a_reconnect_that_starts_anew_is_excused_for_the_events_in_between_only() {
        let mut ledger = clean();
        for number in 5..8 {
            ledger.event(1, 11 + u64::from(number), Some(stamp(0, number)));
        }
        ledger.reconnected(0, b"e", 17, false);
        let verdict = ledger.verdict();
        assert_eq!((verdict.told, verdict.excused), (1, 2));
        assert_eq!(verdict.failures(0), ["1 missed"]);
    }

    #[test]
    fn a_visitor_must_get_the_events_after_its_join_without_a_hole() {
        let mut ledger = clean();
        ledger.replaced(0, b"e", 15);
        ledger.accepted(stamp(0, 5));
        ledger.event(0, 16, Some(stamp(0, 5)));
        ledger.event(1, 16, Some(stamp(0, 5)));
        let verdict = ledger.verdict();
        assert_eq!(verdict.failures(0), [""; 0]);
        assert_eq!((verdict.delivered, verdict.expected), (17, 17));
        ledger.event(0, 18, Some(stamp(0, 7)));
        assert!(ledger.verdict().failures(0).contains(&"1 out of order".to_owned()));
    }
}
