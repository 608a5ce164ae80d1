//! The CrecheBooks dashboard gateway: events from Redis to the sockets of the right tenant.
//!
//! An event walks `engine` → `hub::room` → `socket`; a join walks `socket` → `hub` → `hub::room` → `engine`, and back.

pub mod config;
pub mod tokens;
pub mod commands {
    //! What the binary can be asked to do: one module a subcommand.
    pub mod check;
    pub mod token;
}
pub mod http {
    //! HTTP on both ports.
    pub mod problem;
}
