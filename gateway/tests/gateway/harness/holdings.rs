//! What the processes hold: descriptors and tasks of each gateway, connections at each server. A fault must leave no more behind.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::join_all;
use publisher::TenantId;
use tokio::time::timeout;

use super::events::payment;
use super::gateway::Gateway;
use super::redis::RedisClient;
use super::resp::Reply;
use super::stack::Stack;

/// More than before that is no leak: links among the servers themselves, and what is being closed.
const SLACK: usize = 6;
/// What was used until the fault ended is closed within this.
const LIMIT: Duration = Duration::from_secs(60);

/// `gateway_tasks` is a count that is made this often, and a moment.
const TASKS_ARE_COUNTED: Duration = Duration::from_millis(5500);

#[derive(Debug)]
pub struct Holdings {
    servers: Vec<SocketAddr>,
    /// Of each gateway.
    pub descriptors: Vec<usize>,
    /// The same for tasks.
    tasks: Vec<usize>,
    /// Connections at each server; none at one that does not answer.
    pub clients: Vec<usize>,
}

impl Holdings {
    /// Before anything breaks: gateways and publisher are connected, and no dashboard is open.
    pub async fn before(stack: &mut Stack, servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        for gateway in &stack.gateways {
            gateway.metric_becomes("gateway_redis_up", &[], 1.0).await;
        }
        stack.publisher().await;
        // The first count was made while the gateway started.
        tokio::time::sleep(TASKS_ARE_COUNTED).await;
        Self::of(&stack.gateways.iter().collect::<Vec<_>>(), servers).await
    }

    /// The same servers, now.
    pub async fn again(&self, stack: &Stack) -> Self {
        Self::of(&stack.gateways.iter().collect::<Vec<_>>(), self.servers.iter().copied()).await
    }

    /// Of these gateways, and at these servers.
    pub async fn of(gateways: &[&Gateway], servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        let servers: Vec<_> = servers.into_iter().collect();
        let clients = join_all(servers.iter().map(|server| connected_clients(*server))).await;
        let tasks = gateways.iter().map(async |gateway| gateway.metric("gateway_tasks", &[]).await as usize);
        Self {
            tasks: join_all(tasks).await,
            descriptors: gateways.iter().map(|gateway| gateway.file_descriptors()).collect(),
            clients,
            servers,
        }
    }

    /// For as long as asked, lets billing publish for these tenants, and makes sure that the outage costs nobody more
    /// connections than there were: `room` more at the most, on each gateway and at each server.
    pub async fn stay_bounded(&self, stack: &mut Stack, tenants: &[TenantId], time: Duration, room: usize) {
        let (begun, publisher) = (Instant::now(), stack.publisher().await);
        while begun.elapsed() < time {
            for tenant in tenants {
                // Some of it fails, which is what an outage is for.
                let _ = publisher.broadcast_to_tenant(tenant, &payment()).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let now = self.again(stack).await;
            let is_bounded =
                |now: &[usize], before: &[usize]| now.iter().zip(before).all(|(now, before)| *now <= before + room);
            let bounded = is_bounded(&now.descriptors, &self.descriptors) && is_bounded(&now.clients, &self.clients);
            assert!(bounded, "after {:?} of outage: {now:?}, before {self:?}", begun.elapsed());
        }
        println!("before: {self:?}\nafter {time:?} of outage: {:?}", self.again(stack).await);
    }

    /// Waits until no gateway and no server holds more than before.
    pub async fn are_back(&self, stack: &Stack) {
        self.are_back_at(&stack.gateways.iter().collect::<Vec<_>>(), 0).await;
    }

    /// The same, with so many descriptors of each gateway that only its first use opens. A tenant's server may be another now, so
    /// the connections are added up.
    pub async fn are_back_at(&self, gateways: &[&Gateway], opened_once: usize) {
        let begun = Instant::now();
        loop {
            let now = Self::of(gateways, self.servers.iter().copied()).await;
            let back = |now: &[usize], before: &[usize], more: usize| {
                now.iter().zip(before).all(|(now, before)| *now <= before + more + SLACK)
            };
            let connections = [now.clients.iter().sum()];
            if back(&now.descriptors, &self.descriptors, opened_once)
                && back(&now.tasks, &self.tasks, opened_once)
                && back(&connections, &[self.clients.iter().sum()], 0)
            {
                println!("before: {self:?}\nafter: {now:?}");
                return;
            }
            assert!(begun.elapsed() < LIMIT, "more is held than before: {now:?}, before {self:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// `connected_clients`, without the one that asks.
async fn connected_clients(server: SocketAddr) -> usize {
    info(server, "clients", "connected_clients").await.map_or(0, |count| count as usize - 1)
}

/// A number of a server's INFO, unless the server does not answer.
pub async fn info(server: SocketAddr, section: &str, field: &str) -> Option<u64> {
    let asked = async { RedisClient::connect(server).await?.try_command(&["INFO", section]).await };
    let Ok(Ok(Reply::Text(text))) = timeout(Duration::from_secs(1), asked).await else { return None };
    text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.trim().parse().ok())
}
