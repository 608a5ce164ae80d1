//! The servers that `floor` and `knee` start: the two that are compared, and their Redis.

pub mod bare;
pub mod redis;
pub mod server;
