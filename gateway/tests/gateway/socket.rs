//! A socket: handshake, frames, messages, joins, what it may cost the others.

pub mod backlogs;
pub mod client_faults;
pub mod frames;
pub mod handshake;
pub mod joins;
pub mod messages;
pub mod seats;
pub mod session;
