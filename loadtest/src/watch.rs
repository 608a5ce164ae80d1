//! Turns what sockets receive into entries of the ledger, latencies, and figures second by second.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::dialler::Dialler;
use crate::driver::Audience;
use crate::latency::Recorder;
use crate::ledger::Ledger;
use crate::memo::Memo;
use crate::message::{Message, Scanner};
use crate::schedule::{Clock, Stamp};

/// One second of a run, as the sockets saw it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Second {
    /// Since the first event.
    pub at: u64,
    pub deliveries: u64,
    pub p50_us: u64,
    pub p99_us: u64,
}

/// Figures for whoever looks while it runs.
#[derive(Debug, Default)]
pub struct Live {
    pub delivered: AtomicU64,
    /// Of the last whole second.
    pub p99_us: AtomicU64,
}

/// The first so many sockets, while something happens to all others.
#[derive(Default)]
struct Untouched {
    sockets: usize,
    latencies: Recorder,
}

/// The audience of all sockets of a run.
pub struct Watch {
    pub ledger: Ledger,
    /// Where sockets that end return from; without it they are lost.
    pub dialler: Option<Dialler>,
    pub live: Arc<Live>,
    untouched: Untouched,
    memo: Memo,
    scanner: Scanner,
    clock: Clock,
    began_micros: u64,
    now_micros: u64,
    delivered: u64,
    /// What gateways asked sockets to wait before they return.
    asked_to_wait: HashMap<usize, Duration>,
    start_micros: u64,
    total: Recorder,
    second: Recorder,
    seconds: Vec<Second>,
}

impl Watch {
    pub fn new(tenants: u32, clock: Clock) -> Self {
        Self {
            ledger: Ledger::new(tenants),
            dialler: None,
            live: Arc::default(),
            untouched: Untouched::default(),
            memo: Memo::new(tenants),
            scanner: Scanner::new(),
            clock,
            began_micros: clock.micros(),
            now_micros: clock.micros(),
            delivered: 0,
            asked_to_wait: HashMap::new(),
            start_micros: clock.micros(),
            total: Recorder::new(),
            second: Recorder::new(),
            seconds: Vec::new(),
        }
    }

    /// Latencies and seconds are counted from this moment.
    pub fn begin(&mut self, start_micros: u64) {
        self.start_micros = start_micros;
        self.total = Recorder::new();
        self.second = Recorder::new();
        self.seconds.clear();
    }

    /// What came since [`begin`](Self::begin).
    pub fn end(&mut self) -> (Recorder, Vec<Second>) {
        self.turn_second();
        (std::mem::take(&mut self.total), std::mem::take(&mut self.seconds))
    }

    /// From now on what the first so many sockets receive is recorded for itself, too; returns what was until now.
    pub fn set_apart(&mut self, sockets: usize) -> Recorder {
        std::mem::replace(&mut self.untouched, Untouched { sockets, latencies: Recorder::new() }).latencies
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
            let latency = self.now_micros.saturating_sub(stamp.intended_micros);
            self.second.record(latency);
            self.delivered += 1;
            if socket < self.untouched.sockets {
                self.untouched.latencies.record(latency);
            }
        }
    }
}

impl Audience for Watch {
    fn arrived(&mut self) {
        self.live.delivered.store(self.delivered, Ordering::Relaxed);
        self.now_micros = self.clock.micros();
        let current = self.elapsed_seconds();
        while (self.seconds.last().map_or(0, |last| last.at + 1)) < current {
            if self.second.count() == 0 {
                // A second in which nothing came is a figure too.
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
                // An event of an earlier run is none of ours, though it has its place in the order.
                let stamp = Stamp::parse(id).filter(|stamp| stamp.intended_micros >= self.began_micros);
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
                    self.asked_to_wait.insert(socket, Duration::from_millis(millis));
                }
            }
            Some(Message::Left | Message::Other) => {}
            None => self.ledger.malformed(),
        }
    }

    fn ended(&mut self, socket: usize) {
        let asked = self.asked_to_wait.remove(&socket);
        match &self.dialler {
            Some(dialler) => dialler.bring_back(socket, self.ledger.position(socket), asked, Instant::now()),
            None => self.ledger.ended(socket),
        }
    }
}
