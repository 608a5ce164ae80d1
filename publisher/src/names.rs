//! Every name in Redis, built here and nowhere else.

use std::sync::Arc;

use crate::{event::EventId, tenant::TenantId};

/// The names under one prefix.
///
/// All names of a tenant carry the hash tag `{tenant}`, so that they live in one slot of a Redis Cluster and one
/// script may touch them all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: Arc<str>,
}

/// The text is no prefix of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a Redis prefix is 1 to 32 of [A-Za-z0-9_:-]")]
pub struct InvalidPrefix;

impl Names {
    /// Names that start with `prefix` and a colon. The prefix has no brace, which would move every tenant into one slot.
    ///
    /// # Errors
    /// [`InvalidPrefix`] says the rule.
    pub fn new(prefix: &str) -> Result<Self, InvalidPrefix> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-');
        let valid = (1..=32).contains(&prefix.len()) && prefix.bytes().all(allowed);
        valid.then(|| Self { prefix: prefix.into() }).ok_or(InvalidPrefix)
    }

    /// Channel: a tenant's events.
    pub fn events(&self, tenant: &TenantId) -> String {
        self.of(tenant, "events")
    }

    /// Hash: the tenant's epoch, the server's run id and replication id, the last seq and id, and the token bucket.
    pub fn state(&self, tenant: &TenantId) -> String {
        self.of(tenant, "state")
    }

    /// Stream: the tenant's recovery window.
    pub fn log(&self, tenant: &TenantId) -> String {
        self.of(tenant, "log")
    }

    /// String: the mark that this event was published.
    pub fn once(&self, tenant: &TenantId, id: &EventId) -> String {
        self.of(tenant, &format!("once:{id}"))
    }

    /// String, expiring: which gateway computes the tenant's figures just now, and as of which event.
    pub fn figures(&self, tenant: &TenantId) -> String {
        self.of(tenant, "figures")
    }

    /// Sorted set: the tenants and users whose tokens are revoked, each with the moment of its latest kick.
    pub fn revoked(&self) -> String {
        format!("{}:revoked", self.prefix)
    }

    /// Channel: tells all gateways that there may be a kick to read.
    pub fn control(&self) -> String {
        format!("{}:control", self.prefix)
    }

    /// Channel: what one gateway sends to itself to prove that delivery works.
    pub fn probe(&self, instance: &str) -> String {
        format!("{}:probe:{instance}", self.prefix)
    }

    /// The tenant whose [`events`](Self::events) channel this is.
    pub fn tenant_of_channel(&self, channel: &str) -> Option<TenantId> {
        let rest = channel.strip_prefix(&*self.prefix)?.strip_prefix(":{")?;
        rest.strip_suffix("}:events")?.parse().ok()
    }

    fn of(&self, tenant: &TenantId, what: &str) -> String {
        format!("{}:{{{tenant}}}:{what}", self.prefix)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let names = Names::new("dash").expect("a prefix");
        let acorn = "acorn".parse().expect("a tenant");
        let id = "e1".parse().expect("an id");
        assert_eq!(names.events(&acorn), "dash:{acorn}:events");
        assert_eq!(names.state(&acorn), "dash:{acorn}:state");
        assert_eq!(names.log(&acorn), "dash:{acorn}:log");
        assert_eq!(names.once(&acorn, &id), "dash:{acorn}:once:e1");
        assert_eq!(names.figures(&acorn), "dash:{acorn}:figures");
        assert_eq!(names.revoked(), "dash:revoked");
        assert_eq!(names.control(), "dash:control");
        assert_eq!(names.probe("g1"), "dash:probe:g1");
    }

    #[test]
    fn only_its_own_event_channels_name_a_tenant() {
        let names = Names::new("dash").expect("a prefix");
        let acorn = "acorn".parse().expect("a tenant");
        assert_eq!(names.tenant_of_channel(&names.events(&acorn)), Some(acorn));
        for other in
            ["dash:{acorn}:log", "dash2:{acorn}:events", "dash:control", "dash:{}:events", "dash:{a}:x}:events", ""]
        {
            assert_eq!(names.tenant_of_channel(other), None, "{other}");
        }
    }

    #[test]
    fn a_prefix_cannot_break_the_names() {
        for bad in ["", "{a}", "a b", "a*", "a\n", &"x".repeat(33)] {
            assert_eq!(Names::new(bad), Err(InvalidPrefix), "{bad:?}");
        }
    }
}
