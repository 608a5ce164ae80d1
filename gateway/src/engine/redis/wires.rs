//! The connections to all servers that hold something, for whoever wants to talk to a tenant's own.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use publisher::internals::topology::{Layout, Server, Servers};

use super::wire::{Streams, Terms, Wire};

/// Opened and closed by the keeper.
pub struct Wires {
    servers: Servers,
    terms: Terms,
    open: RwLock<HashMap<Server, Arc<Wire>>>,
}

impl Wires {
    /// None yet.
    pub fn new(servers: Servers, terms: Terms) -> Self {
        Self { servers, terms, open: RwLock::default() }
    }

    /// Where the servers are, as it changes.
    pub fn servers(&self) -> Servers {
        self.servers.clone()
    }

    /// Connects to one more server.
    pub fn open(&self, server: &Server) -> (Arc<Wire>, Streams) {
        let (wire, streams) = Wire::open(&self.servers.url().config_of(server), &self.terms);
        let wire = Arc::new(wire);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(server.clone(), wire.clone());
        (wire, streams)
    }

    /// Nobody is to talk to this server any more.
    pub fn close(&self, server: &Server) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(server);
    }

    /// The connections to where `name` is.
    pub fn of(&self, name: &str) -> Option<Arc<Wire>> {
        let layout = self.servers.layout();
        let server = layout.server_of(name.as_bytes())?;
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(server).cloned()
    }

    /// The connections to where the kicks are.
    pub fn of_kicks(&self) -> Option<Arc<Wire>> {
        self.of(&self.terms.names.revoked())
    }

    /// Whether the servers are a Cluster's.
    pub fn is_sharded(&self) -> bool {
        self.terms.sharded
    }

    /// Whether the kicks are on this server.
    pub fn has_kicks(&self, layout: &Layout, server: &Server) -> bool {
        layout.server_of(self.terms.names.revoked().as_bytes()) == Some(server)
    }
}
