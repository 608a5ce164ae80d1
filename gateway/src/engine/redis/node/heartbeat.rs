//! The proof that what is published on a server comes back.

use std::time::Duration;

use tokio::time::Instant;

/// Silence after which a probe is sent.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// When the server was last heard, and the probe that is under way.
#[derive(Default)]
pub struct Heartbeat {
    heard: Option<Instant>,
    probe: Option<Instant>,
}

impl Heartbeat {
    /// A push came: what is published comes through.
    pub fn hears(&mut self) {
        *self = Self { heard: Some(Instant::now()), probe: None };
    }

    /// When a push last came.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Whether a probe is to be sent now; from then on it is under way.
    pub fn begins(&mut self) -> bool {
        let is_due = self.probe.is_none() && self.heard.is_none_or(|at| at.elapsed() >= SILENCE);
        if is_due {
            self.probe = Some(Instant::now());
        }
        is_due
    }

    /// Whether a probe did not come back in time.
    pub fn is_missing(&self) -> bool {
        self.probe.is_some_and(|sent| sent.elapsed() >= PROBE_LIMIT)
    }

    /// The probe was sent on a connection that is no more.
    pub fn forget_probe(&mut self) {
        self.probe = None;
    }

    /// Whether a push came of late.
    pub fn is_recent(&self) -> bool {
        self.heard.is_some_and(|at| at.elapsed() < SILENCE + PROBE_LIMIT)
    }
}
