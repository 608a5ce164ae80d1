//! The address of one server.

use std::{fmt, sync::Arc};

/// One Redis server, Sentinel or node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// A name or an IP address.
    pub host: Arc<str>,
    /// The port.
    pub port: u16,
}

impl Server {
    /// The server at this address.
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
