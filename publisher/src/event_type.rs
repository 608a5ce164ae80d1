//! The kinds of event.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::sanitised::sanitised;

/// The four kinds of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
#[non_exhaustive]
#[cfg_attr(test, derive(ts_rs::TS))]
pub enum DashboardEventType {
    /// `payment_received`
    PaymentReceived,
    /// `invoice_status_changed`
    InvoiceStatusChanged,
    /// `arrears_alert`
    ArrearsAlert,
    /// `metrics_updated`
    MetricsUpdated,
}

/// The text names no kind of event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be one of payment_received, invoice_status_changed, arrears_alert, metrics_updated, not \"{shown}\"")]
pub struct UnknownEventType {
    shown: String,
}

impl DashboardEventType {
    /// Every kind, for tables of labels and the like.
    pub const ALL: [Self; 4] =
        [Self::PaymentReceived, Self::InvoiceStatusChanged, Self::ArrearsAlert, Self::MetricsUpdated];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PaymentReceived => "payment_received",
            Self::InvoiceStatusChanged => "invoice_status_changed",
            Self::ArrearsAlert => "arrears_alert",
            Self::MetricsUpdated => "metrics_updated",
        }
    }
}

impl FromStr for DashboardEventType {
    type Err = UnknownEventType;

    fn from_str(raw: &str) -> Result<Self, UnknownEventType> {
        let known = Self::ALL.into_iter().find(|kind| kind.as_str() == raw);
        known.ok_or_else(|| UnknownEventType { shown: sanitised(raw) })
    }
}

/// How it is read from JSON: serde's own error would repeat all of a name that it doesn't know.
impl TryFrom<String> for DashboardEventType {
    type Error = UnknownEventType;

    fn try_from(raw: String) -> Result<Self, UnknownEventType> {
        raw.parse()
    }
}

impl fmt::Display for DashboardEventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
