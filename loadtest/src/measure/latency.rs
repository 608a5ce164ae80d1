//! Latency, counted from the moment at which an event was due, so that a stalled sender does not hide its own delay.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Records one latency for each delivery.
pub struct Recorder(Histogram<u64>);

impl Recorder {
    pub fn new() -> Self {
        let highest = Duration::from_secs(600).as_micros() as u64;
        Self(Histogram::new_with_max(highest, 3).expect("the bounds are constant and valid"))
    }

    pub fn record(&mut self, micros: u64) {
        self.0.saturating_record(micros);
    }

    /// Moves the records of `other` here.
    pub fn absorb(&mut self, other: &mut Self) {
        self.0.add(&other.0).expect("both have the same bounds");
        other.0.reset();
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Percentiles with their microseconds, closer together towards the tail.
    pub fn curve(&self) -> Vec<(f64, u64)> {
        let nines = (0..=20).map(|step| 100.0 * (1.0 - 10_f64.powf(-f64::from(step) / 4.0)));
        nines.map(|percentile| (percentile, self.0.value_at_percentile(percentile))).collect()
    }

    pub fn summary(&self) -> Latency {
        let at = |percentile| self.0.value_at_percentile(percentile);
        Latency { p50_us: at(50.0), p90_us: at(90.0), p99_us: at(99.0), p999_us: at(99.9), max_us: self.0.max() }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

/// The usual percentiles, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

impl Latency {
    pub fn p99(&self) -> Duration {
        Duration::from_micros(self.p99_us)
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50_us, p90_us, p99_us, p999_us, max_us } = self;
        write!(f, "p50 {p50_us} µs   p90 {p90_us} µs   p99 {p99_us} µs   p99.9 {p999_us} µs   max {max_us} µs")
    }
}
