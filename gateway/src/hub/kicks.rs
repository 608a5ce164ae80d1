//! The kicks of the last minute: whom they close, and whose tokens they refuse.
//!
//! A kick may come twice, or late: when sockets have joined since, with tokens that are older than it, and newer. Its moment is
//! of Redis' clock, and members join by this gateway's, so it comes with its age, from which its moment here follows.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use publisher::TenantId;

use super::audience::Member;
use crate::engine::{KICK_MEMORY, Kick, Kicked};

/// How old a token without `iat` is taken to be.
const SKEW: Duration = Duration::from_secs(2);

/// What a shard remembers.
#[derive(Default)]
pub struct Kicks(Vec<Heard>);

struct Heard {
    kick: Kick,
    /// The kick's moment on this gateway's clock, in milliseconds of Unix time.
    moment: u64,
    forget_at: Instant,
}

impl Kicks {
    /// Remembers a kick that was given so long ago; returns its moment on this gateway's clock. Every member that joined up to
    /// it is meant, whatever its token.
    pub fn hear(&mut self, kick: &Kick, age: Duration) -> u64 {
        self.forget_old();
        if let Some(heard) = self.0.iter().find(|heard| heard.kick == *kick) {
            return heard.moment;
        }
        let moment = now_millis().saturating_sub(millis(age));
        let forget_at = Instant::now() + KICK_MEMORY.saturating_sub(age);
        self.0.push(Heard { kick: kick.clone(), moment, forget_at });
        moment
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
        self.0.iter().any(|Heard { kick, .. }| meant(kick) && kick.revokes(issued_at))
    }

    fn forget_old(&mut self) {
        let now = Instant::now();
        self.0.retain(|heard| heard.forget_at > now);
    }
}

impl Kick {
    /// Whether the kick is meant for a member of a room that it concerns: the member joined up to the kick's moment on this
    /// gateway's clock, or with a revoked token.
    pub fn is_meant_for(&self, member: &Member, moment: u64) -> bool {
        let named = match &self.who {
            Kicked::Tenant(_) => true,
            Kicked::User(subject) => member.subject.as_deref() == Some(subject),
        };
        let issued_at = member.issued_at.unwrap_or_else(|| undated(member.joined_at));
        named && (member.joined_at <= moment || self.revokes(issued_at))
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
