//! Publishes what happens at a centre to its dashboards.

mod error;
mod event;
mod message;
mod money;
mod names;
mod payload;
pub mod script;
mod strict;
mod tenant;
mod timestamp;

pub use error::{ConnectError, InvalidEvent, PublishError};
pub use event::{DashboardEvent, DashboardEventType, EventData, EventId, InvalidEventId, MAX_EVENT_BYTES, UnknownEventType};
pub use message::{Epoch, InvalidEpoch, MalformedMessage, Message};
pub use money::{InvalidMoney, Money};
pub use names::{InvalidPrefix, Names};
pub use payload::{ArrearsAlert, InvoiceStatusChanged, MetricsUpdated, PaymentReceived};
pub use tenant::{InvalidTenantId, TenantId};
