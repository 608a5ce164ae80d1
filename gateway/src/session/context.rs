//! What a connection may touch: one value, shared by all connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::access::Access;
use super::slots::Slots;
use crate::clock::Clock;
use crate::config::Settings;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::socket::SocketId;
use crate::socket::link::QueueLimits;

pub struct Context {
    pub access: Access,
    pub hub: Hub,
    pub slots: Slots,
    pub queues: Arc<QueueLimits>,
    pub limits: Limits,
    pub metrics: Metrics,
    pub shutdown: Shutdown,
    pub clock: Clock,
    pub sockets: SocketIds,
}

/// The settings of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub heartbeat: Duration,
    pub join_timeout: Duration,
    pub max_message_bytes: usize,
    /// Off, every socket is told to poll instead, and closed.
    pub realtime: bool,
}

impl Limits {
    /// Those of the configuration.
    pub fn of(settings: &Settings) -> Self {
        Self {
            heartbeat: settings.limits.heartbeat,
            join_timeout: settings.limits.join_timeout,
            max_message_bytes: settings.limits.max_message_bytes,
            realtime: settings.realtime,
        }
    }
}

/// Gives every socket a number of its own.
#[derive(Debug, Default)]
pub struct SocketIds(AtomicU64);

impl SocketIds {
    pub fn next(&self) -> SocketId {
        SocketId(self.0.fetch_add(1, Ordering::Relaxed))
    }
}
