//! What one client saw, in order.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Where a client stands: what it sends to resume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cursor {
    pub epoch: String,
    pub seq: u64,
}

/// One thing a gateway told the client.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// The client dials, with or without success.
    Dialled,
    Joined {
        tenant: String,
        at: Cursor,
        recovered: bool,
    },
    Event {
        seq: u64,
        id: String,
    },
    Resync(Cursor),
    Heartbeat(Cursor),
    Left {
        tenant: String,
    },
    Degraded,
    Restored,
    /// The reason of a close or a refusal, with the time to stay away.
    Error {
        retry_in_ms: Option<u64>,
    },
    /// Anything else that doesn't move the position.
    Other {
        kind: String,
    },
    /// The socket ended: with this code, or without a Close frame.
    Closed(Option<u16>),
}

/// What a client knows about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// `None` before the first join and after a leave.
    pub at: Option<Cursor>,
    /// Whether it was told that delivery is in doubt, and not yet that it no longer is.
    pub degraded: bool,
}

/// The log of one client over all of its sockets.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Before the first entry: entries may have been taken away already.
    start: Standing,
    pub entries: Vec<(Instant, Entry)>,
}

impl Ledger {
    /// Takes the entries away, for a judge who goes on where he left off; the standing remains.
    pub fn take(&mut self) -> Self {
        let start = self.standing();
        std::mem::replace(self, Self { start, entries: Vec::new() })
    }

    /// The same up to the entry with this index.
    pub fn up_to(&self, index: usize) -> Self {
        Self { start: self.start.clone(), entries: self.entries[..=index].to_vec() }
    }

    pub fn record(&mut self, entry: Entry) {
        self.entries.push((Instant::now(), entry));
    }

    pub fn record_message(&mut self, message: &Message) {
        let data = &message.data;
        let text =
            |name: &str| data[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", message.raw)).to_owned();
        let cursor = || Cursor {
            epoch: text("epoch"),
            seq: data["seq"].as_u64().unwrap_or_else(|| panic!("no seq in {}", message.raw)),
        };
        self.record(match message.kind.as_str() {
            "joined" => Entry::Joined {
                tenant: text("tenantId"),
                at: cursor(),
                recovered: data["recovered"].as_bool().unwrap(),
            },
            "left" => Entry::Left { tenant: text("tenantId") },
            "resync" => Entry::Resync(cursor()),
            "heartbeat" if data["epoch"].is_string() => Entry::Heartbeat(cursor()),
            "degraded" => Entry::Degraded,
            "error" => Entry::Error { retry_in_ms: data["retryInMs"].as_u64() },
            "restored" => Entry::Restored,
            // Of any kind: a later version may publish kinds that this one doesn't know.
            _ if message.seq.is_some() => Entry::Event { seq: message.seq.unwrap(), id: message.id.clone().unwrap() },
            kind => Entry::Other { kind: kind.to_owned() },
        });
    }

    /// Ids of the events, in the order of their arrival.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.entries.iter().filter_map(|(_, entry)| match entry {
            Entry::Event { id, .. } => Some(id.as_str()),
            _ => None,
        })
    }

    pub fn has(&self, id: &str) -> bool {
        self.ids().rev().any(|seen| seen == id)
    }

    pub fn count(&self, matching: impl Fn(&Entry) -> bool) -> usize {
        self.entries.iter().filter(|(_, entry)| matching(entry)).count()
    }

    pub fn resyncs(&self) -> usize {
        self.count(|entry| matches!(entry, Entry::Resync(_)))
    }

    /// After everything seen so far.
    pub fn standing(&self) -> Standing {
        let mut standing = self.start.clone();
        for (_, entry) in &self.entries {
            match entry {
                Entry::Joined { recovered: true, .. } => {}
                Entry::Joined { at, .. } | Entry::Resync(at) => standing.at = Some(at.clone()),
                Entry::Event { seq, .. } => {
                    if let Some(at) = &mut standing.at {
                        at.seq = *seq;
                    }
                }
                Entry::Degraded => standing.degraded = true,
                Entry::Restored => standing.degraded = false,
                // A join during the outage is told of it anew.
                Entry::Left { .. } => standing = Standing::default(),
                Entry::Dialled | Entry::Closed(_) => standing.degraded = false,
                Entry::Heartbeat(_) | Entry::Error { .. } | Entry::Other { .. } => {}
            }
        }
        standing
    }

    /// The position after everything seen so far.
    pub fn cursor(&self) -> Option<Cursor> {
        self.standing().at
    }
}

/// The newest entries, one a line, for failures.
impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped = self.entries.len().saturating_sub(60);
        write!(f, "{skipped} entries, and then:")?;
        let newest = self.entries.last().map(|(at, _)| *at);
        for (at, entry) in &self.entries[skipped..] {
            write!(f, "\n  {:?} before the end: {entry:?}", newest.unwrap_or(*at) - *at)?;
        }
        Ok(())
    }
}

/// A message of the gateway.
#[derive(Debug, Clone)]
pub struct Message {
    pub kind: String,
    pub seq: Option<u64>,
    pub id: Option<String>,
    pub timestamp: String,
    pub data: Value,
    /// The frame's text: money must be looked at here, since `Value` holds it as a float.
    pub raw: String,
}

impl Message {
    pub fn parse(raw: &str) -> Self {
        let value: Value = serde_json::from_str(raw).unwrap_or_else(|error| panic!("{error} in {raw}"));
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        Self {
            kind: text("type").unwrap_or_else(|| panic!("no type in {raw}")),
            seq: value["seq"].as_u64(),
            id: text("id"),
            timestamp: text("timestamp").unwrap_or_else(|| panic!("no timestamp in {raw}")),
            data: value["data"].clone(),
            raw: raw.to_owned(),
        }
    }

    /// How long ago the event was made.
    pub fn age(&self) -> Duration {
        let made = OffsetDateTime::parse(&self.timestamp, &Rfc3339).unwrap();
        (OffsetDateTime::now_utc() - made).try_into().unwrap_or_default()
    }

    pub fn is_event(&self) -> bool {
        self.seq.is_some()
    }
}
