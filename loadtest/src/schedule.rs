//! When each event of a run is meant to be sent, and the id that carries that moment to whoever receives it.

use std::time::{Duration, Instant, SystemTime};

/// Wall-clock microseconds that never step: what separate processes can agree on, taken once, then monotonic.
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

/// One planned event: the `number`th of its tenant, meant to be sent at `intended_micros`.
///
/// It travels as the event's id, so that a receiver knows tenant, number and intended moment without sharing
/// any state with the publisher, even in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub tenant: u32,
    pub number: u32,
    pub intended_micros: u64,
}

impl Stamp {
    pub fn event_id(self) -> String {
        format!("load-{}-{}-{}", self.tenant, self.number, self.intended_micros)
    }

    /// `None` for an id that no load test made.
    pub fn parse(id: &[u8]) -> Option<Self> {
        let mut parts = str::from_utf8(id).ok()?.strip_prefix("load-")?.split('-');
        let stamp = Self {
            tenant: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
            intended_micros: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(stamp)
    }
}

/// The name of the `index`th tenant of a load test.
pub fn tenant_name(index: u32) -> String {
    format!("l{:04}", index + 1)
}

/// An open-loop plan: every tenant's events evenly spaced, the tenants spread evenly between them.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    tenants: u32,
    /// The number of each tenant's first event.
    first: u32,
    events_per_tenant: u32,
    interval: Duration,
}

impl Schedule {
    /// How much slower than the limit a tenant that is to reach it is paced. At the very limit a token returns
    /// at the moment it is needed, so one late event would delay every tenth after it for the rest of the run.
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

    /// All events in the order of their moments, the first at `start_micros`.
    pub fn events(&self, start_micros: u64) -> impl Iterator<Item = Stamp> + use<> {
        let Self { tenants, first, events_per_tenant, interval } = *self;
        let interval = interval.as_nanos() as u64;
        (0..events_per_tenant).flat_map(move |number| {
            (0..tenants).map(move |tenant| {
                let nanos = u64::from(number) * interval + u64::from(tenant) * interval / u64::from(tenants);
                Stamp { tenant, number: first + number, intended_micros: start_micros + nanos / 1000 }
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit_watch::most_in_any_second;

    #[test]
    fn an_id_carries_its_stamp() {
        let stamp = Stamp { tenant: 3, number: 41, intended_micros: 1_763_941_234_567_890 };
        assert_eq!(Stamp::parse(stamp.event_id().as_bytes()), Some(stamp));
        for foreign in ["", "load-1-2", "load-1-2-3-4", "load-1-x-3", "0199b3c4-5e1f-7abc-8def-001122334455"] {
            assert_eq!(Stamp::parse(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn a_tenant_at_the_limit_never_exceeds_it_and_all_tenants_are_spread() {
        let schedule = Schedule::new(20, 0, 10.0, 10, Duration::from_secs(60));
        let events: Vec<Stamp> = schedule.events(0).collect();
        assert_eq!(events.len(), 20 * schedule.end() as usize);
        assert!(events.is_sorted_by_key(|event| event.intended_micros));
        let first: Vec<u64> = events.iter().filter(|e| e.tenant == 0).map(|e| e.intended_micros).collect();
        assert_eq!(most_in_any_second(&first), 10);
        assert!(events.windows(2).all(|pair| pair[1].intended_micros - pair[0].intended_micros < 6_000));
    }
}
