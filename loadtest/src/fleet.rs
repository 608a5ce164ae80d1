//! Deals sockets to gateways and tenants, and joins them.

use std::ops::Range;
use std::thread;

use anyhow::Context;

use crate::client::{Client, GatewayUrl, Position, Resume, Welcome};
use crate::message::Scanner;
use crate::schedule::tenant_name;
use crate::token::Mint;

/// Dashboards to be opened.
pub struct Fleet {
    pub gateways: Vec<GatewayUrl>,
    pub tenants: u32,
    pub mint: Mint,
    pub resume: Resume,
}

/// A dashboard that is up.
pub struct Joined {
    pub client: Client,
    pub tenant: u32,
    pub position: Position,
}

impl Fleet {
    /// Threads that dial at once: enough to keep a gateway busy, too few to overflow its accept queue.
    const DIALLERS: usize = 16;

    /// Sockets go to tenants in turn.
    pub fn tenant(&self, socket: usize) -> u32 {
        (socket % self.tenants as usize) as u32
    }

    /// Sockets go to gateways in turn, one further in each round of the tenants: otherwise a tenant would
    /// live on one gateway whenever the gateways divide the tenants.
    fn gateway(&self, socket: usize) -> &GatewayUrl {
        self.gateway_of_attempt(socket, 0)
    }

    /// Each attempt to come back goes to the next gateway, as a balancer would send it.
    fn gateway_of_attempt(&self, socket: usize, attempt: u32) -> &GatewayUrl {
        &self.gateways[(socket + socket / self.tenants as usize + attempt as usize) % self.gateways.len()]
    }

    /// Dials and upgrades one socket.
    pub fn upgrade(&self, socket: usize) -> anyhow::Result<Client> {
        let token = self.mint.token(&format!("user-{socket}"), &tenant_name(self.tenant(socket)))?;
        let gateway = self.gateway(socket);
        Client::upgrade(gateway, socket, &token).with_context(|| format!("socket {socket} on {gateway}"))
    }

    /// Opens these sockets, several at a time, and waits until each has joined.
    pub fn join(&self, sockets: Range<usize>) -> anyhow::Result<Vec<Joined>> {
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

    fn join_one(&self, socket: usize, scanner: &Scanner) -> anyhow::Result<Joined> {
        let mut client = self.upgrade(socket)?;
        let welcome = client.joined(scanner).with_context(|| format!("socket {socket} on {}", self.gateway(socket)))?;
        Ok(Joined { client, tenant: self.tenant(socket), position: welcome.position })
    }

    /// Brings one socket back: afresh, or from where it was.
    pub fn return_one(
        &self,
        socket: usize,
        attempt: u32,
        from: Option<&Position>,
        scanner: &Scanner,
    ) -> anyhow::Result<(Client, Welcome)> {
        let tenant = tenant_name(self.tenant(socket));
        let token = self.mint.token(&format!("user-{socket}"), &tenant)?;
        let gateway = self.gateway_of_attempt(socket, attempt);
        let mut client = match from {
            None => Client::upgrade(gateway, socket, &token)?,
            Some(position) => Client::resume(gateway, socket, &token, &tenant, position, self.resume)?,
        };
        let welcome = client.joined(scanner)?;
        Ok((client, welcome))
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
