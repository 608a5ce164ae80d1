//! A real Redis Cluster: three masters with a replica each, whose slots move and whose nodes die.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use publisher::TenantId;

use crate::ports::free_port;
use crate::redis::RedisServer;
use crate::resp::Reply;
use crate::wait::eventually;

/// How long a node is missed before the others hold it to be dead, in milliseconds.
const NODE_TIMEOUT: &str = "1000";
/// For what the nodes agree on among themselves.
const AGREEMENT: Duration = Duration::from_secs(20);

pub struct RedisCluster {
    /// The masters first, each followed by its replica three places later, as long as nobody failed over.
    pub nodes: Vec<RedisServer>,
}

/// How much a node knows of the slots.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    first: i64,
    last: i64,
    master: u16,
}

impl RedisCluster {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(arguments: &[&str]) -> Self {
        let starts = (0..6).map(|_| async {
            let bus = free_port().to_string();
            let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", NODE_TIMEOUT];
            // A replica may take over however long it has heard nothing of its master.
            let replicas = ["--cluster-replica-validity-factor", "0", "--appendonly", "no"];
            RedisServer::start_with(&[&cluster[..], &replicas[..], arguments].concat()).await.with_bus(bus)
        });
        let cluster = Self { nodes: futures::future::join_all(starts).await };
        cluster.form().await;
        cluster
    }

    async fn form(&self) {
        let [first, others @ ..] = &self.nodes[..] else { panic!("six nodes") };
        for node in others {
            let (port, bus) = (node.addr().port().to_string(), node.bus());
            first.command(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]).await;
        }
        for (index, range) in [("0", "5460"), ("5461", "10922"), ("10923", "16383")].into_iter().enumerate() {
            self.nodes[index].command(&["CLUSTER", "ADDSLOTSRANGE", range.0, range.1]).await;
            let epoch = (index + 1).to_string();
            self.nodes[index].client().await.try_command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await.unwrap();
        }
        for index in 3..6 {
            let master = self.nodes[index - 3].command(&["CLUSTER", "MYID"]).await.text().to_owned();
            eventually("the replica-to-be knows its master", AGREEMENT, async || {
                let mut client = self.nodes[index].client().await;
                let reply = client.try_command(&["CLUSTER", "REPLICATE", &master]).await.ok()?;
                (reply == Reply::Text("OK".into())).then_some(())
            })
            .await;
        }
        self.is_whole().await;
    }

    /// Waits until all nodes agree, and there is a replica in step for each master.
    pub async fn is_whole(&self) {
        eventually("every node finds the cluster whole, with its replicas in step", AGREEMENT, async || {
            let mut replicas = 0;
            for node in &self.nodes {
                let info = node.command(&["CLUSTER", "INFO"]).await.text().to_owned();
                if !info.contains("cluster_state:ok") || !info.contains("cluster_known_nodes:6") {
                    return None;
                }
                let replication = node.command(&["INFO", "replication"]).await.text().to_owned();
                replicas += usize::from(replication.contains("master_link_status:up"));
            }
            let views: Vec<_> = futures::future::join_all(self.nodes.iter().map(view)).await;
            (replicas == 3 && views.iter().all(|view| *view == views[0])).then_some(())
        })
        .await;
    }

    /// The nodes that hold slots.
    pub async fn masters(&self) -> BTreeSet<usize> {
        let view = view(self.alive().await).await;
        view.iter().map(|range| self.node_at(range.master)).collect()
    }

    fn node_at(&self, port: u16) -> usize {
        self.nodes.iter().position(|node| node.addr().port() == port).unwrap()
    }

    /// The replica of a master that lives.
    pub async fn replica_of(&self, master: usize) -> usize {
        let id = self.nodes[master].command(&["CLUSTER", "MYID"]).await.text().to_owned();
        let Reply::Array(replicas) = self.nodes[master].command(&["CLUSTER", "REPLICAS", &id]).await else {
            panic!("no replicas")
        };
        // <id> <ip:port@bus> slave …
        let port = replicas[0].text().split([':', '@']).nth(1).unwrap().parse().unwrap();
        self.node_at(port)
    }

    /// Waits until another node has taken over from this one, which died.
    pub async fn is_succeeded(&self, master: usize) {
        eventually("another master", AGREEMENT, async || (!self.masters().await.contains(&master)).then_some(())).await;
    }

    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(RedisServer::addr).collect()
    }

    /// With every node as a seed.
    pub fn url(&self) -> String {
        let [first, others @ ..] = &self.nodes[..] else { panic!("six nodes") };
        let others: Vec<_> = others.iter().map(|node| format!("node={}", node.addr())).collect();
        format!("redis-cluster://{}?{}", first.addr(), others.join("&"))
    }

    /// The slot of a tenant's names.
    pub async fn slot_of(&self, tenant: &TenantId) -> i64 {
        self.alive().await.command(&["CLUSTER", "KEYSLOT", tenant.as_str()]).await.integer()
    }

    /// The node that holds a tenant, by the view of a node that lives.
    pub async fn master_of(&self, tenant: &TenantId) -> usize {
        let slot = self.slot_of(tenant).await;
        let view = view(self.alive().await).await;
        let range = view.iter().find(|range| (range.first..=range.last).contains(&slot)).unwrap();
        self.node_at(range.master)
    }

    async fn alive(&self) -> &RedisServer {
        for node in &self.nodes {
            if let Ok(mut client) = crate::redis::RedisClient::connect(node.addr()).await
                && tokio::time::timeout(Duration::from_millis(200), client.try_command(&["PING"])).await.is_ok()
            {
                return node;
            }
        }
        panic!("no node lives");
    }

    /// Moves a tenant's slot with all its keys, as `redis-cli --cluster reshard` does.
    pub async fn move_slot(&self, tenant: &TenantId, to: usize) {
        let migration = self.begin_migration(tenant, to).await;
        migration.move_keys().await;
        migration.end().await;
    }

    /// From now on a tenant's slot is on its way.
    pub async fn begin_migration(&self, tenant: &TenantId, to: usize) -> Migration<'_> {
        let from = self.master_of(tenant).await;
        let slot = self.slot_of(tenant).await.to_string();
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let source_id = source.command(&["CLUSTER", "MYID"]).await.text().to_owned();
        let target_id = target.command(&["CLUSTER", "MYID"]).await.text().to_owned();
        target.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id]).await;
        source.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target_id]).await;
        Migration { source, target, target_id, slot }
    }

    /// Subscribers of a sharded channel on one node.
    pub async fn subscribers(&self, node: usize, channel: &str) -> i64 {
        match self.nodes[node].command(&["PUBSUB", "SHARDNUMSUB", channel]).await {
            Reply::Array(pair) => pair[1].integer(),
            other => panic!("SHARDNUMSUB answered {other:?}"),
        }
    }

    /// Makes a node forget all others, as if it were cut off from them: clients still reach it.
    pub async fn isolate(&self, index: usize) {
        for (other, node) in self.nodes.iter().enumerate() {
            if other != index {
                let id = node.command(&["CLUSTER", "MYID"]).await.text().to_owned();
                self.nodes[index].command(&["CLUSTER", "FORGET", &id]).await;
            }
        }
    }

    /// Makes a master's replica miss what comes from now on: it stands still, and what it was sent ends here.
    pub async fn leave_behind(&self, master: usize, replica: usize) {
        self.nodes[replica].freeze();
        self.nodes[master].command(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    }
}

