//! A socket and its wire: its id, its frames, its messages, the link that writes them, and the reasons why it closes.

pub(crate) mod close;
pub(crate) mod dialect;
pub mod frame;
mod id;
pub(crate) mod link;
pub mod protocol;
pub(crate) mod snapshot;

pub(crate) use id::SocketId;
