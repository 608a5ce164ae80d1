//! Distributes sockets over gateways and tenants, and joins them.

use std::ops::Range;
use std::thread;

use anyhow::Context;

use super::token::Mint;
use super::{Client, GatewayUrl, Joined, Resume};
use crate::schedule::tenant_name;
use crate::wire::message::{Position, Scanner};

/// How dashboards are opened: the gateways, tenants and tokens of all of them.
#[derive(Clone)]
pub struct Fleet {
    pub gateways: Vec<GatewayUrl>,
    pub tenants: u32,
    pub mint: Mint,
    pub resume: Resume,
}

/// A dashboard that has joined.
pub struct Dashboard {
    pub client: Client,
    pub tenant: u32,
    pub position: Position,
}

impl Fleet {
    /// Threads that connect at once: enough to keep a gateway busy, too few to overflow its accept queue.
    const DIALLERS: usize = 16;

    /// Sockets go to tenants in turn.
    pub fn tenant(&self, socket: usize) -> u32 {
        (socket % self.tenants as usize) as u32
    }

    /// Sockets go to gateways in turn, and one further in each round of the tenants. Otherwise a tenant would be on one
    /// gateway only whenever the number of gateways divides that of tenants.
    fn gateway(&self, socket: usize) -> &GatewayUrl {
        self.gateway_of_attempt(socket, 0)
    }

    /// Each attempt to reconnect goes to the next gateway, as through a balancer.
    fn gateway_of_attempt(&self, socket: usize, attempt: u32) -> &GatewayUrl {
        &self.gateways[(socket + socket / self.tenants as usize + attempt as usize) % self.gateways.len()]
    }

    /// Connects and upgrades one socket.
    pub fn upgrade(&self, socket: usize) -> anyhow::Result<Client> {
        let token = self.mint.token(&format!("user-{socket}"), &tenant_name(self.tenant(socket)))?;
        let gateway = self.gateway(socket);
        Client::upgrade(gateway, socket, &token).with_context(|| format!("socket {socket} on {gateway}"))
    }

    /// Opens these sockets, several at a time, and waits until each has joined.
    pub fn join(&self, sockets: Range<usize>) -> anyhow::Result<Vec<Dashboard>> {
        let share = sockets.len().div_ceil(Self::DIALLERS).max(1);
        thread::scope(|scope| {
            let dialler = |range: Range<usize>| {
                scope.spawn(move || {
                    let scanner = Scanner::new();
                    range.map(|socket| self.join_one(socket, &scanner)).collect::<anyhow::Result<Vec<_>>>()
                })
            };
            let ranges = sockets.clone().step_by(share).map(|start| start..(start + share).min(sockets.end));
            let diallers: Vec<_> = ranges.map(dialler).collect();
            let mut joined = Vec::with_capacity(sockets.len());
            for dialler in diallers {
                joined.extend(dialler.join().expect("a dialler does not panic")?);
            }
            Ok(joined)
        })
    }

    fn join_one(&self, socket: usize, scanner: &Scanner) -> anyhow::Result<Dashboard> {
        let mut client = self.upgrade(socket)?;
        let joined = client.joined(scanner).with_context(|| format!("socket {socket} on {}", self.gateway(socket)))?;
        Ok(Dashboard { client, tenant: self.tenant(socket), position: joined.position })
    }

    /// Connects one socket again: anew, or from its last position.
    pub fn reconnect(
        &self,
        socket: usize,
        attempt: u32,
        from: Option<&Position>,
        scanner: &Scanner,
    ) -> anyhow::Result<(Client, Joined)> {
        let tenant = tenant_name(self.tenant(socket));
        let token = self.mint.token(&format!("user-{socket}"), &tenant)?;
        let gateway = self.gateway_of_attempt(socket, attempt);
        let mut client = match from {
            None => Client::upgrade(gateway, socket, &token)?,
            Some(position) => Client::resume(gateway, socket, &token, &tenant, position, self.resume)?,
        };
        let joined = client.joined(scanner)?;
        Ok((client, joined))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_tenant_has_sockets_on_every_gateway() {
        let gateways = [1, 2, 3].map(|port| format!("ws://127.0.0.1:{port}").parse().unwrap()).into();
        let fleet = Fleet { gateways, tenants: 30, mint: Mint::new("secret"), resume: Resume::Handshake };
        let pairs: BTreeSet<_> =
            (0..300).map(|socket| (fleet.tenant(socket), fleet.gateway(socket).to_string())).collect();
        assert_eq!(pairs.len(), 90);
    }
}
