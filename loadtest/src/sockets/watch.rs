//! Records what the sockets receive: in the ledger, as latencies, and as figures of each second.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::driver::Handler;
use super::memo::Memo;
use crate::measure::latency::Recorder;
use crate::measure::ledger::Ledger;
use crate::schedule::{Clock, Stamp};
use crate::wire::message::{Message, Position, Scanner};

/// Reconnects sockets that end. The dialler implements it; the watch does not know the dialler.
pub trait Reconnect: Send {
    /// The socket ended at `position` just now. `retry_in` is the wait that its gateway asked for.
    fn reconnect(&self, socket: usize, position: Position, retry_in: Option<Duration>);
}

/// One second of a run, as the sockets saw it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Second {
    /// Since the first event.
    pub at: u64,
    pub deliveries: u64,
    pub p50_us: u64,
    pub p99_us: u64,
}

/// Figures for the progress display during a run.
#[derive(Debug, Default)]
pub struct Live {
    pub delivered: AtomicU64,
    /// Of the last complete second.
    pub p99_us: AtomicU64,
}

/// The latencies of the first `sockets` sockets, recorded separately.
#[derive(Default)]
struct SetApart {
    sockets: usize,
    latencies: Recorder,
}

/// The handler of all sockets of a run.
pub struct Watch {
    pub ledger: Ledger,
    /// Reconnects sockets that end; without it, they count as lost.
    pub reconnect: Option<Box<dyn Reconnect>>,
    pub live: Arc<Live>,
    set_apart: SetApart,
    memo: Memo,
    scanner: Scanner,
    clock: Clock,
    began_micros: u64,
    now_micros: u64,
    delivered: u64,
    /// How long gateways asked sockets to wait before they reconnect.
    retry_in: HashMap<usize, Duration>,
    start_micros: u64,
    total: Recorder,
    second: Recorder,
    seconds: Vec<Second>,
}

impl Watch {
    pub fn new(tenants: u32, clock: Clock) -> Self {
        Self {
            ledger: Ledger::new(tenants),
            reconnect: None,
            live: Arc::default(),
            set_apart: SetApart::default(),
            memo: Memo::new(tenants),
            scanner: Scanner::new(),
            clock,
            began_micros: clock.micros(),
            now_micros: clock.micros(),
            delivered: 0,
            retry_in: HashMap::new(),
            start_micros: clock.micros(),
            total: Recorder::new(),
            second: Recorder::new(),
            seconds: Vec::new(),
        }
    }

    /// Forgets the latencies so far, and counts seconds from this moment.
    pub fn begin(&mut self, start_micros: u64) {
        self.start_micros = start_micros;
        self.total = Recorder::new();
        self.second = Recorder::new();
        self.seconds.clear();
    }

    /// Returns the latencies and seconds since [`begin`](Self::begin).
    pub fn end(&mut self) -> (Recorder, Vec<Second>) {
        self.turn_second();
        (std::mem::take(&mut self.total), std::mem::take(&mut self.seconds))
    }

    /// Records the latencies of the first `sockets` sockets separately as well, from now on; returns the separate record
    /// so far.
    pub fn set_apart(&mut self, sockets: usize) -> Recorder {
        std::mem::replace(&mut self.set_apart, SetApart { sockets, latencies: Recorder::new() }).latencies
    }

    fn elapsed_seconds(&self) -> u64 {
        self.now_micros.saturating_sub(self.start_micros) / 1_000_000
    }

    fn turn_second(&mut self) {
        if self.second.count() == 0 {
            return;
        }
        let latency = self.second.summary();
        let (at, deliveries) = (self.seconds.last().map_or(0, |last| last.at + 1), self.second.count());
        self.live.p99_us.store(latency.p99_us, Ordering::Relaxed);
        self.seconds.push(Second { at, deliveries, p50_us: latency.p50_us, p99_us: latency.p99_us });
        self.total.absorb(&mut self.second);
    }

    fn event(&mut self, socket: usize, seq: u64, stamp: Option<Stamp>) {
        if self.ledger.event(socket, seq, stamp)
            && let Some(stamp) = stamp
        {
            let latency = self.now_micros.saturating_sub(stamp.due_micros);
            self.second.record(latency);
            self.delivered += 1;
            if socket < self.set_apart.sockets {
                self.set_apart.latencies.record(latency);
            }
        }
    }
}

impl Handler for Watch {
    fn arrived(&mut self) {
        self.live.delivered.store(self.delivered, Ordering::Relaxed);
        self.now_micros = self.clock.micros();
        let current = self.elapsed_seconds();
        while (self.seconds.last().map_or(0, |last| last.at + 1)) < current {
            if self.second.count() == 0 {
                // A second without deliveries belongs in the timeline as well.
                let at = self.seconds.last().map_or(0, |last| last.at + 1);
                self.seconds.push(Second { at, deliveries: 0, p50_us: 0, p99_us: 0 });
            } else {
                self.turn_second();
            }
        }
    }

    fn recognised(&mut self, socket: usize, bytes: &[u8]) -> Option<usize> {
        let (tenant, seq) = self.ledger.awaits(socket);
        let (stamp, size) = self.memo.recognise(tenant, seq, bytes)?;
        self.event(socket, seq, stamp);
        Some(size)
    }

    fn text(&mut self, socket: usize, payload: &[u8]) {
        match self.scanner.scan(payload) {
            Some(Message::Event { seq, id }) => {
                // An event of an earlier run counts in the order only.
                let stamp = Stamp::parse(id).filter(|stamp| stamp.due_micros >= self.began_micros);
                self.memo.learn(self.ledger.awaits(socket).0, seq, stamp, payload);
                self.event(socket, seq, stamp);
            }
            Some(Message::Resync { epoch, seq } | Message::Joined { epoch, seq, .. }) => {
                self.ledger.resync(socket, epoch, seq);
            }
            Some(Message::Heartbeat { epoch, seq }) => self.ledger.heartbeat(socket, epoch, seq),
            Some(Message::Degraded) => self.ledger.degraded(),
            Some(Message::Restored) => self.ledger.restored(),
            Some(Message::Error { retry_in_ms }) => {
                self.ledger.refused();
                if let Some(millis) = retry_in_ms {
                    self.retry_in.insert(socket, Duration::from_millis(millis));
                }
            }
            Some(Message::Left | Message::Other) => {}
            None => self.ledger.malformed(),
        }
    }

    fn ended(&mut self, socket: usize) {
        let retry_in = self.retry_in.remove(&socket);
        match &self.reconnect {
            Some(reconnect) => reconnect.reconnect(socket, self.ledger.position(socket), retry_in),
            None => self.ledger.ended(socket),
        }
    }
}
