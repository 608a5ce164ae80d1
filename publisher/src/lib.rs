#![doc = include_str!("../README.md")]

mod address;
mod backoff;
mod config;
#[cfg(feature = "outbox")]
mod database;
mod error;
mod event;
mod event_type;
#[doc(hidden)]
pub mod internals;
mod invalid_event;
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
mod resp;
mod sanitised;
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
pub use error::{ConnectError, PublishError};
pub use event::{DashboardEvent, EventData, EventId, InvalidEventId, MAX_EVENT_BYTES};
pub use event_type::{DashboardEventType, UnknownEventType};
pub use invalid_event::InvalidEvent;
pub use money::{InvalidMoney, Money};
pub use names::InvalidPrefix;
pub use outcome::Outcome;
pub use payload::{ArrearsAlert, EventsCondensed, InvoiceStatusChanged, MAX_COUNT, MetricsUpdated, PaymentReceived};
pub use publisher::Publisher;
pub use tenant::{InvalidTenantId, TenantId};