/// A slot on its way from one node to another.
pub struct Migration<'a> {
    source: &'a RedisServer,
    target: &'a RedisServer,
    target_id: String,
    slot: String,
}

impl Migration<'_> {
    pub async fn move_keys(&self) {
        let port = self.target.addr().port().to_string();
        loop {
            let keys = self.source.command(&["CLUSTER", "GETKEYSINSLOT", &self.slot, "100"]).await;
            let keys = keys.texts();
            if keys.is_empty() {
                return;
            }
            let words = [&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"][..], &keys[..]].concat();
            self.source.command(&words).await;
        }
    }

    pub async fn end(self) {
        for node in [self.target, self.source] {
            node.command(&["CLUSTER", "SETSLOT", &self.slot, "NODE", &self.target_id]).await;
        }
    }
}

async fn view(node: &RedisServer) -> Vec<Range> {
    let Reply::Array(ranges) = node.command(&["CLUSTER", "SLOTS"]).await else { panic!("no slots") };
    let mut ranges: Vec<_> = ranges
        .into_iter()
        .map(|range| {
            let Reply::Array(range) = range else { panic!("no range") };
            let Reply::Array(master) = &range[2] else { panic!("no master") };
            let master = u16::try_from(master[1].integer()).unwrap();
            Range { first: range[0].integer(), last: range[1].integer(), master }
        })
        .collect();
    ranges.sort_by_key(|range| range.first);
    ranges
}
