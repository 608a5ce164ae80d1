//! The command connections to all servers that hold something: leads each name to its server.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use publisher::internals::topology::{Layout, Server, Servers};

use super::commands::Commands;
use super::connection::Kind;
use super::settings::Settings;

/// Opened and closed by the subscriber.
pub struct Reach {
    servers: Servers,
    settings: Settings,
    open: RwLock<HashMap<Server, Arc<Commands>>>,
}

impl Reach {
    /// Nothing is reached yet.
    pub fn new(servers: Servers, settings: Settings) -> Self {
        Self { servers, settings, open: RwLock::default() }
    }

    /// Where the servers are, as it changes.
    pub fn servers(&self) -> Servers {
        self.servers.clone()
    }

    /// What is the same for every server.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Connects to a server: for the first time, or anew.
    pub fn open(&self, server: &Server) -> Arc<Commands> {
        let commands = Arc::new(Commands::open(self.servers.url().target(server), self.settings.clone()));
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(server.clone(), commands.clone());
        commands
    }

    /// No name leads to this server any more.
    pub fn close(&self, server: &Server) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(server);
    }

    /// The connection to where `name` is.
    pub fn of(&self, name: &str) -> Option<Arc<Commands>> {
        let layout = self.servers.layout();
        let server = layout.server_of(name.as_bytes())?;
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(server).cloned()
    }

    /// The connection to where the kicks are.
    pub fn of_kicks(&self) -> Option<Arc<Commands>> {
        self.of(&self.settings.names.revoked())
    }

    /// Whether the kicks are on this server.
    pub fn has_kicks(&self, layout: &Layout, server: &Server) -> bool {
        layout.server_of(self.settings.names.revoked().as_bytes()) == Some(server)
    }

    /// Whether the servers are a Cluster's.
    pub fn is_sharded(&self) -> bool {
        self.settings.kind == Kind::Sharded
    }
}
