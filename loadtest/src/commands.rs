//! The subcommands, the options that they share, and the bench on which `floor` and `knee` compare servers.

pub mod attack;
mod bench;
pub mod churn;
pub mod fanout;
pub mod floor;
pub mod idle;
pub mod knee;
pub mod limit;
pub mod options;
pub mod payments;
pub mod ramp;
pub mod relay;
pub mod snapshot;
pub mod soak;
pub mod storm;
