//! The server of one socket: which tokens are accepted, the slot that the socket needs, its task and its limits.

pub mod access;
mod allowance;
pub mod audit;
pub mod choice;
mod closing;
mod connection;
pub mod context;
mod deadlines;
pub mod newcomer;
pub mod slots;
