//! One browser's connection: the handshake, the frames, the protocol, and its exit.

pub mod allowance;
pub mod close;
pub mod connection;
pub mod frame;
pub mod handshake;
pub mod link;
pub mod offer;
pub mod protocol;
pub mod slots;
