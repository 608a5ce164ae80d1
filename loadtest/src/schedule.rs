//! When each event of a run is due, and the event id that carries this moment to every receiver.

use std::time::{Duration, Instant, SystemTime};

/// Microseconds since 1970 that never jump: the wall clock is read once, and the monotonic clock counts from there.
/// Separate processes of one machine agree on them.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    origin_micros: u64,
}

impl Clock {
    pub fn new() -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { origin: Instant::now(), origin_micros: unix.as_micros() as u64 }
    }

    pub fn micros(&self) -> u64 {
        self.origin_micros + self.origin.elapsed().as_micros() as u64
    }

    /// The monotonic moment at which [`micros`](Self::micros) shows `micros`.
    pub fn instant(&self, micros: u64) -> Instant {
        self.origin + Duration::from_micros(micros.saturating_sub(self.origin_micros))
    }
}

/// One planned event: number `number` of its tenant, due at `due_micros`.
///
/// It travels as the event's id, so that a receiver knows these three without shared state, even in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub tenant: u32,
    pub number: u32,
    pub due_micros: u64,
}

impl Stamp {
    pub fn event_id(self) -> String {
        format!("load-{}-{}-{}", self.tenant, self.number, self.due_micros)
    }

    /// `None` for an id that is not a load test's.
    pub fn parse(id: &[u8]) -> Option<Self> {
        let mut parts = str::from_utf8(id).ok()?.strip_prefix("load-")?.split('-');
        let stamp = Self {
            tenant: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
            due_micros: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(stamp)
    }
}

/// The name of the `index`th tenant of a load test.
pub fn tenant_name(index: u32) -> String {
    format!("l{:04}", index + 1)
}

/// When events are due, independent of answers: each tenant's events evenly spaced, and the tenants spread evenly
/// within that space.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    tenants: u32,
    /// The number of each tenant's first event.
    first: u32,
    events_per_tenant: u32,
    interval: Duration,
}

impl Schedule {
    /// Slows tenants that are to reach the limit by this factor. At the limit itself a token of the bucket returns at
    /// the very moment at which it is needed: one late event would delay every tenth event until the end of the run.
    const HEADROOM: f64 = 1.01;

    /// `rate` events a second for each tenant, kept just under `limit`, numbered from `first`.
    pub fn new(tenants: u32, first: u32, rate: f64, limit: u32, duration: Duration) -> Self {
        let interval = (1.0 / rate).max(Self::HEADROOM / f64::from(limit));
        Self {
            tenants,
            first,
            events_per_tenant: (duration.as_secs_f64() / interval).floor() as u32,
            interval: Duration::from_secs_f64(interval),
        }
    }

    /// The number after each tenant's last event.
    pub fn end(&self) -> u32 {
        self.first + self.events_per_tenant
    }

    /// Events a second of all tenants.
    pub fn rate(&self) -> f64 {
        f64::from(self.tenants) / self.interval.as_secs_f64()
    }

    /// All events in the order in which they are due, the first at `start_micros`.
    pub fn events(&self, start_micros: u64) -> impl Iterator<Item = Stamp> + use<> {
        let Self { tenants, first, events_per_tenant, interval } = *self;
        let interval = interval.as_nanos() as u64;
        (0..events_per_tenant).flat_map(move |number| {
            (0..tenants).map(move |tenant| {
                let nanos = u64::from(number) * interval + u64::from(tenant) * interval / u64::from(tenants);
                Stamp { tenant, number: first + number, due_micros: start_micros + nanos / 1000 }
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_carries_its_stamp() {
        let stamp = Stamp { tenant: 3, number: 41, due_micros: 1_763_941_234_567_890 };
        assert_eq!(Stamp::parse(stamp.event_id().as_bytes()), Some(stamp));
        for foreign in ["", "load-1-2", "load-1-2-3-4", "load-1-x-3", "0199b3c4-5e1f-7abc-8def-001122334455"] {
            assert_eq!(Stamp::parse(foreign.as_bytes()), None, "{foreign}");
        }
    }
}
