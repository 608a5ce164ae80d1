//! The process' own clock: it shows when the whole gateway was held up, so that no socket is closed for a silence of the gateway's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::shutdown::Shutdown;

const TICK: Duration = Duration::from_millis(100);
/// A tick that is so much late shows that the whole process was held up: it was stopped, or had no processor.
const LATE: Duration = Duration::from_millis(250);

/// Ticks as a task of the runtime, which is held up as every other task is; cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<Mutex<Ticks>>);

struct Ticks {
    last: Instant,
    /// The end of the last time in which the process was held up.
    stall_ended: Option<Instant>,
}

impl Ticks {
    fn look(&mut self, now: Instant) -> Option<Instant> {
        if now.saturating_duration_since(self.last) >= TICK + LATE {
            self.stall_ended = Some(now);
        }
        self.stall_ended
    }
}

impl Clock {
    /// Ticks until the process exits.
    pub fn start(shutdown: &Shutdown) -> Self {
        let clock = Self(Arc::new(Mutex::new(Ticks { last: Instant::now(), stall_ended: None })));
        let ticking = clock.clone();
        shutdown.spawn(async move {
            let mut tick = interval(TICK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let now = Instant::now();
                ticking.with(|ticks| {
                    ticks.look(now);
                    ticks.last = now;
                });
            }
        });
        clock
    }

    /// When the process last went on after it had been held up. Looks by itself too: the caller may run before the next tick does.
    pub fn stall_ended(&self) -> Option<Instant> {
        self.with(|ticks| ticks.look(Instant::now()))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Ticks) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
