//! The kicks of the last minute: whom they close, and whose tokens they refuse.
//!
//! A kick is heard on the control channel, at most once, and read again from Redis with every round of the engine, in case it
//! was not. So it may come twice, or late: when sockets have joined since, with tokens that are older than it, and newer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use publisher::TenantId;

use super::audience::Member;
use crate::engine::{KICK_MEMORY, Kick, Kicked};

/// How far gateways' clocks may differ, and how old a token without `iat` is taken to be.
const SKEW: Duration = Duration::from_secs(2);

/// What a shard remembers.
#[derive(Default)]
pub struct Kicks(Vec<Kick>);

impl Kicks {
    /// Remembers a kick; returns the time up to which whoever joined is meant, whatever the token, in milliseconds of Unix time.
    pub fn hear(&mut self, kick: &Kick) -> u64 {
        self.forget_old();
        if self.0.contains(kick) {
            return kick.at;
        }
        self.0.push(kick.clone());
        kick.at + millis(SKEW)
    }

    /// Whether a token was issued before a kick that is meant for it. Its `iat` has whole seconds, so a token of the kick's own
    /// second is good.
    pub fn refuse(&mut self, tenant: &TenantId, subject: Option<&str>, issued_at: Option<u64>) -> bool {
        if self.0.is_empty() {
            return false;
        }
        self.forget_old();
        let issued_at = issued_at.unwrap_or_else(|| undated(now_millis()));
        let meant = |kick: &Kick| match &kick.who {
            Kicked::Tenant(kicked) => kicked == tenant,
            Kicked::User(kicked) => Some(kicked.as_str()) == subject,
        };
        self.0.iter().any(|kick| meant(kick) && kick.revokes(issued_at))
    }

    fn forget_old(&mut self) {
        let now = now_millis();
        self.0.retain(|kick| now.saturating_sub(kick.at) < millis(KICK_MEMORY));
    }
}

impl Kick {
    /// Whether the kick is meant for a member of a room that it concerns: it joined before `until`, or with a revoked token.
    pub fn is_meant_for(&self, member: &Member, until: u64) -> bool {
        let named = match &self.who {
            Kicked::Tenant(_) => true,
            Kicked::User(subject) => member.subject.as_deref() == Some(subject),
        };
        let issued_at = member.issued_at.unwrap_or_else(|| undated(member.joined_at));
        named && (member.joined_at < until || self.revokes(issued_at))
    }

    /// Whether a token of this second is older than the kick.
    fn revokes(&self, issued_at: u64) -> bool {
        issued_at < self.at / 1000
    }
}

/// The second in which a token without `iat` is taken to be issued, which was shown at a time in milliseconds.
fn undated(shown_at: u64) -> u64 {
    shown_at.saturating_sub(millis(SKEW)) / 1000
}

/// Unix time in milliseconds.
pub fn now_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "kicks_tests.rs"]
mod tests;
