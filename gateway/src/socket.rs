//! A socket: its name, its frames, its messages, its exit and the reasons why it closes.

pub mod close;
pub mod frame;
pub mod link;
pub mod protocol;
pub mod snapshot;

/// Names a socket for as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u64);
