//! Finds the tenants whose channels a server refuses. Outside of a Cluster one SUBSCRIBE has many channels, and one that the user has no
//! right to makes the server refuse all: the trouble of one tenant must not be every tenant's.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fred::types::config::Config;
use publisher::TenantId;
use publisher::internals::topology;
use tokio::time::Instant;

use super::{Refusal, Wire};

/// Subscriptions are tried first for this long after the last refusal.
const CAUTIOUS: Duration = Duration::from_secs(300);
/// Trials for one round, each on a connection of its own. Ten tenants are found among a thousand with fewer.
const MAX_TRIALS: usize = 256;

/// Why a tenant is not subscribed to yet.
const LATER: &str = "too many channels are refused to try all at once";

/// Whether to try subscriptions before the real ones.
pub struct Trials {
    config: Config,
    until: Mutex<Option<Instant>>,
}

impl Trials {
    pub fn new(config: &Config) -> Self {
        Self { config: config.clone(), until: Mutex::new(None) }
    }

    fn are_due(&self) -> bool {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    fn go_on(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + CAUTIOUS);
    }
}

impl Wire {
    /// Subscriptions did not come about: the next ones are tried first.
    pub fn doubt_subscriptions(&self) {
        self.trials.go_on();
    }

    /// The tenants whose channels the server refuses, by halves.
    pub(super) async fn refusals(&self, tenants: &[TenantId]) -> Vec<Refusal> {
        if tenants.is_empty() || !self.trials.are_due() {
            return Vec::new();
        }
        let mut refusals = Vec::new();
        let mut open = vec![tenants];
        for _ in 0..MAX_TRIALS {
            let Some(part) = open.pop() else { break };
            let tried = topology::refusal(self.trials.config.clone(), self.channels(part)).await;
            // Without a connection for the trial there is nothing to know, and the real one may be well.
            let Ok(refusal) = tried else { return Vec::new() };
            match (refusal, part) {
                (None, _) => {}
                (Some(why), [tenant]) => refusals.push((tenant.clone(), why)),
                (Some(_), part) => open.extend(<[_; 2]>::from(part.split_at(part.len() / 2))),
            }
        }
        if !refusals.is_empty() {
            self.trials.go_on();
        }
        // More than can be told apart in one round: the rest has its turn in the next.
        let later = open.into_iter().flatten().map(|tenant| (tenant.clone(), LATER.to_owned()));
        refusals.extend(later);
        refusals
    }
}
