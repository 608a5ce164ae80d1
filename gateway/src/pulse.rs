//! The gateway's own pulse: it shows when the gateway was held up, so that nobody is closed for a silence that was ours.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::shutdown::Shutdown;

/// Between two beats.
const BEAT: Duration = Duration::from_millis(100);
/// A beat that is so much late shows that the whole gateway was held up: stopped, or without a processor.
const LATE: Duration = Duration::from_millis(250);

/// A clock that the runtime must keep like any other task's; cheap to clone.
#[derive(Clone)]
pub struct Pulse(Arc<Mutex<Beats>>);

struct Beats {
    last: Instant,
    /// When the gateway was last held up, and went on.
    held_up: Option<Instant>,
}

impl Beats {
    fn look(&mut self, now: Instant) -> Option<Instant> {
        if now.saturating_duration_since(self.last) >= BEAT + LATE {
            self.held_up = Some(now);
        }
        self.held_up
    }
}

impl Pulse {
    /// Beats until the process exits.
    pub fn start(shutdown: &Shutdown) -> Self {
        let pulse = Self(Arc::new(Mutex::new(Beats { last: Instant::now(), held_up: None })));
        let beating = pulse.clone();
        shutdown.spawn(async move {
            let mut tick = interval(BEAT);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let now = Instant::now();
                beating.with(|beats| {
                    beats.look(now);
                    beats.last = now;
                });
            }
        });
        pulse
    }

    /// When the gateway was last held up, and went on. Whoever asks may be the first to run again, before the next beat.
    pub fn held_up(&self) -> Option<Instant> {
        self.with(|beats| beats.look(Instant::now()))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Beats) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
