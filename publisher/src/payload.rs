//! The payloads of the four kinds of event, and the rules of their fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{event_type::DashboardEventType, invalid_event::InvalidEvent, money::Money, strict, timestamp};

/// A parent paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct PaymentReceived {
    /// Names the payment; dashboards show one payment once. 1 to 128 characters.
    pub payment_id: String,
    /// The amount that was paid; never negative.
    pub amount: Money,
    /// The parent who paid. 1 to 200 characters.
    pub parent_name: String,
    /// The child that the payment is for. 1 to 200 characters.
    pub child_name: String,
    /// The invoice it was paid on. 1 to 128 characters.
    pub invoice_number: String,
}

/// An invoice went from one status to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct InvoiceStatusChanged {
    /// Names the invoice. 1 to 128 characters.
    pub invoice_id: String,
    /// The number on the invoice. 1 to 128 characters.
    pub invoice_number: String,
    /// The status it had, `PENDING` for one. 1 to 64 characters.
    pub previous_status: String,
    /// The status it has now. 1 to 64 characters.
    pub new_status: String,
}

/// A parent owes money that is overdue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct ArrearsAlert {
    /// Names the parent. 1 to 128 characters.
    pub parent_id: String,
    /// The parent who owes. 1 to 200 characters.
    pub parent_name: String,
    /// The sum that is overdue; never negative.
    pub total_arrears: Money,
    /// For how many days.
    pub days_overdue: u32,
}

/// The centre's figures, as a whole: each one replaces the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct MetricsUpdated {
    /// What all parents owe; negative when the centre owes them.
    pub total_outstanding: Money,
    /// The part of it that is overdue.
    pub total_arrears: Money,
    /// How many parents owe overdue money.
    pub accounts_in_arrears: u64,
    /// Payments of today, by the centre's calendar.
    pub payments_today: u64,
    /// Their sum.
    pub amount_received_today: Money,
    /// How many invoices have each status.
    #[serde(deserialize_with = "strict::map_without_duplicates")]
    pub invoices_by_status: BTreeMap<String, u64>,
    /// The moment these figures are of.
    #[serde(with = "timestamp")]
    #[cfg_attr(test, ts(type = "string"))]
    pub as_of: OffsetDateTime,
    /// How many events of each kind these figures stand for, when a backlog was condensed into them.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "strict::optional_map_without_duplicates"
    )]
    #[cfg_attr(test, ts(optional))]
    pub condensed: Option<BTreeMap<DashboardEventType, u64>>,
}

/// Events that were condensed for a centre without figures: written as a `metrics_updated` whose six figures are null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct EventsCondensed {
    // Serde reads and writes `()` as null.
    total_outstanding: (),
    total_arrears: (),
    accounts_in_arrears: (),
    payments_today: (),
    amount_received_today: (),
    invoices_by_status: (),
    /// The moment at which the events were condensed.
    #[serde(with = "timestamp")]
    #[cfg_attr(test, ts(type = "string"))]
    pub as_of: OffsetDateTime,
    /// How many events of each kind were condensed.
    #[serde(deserialize_with = "strict::map_without_duplicates")]
    pub condensed: BTreeMap<DashboardEventType, u64>,
}

/// The longest id or number.
const ID: usize = 128;
/// The longest name of a person.
const NAME: usize = 200;
/// The longest status.
const STATUS: usize = 64;
/// The largest count of an event: the largest integer that JavaScript holds exactly.
pub const MAX_COUNT: u64 = (1 << 53) - 1;

impl PaymentReceived {
    pub(crate) fn validate(&self) -> Result<(), InvalidEvent> {
        text("data.paymentId", &self.payment_id, ID)?;
        not_negative("data.amount", self.amount)?;
        text("data.parentName", &self.parent_name, NAME)?;
        text("data.childName", &self.child_name, NAME)?;
        text("data.invoiceNumber", &self.invoice_number, ID)
    }
}

impl InvoiceStatusChanged {
    pub(crate) fn validate(&self) -> Result<(), InvalidEvent> {
        text("data.invoiceId", &self.invoice_id, ID)?;
        text("data.invoiceNumber", &self.invoice_number, ID)?;
        text("data.previousStatus", &self.previous_status, STATUS)?;
        text("data.newStatus", &self.new_status, STATUS)
    }
}

impl ArrearsAlert {
    pub(crate) fn validate(&self) -> Result<(), InvalidEvent> {
        text("data.parentId", &self.parent_id, ID)?;
        text("data.parentName", &self.parent_name, NAME)?;
        not_negative("data.totalArrears", self.total_arrears)
    }
}

impl MetricsUpdated {
    /// Checks what the types alone do not promise.
    ///
    /// # Errors
    /// [`InvalidEvent`] names the field and its rule.
    pub fn validate(&self) -> Result<(), InvalidEvent> {
        count("data.accountsInArrears", self.accounts_in_arrears)?;
        count("data.paymentsToday", self.payments_today)?;
        for (status, invoices) in &self.invoices_by_status {
            // Not named by its key, which may be the very text that breaks the rule.
            text("data.invoicesByStatus", status, STATUS)?;
            count("data.invoicesByStatus", *invoices)?;
        }
        as_of(self.as_of)?;
        self.condensed.as_ref().map_or(Ok(()), counts_condensed)
    }
}

impl EventsCondensed {
    /// This number of events of each kind, condensed now.
    pub fn new(condensed: BTreeMap<DashboardEventType, u64>) -> Self {
        Self {
            total_outstanding: (),
            total_arrears: (),
            accounts_in_arrears: (),
            payments_today: (),
            amount_received_today: (),
            invoices_by_status: (),
            as_of: OffsetDateTime::now_utc(),
            condensed,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), InvalidEvent> {
        as_of(self.as_of)?;
        counts_condensed(&self.condensed)
    }
}

fn as_of(moment: OffsetDateTime) -> Result<(), InvalidEvent> {
    if timestamp::is_writable(moment) { Ok(()) } else { Err(InvalidEvent::new("data.asOf", timestamp::YEARS)) }
}

fn counts_condensed(condensed: &BTreeMap<DashboardEventType, u64>) -> Result<(), InvalidEvent> {
    condensed.values().try_for_each(|events| count("data.condensed", *events))
}

/// Any characters are allowed, since the page escapes them. Only the length is bounded.
fn text(field: &str, text: &str, longest: usize) -> Result<(), InvalidEvent> {
    // A character takes four bytes at most, so that a far too long text is not counted to its end.
    let fits = !text.is_empty() && text.len() <= longest * 4 && text.chars().count() <= longest;
    if fits { Ok(()) } else { Err(InvalidEvent::new(field, format!("must be 1 to {longest} characters"))) }
}

fn not_negative(field: &str, amount: Money) -> Result<(), InvalidEvent> {
    if amount.is_negative() { Err(InvalidEvent::new(field, "must not be negative")) } else { Ok(()) }
}

fn count(field: &str, count: u64) -> Result<(), InvalidEvent> {
    let rule = || format!("must be at most {MAX_COUNT}, the largest integer a browser holds exactly");
    if count > MAX_COUNT { Err(InvalidEvent::new(field, rule())) } else { Ok(()) }
}
