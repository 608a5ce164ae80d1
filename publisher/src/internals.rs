//! What the gateway and the load test share with the publisher. Not part of its API: it may change in any version.

pub use crate::{
    log_throttle::LogThrottle,
    message::{Epoch, InvalidEpoch, InvalidMessageType, MalformedMessage, Message, MessageType},
    names::Names,
    outcome::{Relayed, Term},
    sanitised::sanitised,
};

#[cfg(feature = "outbox")]
pub mod database {
    pub use crate::database::*;
}

pub mod redis {
    pub use crate::redis::{Access, Commands, Failure};
}

pub mod resp {
    pub use crate::resp::*;
}

pub mod script {
    pub use crate::script::*;
}

pub mod task {
    pub use crate::task::*;
}

pub mod timestamp {
    pub use crate::timestamp::*;
}

pub mod topology {
    pub use crate::topology::*;
}
