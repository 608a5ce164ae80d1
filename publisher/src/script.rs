//! The scripts that run inside Redis. Their headers in `lua/` name KEYS, ARGV and the result.

use std::sync::LazyLock;

use sha1::{Digest, Sha1};

use crate::{event::EventData, names::hex};

/// Publishes one event: everything that must happen at once, in one round trip.
pub static PUBLISH: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("lua/fence.lua"), include_str!("lua/publish.lua"))));

/// Reads where a tenant's counter stands, and what its log holds after a known position.
pub static POSITION: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("lua/fence.lua"), include_str!("lua/position.lua"))));

/// Revokes the tokens of a tenant or a user.
pub static KICK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/kick.lua")));

/// A script with the digest by which Redis knows it once it has seen it.
#[derive(Debug)]
pub struct Script {
    source: &'static str,
    digest: String,
}

impl Script {
    fn new(source: &'static str) -> Self {
        Self { source, digest: hex(&Sha1::digest(source)) }
    }

    /// The text, for `EVAL`: it runs the script and loads it as well.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// The digest, for `EVALSHA`; a server that answers `NOSCRIPT` has forgotten it.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// How long a tenant's state lives after its last event. It outlives the log and the bucket by far, so that the same
/// (epoch, seq) can never name two events to a browser that was asleep over a holiday.
pub const STATE_MILLIS: u64 = 30 * 24 * 60 * 60 * 1000;

/// How long a publish-once mark lives: 24 h, longer than any caller holds on to an event whose outcome it doesn't know.
///
/// What that costs: a mark is a key of about 60 bytes with an integer and an expiry, some 180 bytes of Redis' memory. A
/// busy centre has a few hundred events a day, so 1000 centres with 500 each come to 500,000 marks, 90 MB. The rate
/// limit bounds one tenant at 864,000 marks, 155 MB, if it were to publish at the limit all day.
pub const ONCE_MILLIS: u64 = 24 * 60 * 60 * 1000;

/// How long the mark of figures lives: a minute. Figures are replaced within 30 s, so that an older mark protects nothing; and
/// 1000 watched tenants would leave 500 MB of marks a day.
pub const FIGURES_ONCE_MILLIS: u64 = 60 * 1000;

/// How long this event's publish-once mark lives. A relay may hold on to any event for a day; figures that stand for payments
/// are as precious as those.
pub fn once_millis(data: &EventData, relayed: bool) -> u64 {
    match data {
        EventData::MetricsUpdated(metrics) if metrics.condensed.is_none() && !relayed => FIGURES_ONCE_MILLIS,
        _ => ONCE_MILLIS,
    }
}

/// Whether an event can wait for tokens that no other event needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// As its type says.
    Usual,
    /// Figures that have waited for too long: they leave no tokens for payments.
    Overdue,
}

/// Tokens that must remain in the bucket after this event: figures leave 3, so that a burst of them never costs a payment.
/// Of a bucket too small for that they may take what leaves at least one event a second possible. Condensed figures stand
/// for payments, and leave none.
pub fn reserve(data: &EventData, urgency: Urgency, capacity: u32) -> u32 {
    match data {
        EventData::MetricsUpdated(metrics) if metrics.condensed.is_none() && urgency == Urgency::Usual => {
            capacity.saturating_sub(1).min(3)
        }
        _ => 0,
    }
}
