//! HTTP on both ports: the server, the routes of the public port and those of the internal port.

mod address;
mod bearer;
mod handshake;
mod heads;
pub mod internal;
mod offer;
mod port;
pub mod problem;
pub mod public;
mod seats;
mod server;
mod stream;
mod strict;

pub use port::why_closed;
pub use server::{Limits, is_json, listen, serve};
