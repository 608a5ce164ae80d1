//! The messages of the wire protocol, the same in every dialect: `gateway/docs/protocol.md`.

mod client;
mod server;

pub use client::{BadMessage, ClientMessage, JoinRequest, MAX_SAFE_INTEGER};
pub(crate) use server::{
    ServerMessage, SnapshotData, degraded, disabled, explanation, heartbeat, joined, left, refused, restored, resync,
    tenant_required, token_expiring,
};

#[cfg(test)]
mod tests;

#[cfg(test)]
mod typescript;
