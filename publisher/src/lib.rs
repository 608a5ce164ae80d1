//! Publishes what happens at a centre to its dashboards, the moment it happens.
//!
//! ```no_run
//! use publisher::{Money, Outcome, PaymentReceived, Publisher, PublisherConfig, TenantId};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Once, when the service starts. Cheap to clone into every handler.
//! let dashboards = Publisher::connect(PublisherConfig::new("redis://localhost:6379")).await?;
//!
//! // After the billing transaction has committed.
//! let acorn: TenantId = "acorn".parse()?;
//! let payment = PaymentReceived {
//!     payment_id: "pay_8714".into(),
//!     amount: "1500.00".parse::<Money>()?,
//!     parent_name: "Thandi Mokoena".into(),
//!     child_name: "Lwazi".into(),
//!     invoice_number: "INV-2026-0412".into(),
//! };
//! match dashboards.send_payment_received(&acorn, payment).await {
//!     Ok(Outcome::Published { seq, .. }) => println!("on the dashboards as number {seq}"),
//!     Ok(Outcome::Throttled { retry_after }) => println!("ten events this second; again in {retry_after:?}"),
//!     Ok(Outcome::Duplicate { .. }) => println!("shown already"),
//!     // The payment itself is safe, whatever happened here: log it and go on.
//!     Err(error) => eprintln!("not on the dashboards: {error}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What a call promises
//!
//! * It ends within [`PublisherConfig::timeout`] (250 ms), whether Redis is fast, slow, frozen or gone. Redis being down
//!   is an error at once, not a wait for its return.
//! * An event is shown once. Its [`EventId`] is remembered for 24 hours: sending the same [`DashboardEvent`] again gives
//!   [`Outcome::Duplicate`]. So an unknown outcome has a simple answer:
//!
//! ```no_run
//! # use publisher::*;
//! # async fn example(dashboards: Publisher, acorn: TenantId, payment: PaymentReceived) -> Result<(), PublishError> {
//! let event = DashboardEvent::new(payment);
//! let outcome = match dashboards.broadcast_to_tenant(&acorn, &event).await {
//!     Err(PublishError::Unknown { .. }) => dashboards.broadcast_to_tenant(&acorn, &event).await?,
//!     answer => answer?,
//! };
//! # let _ = outcome;
//! # Ok(())
//! # }
//! ```
//!
//! * A tenant gets at most 10 events in any second, whoever publishes them; the next is [`Outcome::Throttled`] and tells
//!   when there is room again. Figures ([`MetricsUpdated`]) leave three places free for payments.
//! * A tenant's events have numbers without holes, in the order in which Redis took them.
//!
//! # With a database
//!
//! `outbox::record` (feature `outbox`) writes an event inside the transaction that records the payment; the gateways' relay
//! publishes it once that has committed. Then no crash can lose it, and no rollback can show it.
//!
//! # The way of an event
//!
//! A [`DashboardEvent`] is serialised once, here. `publish.lua` then does everything else inside Redis in one step:
//! it checks that the id is new and the tenant within its limit, numbers the event, writes it to the tenant's log and
//! publishes it.

mod address;
mod backoff;
mod config;
#[cfg(feature = "outbox")]
mod database;
mod error;
mod event;
#[doc(hidden)]
pub mod internals;
mod log_throttle;
mod message;
mod metrics;
mod money;
mod names;
#[cfg(feature = "outbox")]
pub mod outbox;
mod outcome;
mod payload;
mod publisher;
mod redis;
mod script;
mod strict;
mod task;
mod tcp;
mod tenant;
mod timestamp;
mod topology;
#[cfg(test)]
mod typescript;

pub use config::PublisherConfig;
pub use error::{ConnectError, InvalidEvent, PublishError};
pub use event::{
    DashboardEvent, DashboardEventType, EventData, EventId, InvalidEventId, MAX_EVENT_BYTES, UnknownEventType,
};
pub use money::{InvalidMoney, Money};
pub use names::InvalidPrefix;
pub use outcome::Outcome;
pub use payload::{ArrearsAlert, EventsCondensed, InvoiceStatusChanged, MAX_COUNT, MetricsUpdated, PaymentReceived};
pub use publisher::Publisher;
pub use tenant::{InvalidTenantId, TenantId};
