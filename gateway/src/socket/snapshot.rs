//! A snapshot as it goes over the wire: the parts of a dashboard's state, written as JSON once for all sockets that start from it.

use publisher::Money;
use publisher::internals::timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use time::OffsetDateTime;

/// A tenant's snapshot as JSON, written once for all who start from it.
#[derive(Debug)]
pub struct Snapshot {
    /// The metrics as in `metrics_updated`, or `null`.
    pub metrics: Box<RawValue>,
    /// The newest payments, or `null`.
    pub payments: Box<RawValue>,
    /// What is `null` only for now.
    pub missing: Parts,
}

/// Parts of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    /// `metrics`.
    pub metrics: bool,
    /// `payments`.
    pub payments: bool,
}

impl Parts {
    /// Every part.
    pub const ALL: Self = Self { metrics: true, payments: true };

    /// No part.
    pub const NONE: Self = Self { metrics: false, payments: false };

    /// Those that are in both.
    pub fn and(self, other: Self) -> Self {
        Self { metrics: self.metrics && other.metrics, payments: self.payments && other.payments }
    }

    /// Those that are in either.
    pub fn or(self, other: Self) -> Self {
        Self { metrics: self.metrics || other.metrics, payments: self.payments || other.payments }
    }
}

impl Snapshot {
    /// Writes the parts; each is `null` where there is none.
    ///
    /// # Errors
    /// When a part can't be written as JSON.
    pub fn write(metrics: &impl Serialize, payments: &impl Serialize, missing: Parts) -> serde_json::Result<Self> {
        Ok(Self { metrics: to_raw_value(metrics)?, payments: to_raw_value(payments)?, missing })
    }

    /// No part could be had.
    pub fn none() -> Self {
        Self { metrics: RawValue::NULL.to_owned(), payments: RawValue::NULL.to_owned(), missing: Parts::ALL }
    }

    /// Anything, for tests of what carries it.
    #[cfg(test)]
    pub fn of_json(metrics: &str, missing: Parts) -> Self {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("the test's JSON");
        Self { metrics: raw(metrics), payments: raw("[]"), missing }
    }
}

/// A payment of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct RecentPayment {
    /// Names the payment.
    pub payment_id: String,
    /// What was paid.
    #[cfg_attr(test, ts(type = "Money"))]
    pub amount: Money,
    /// Who paid.
    pub parent_name: String,
    /// For whom.
    pub child_name: String,
    /// The invoice it was paid on.
    pub invoice_number: String,
    /// When it was received.
    #[serde(with = "timestamp")]
    #[cfg_attr(test, ts(type = "string"))]
    pub received_at: OffsetDateTime,
}
