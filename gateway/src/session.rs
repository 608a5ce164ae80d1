//! Who serves a socket: the handshake, the connection's task, the slots that it needs and the messages that it may send.

pub mod allowance;
pub mod connection;
pub mod handshake;
pub mod offer;
pub mod slots;
