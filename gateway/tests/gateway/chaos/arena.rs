//! Everything that runs and can be broken: three gateways on a master and its replica, the outbox, the ways between them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::join_all;
use publisher::{Publisher, PublisherConfig, TenantId};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;

use super::schedule::{Fault, GATEWAYS, Strike};
use crate::harness::events::bulky;
use crate::harness::follower::Whim;
use crate::harness::ledger::Cursor;
use crate::harness::oracle::Receipt;
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::redis::RedisServer;
use crate::harness::traffic::publish;
use crate::harness::{Database, Follower, Gateway, Holdings, PostgresServer, Setup, eventually, tenant};

/// How often clients are told that all is well.
const HEARTBEAT_SECONDS: &str = "2";
/// More than any tenant publishes while a fault lasts.
const RECOVERY_EVENTS: u32 = 2048;
/// Connections that a gateway keeps once it has used them, to read snapshots.
const SNAPSHOTS: usize = 8;
/// As small as a subscriber's output buffer may be for these events to overrun it.
const SMALL_BUFFER: &str = "pubsub 32kb 0 0";
const USUAL_BUFFER: &str = "pubsub 32mb 8mb 60";
/// So many of the largest events, 4.5 MB, are more than the kernel holds back for a subscriber on loopback.
const OVERRUN: usize = 300;

/// Of one victim at a time, so that a lock is never waited for.
pub struct Arena {
    prefix: String,
    gateways: Vec<Mutex<Gateway>>,
    pub addrs: Vec<SocketAddr>,
    /// From each gateway to the master.
    ways: Vec<Proxy>,
    /// From the publishers.
    billing: Proxy,
    servers: Mutex<Servers>,
    postgres: Mutex<PostgresServer>,
    pub database: Database,
}

struct Servers {
    master: RedisServer,
    replica: RedisServer,
    /// From the replica to its master.
    replication: Proxy,
}

/// What a strike did, and when.
pub struct Done {
    pub strike: Strike,
    pub begun: Instant,
    pub healed: Instant,
    /// What was published to do it.
    pub receipts: Vec<Receipt>,
}

impl Arena {
    pub async fn start() -> Self {
        let durable = ["--appendonly", "yes", "--appendfsync", "everysec"];
        let (master, replica) = (RedisServer::start_with(&durable).await, RedisServer::start_with(&durable).await);
        let replication = Proxy::to(master.addr()).await;
        replica.follow(replication.addr()).await;
        let postgres = PostgresServer::start().await;
        let database = postgres.database().await;
        let prefix = format!("test-{}", tenant());
        let setup = Setup::new()
            .database(&database)
            .env("HEARTBEAT_SECONDS", HEARTBEAT_SECONDS)
            // Every row must arrive under its own id, however long the outage was.
            .env("OUTBOX_CONDENSE_AFTER", "1000")
            // What a tenant publishes in an outage of a minute must be within reach.
            .env("RECOVERY_EVENTS", &RECOVERY_EVENTS.to_string())
            .env("REDIS_PREFIX", &prefix);
        let (mut gateways, mut addrs, mut ways) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..GATEWAYS {
            let way = Proxy::to(master.addr()).await;
            let listen = || format!("127.0.0.1:{}", free_port());
            let setup = setup.clone().env("REDIS_URL", &format!("redis://{}", way.addr()));
            let setup = setup.env("LISTEN", &listen()).env("INTERNAL_LISTEN", &listen());
            let gateway = Gateway::start(setup.environment()).await;
            addrs.push(gateway.public);
            gateways.push(Mutex::new(gateway));
            ways.push(way);
        }
        Self {
            prefix,
            gateways,
            addrs,
            ways,
            billing: Proxy::to(master.addr()).await,
            servers: Mutex::new(Servers { master, replica, replication }),
            postgres: Mutex::new(postgres),
            database,
        }
    }

    /// Billing's way to Redis, with a limit of its own.
    pub async fn publisher(&self, events_per_second: u32) -> Publisher {
        let mut config = PublisherConfig::new(format!("redis://{}", self.billing.addr()));
        config.prefix.clone_from(&self.prefix);
        config.events_per_second = events_per_second;
        config.recovery_events = RECOVERY_EVENTS;
        Publisher::connect(config).await.unwrap()
    }

    /// Breaks, waits, heals.
    pub async fn suffer(&self, strike: Strike, followers: &[Follower], tenants: &[TenantId]) -> Done {
        let Strike { lasts, fault, target, .. } = strike;
        let begun = Instant::now();
        let mut healed = None;
        let mut receipts = Vec::new();
        match fault {
            Fault::GatewayKilled => {
                let mut gateway = self.gateways[target].lock().await;
                gateway.assert_unharmed();
                gateway.kill9();
                sleep(lasts).await;
                gateway.restart().await;
            }
            Fault::GatewayFrozen => {
                let gateway = self.gateways[target].lock().await;
                gateway.freeze();
                sleep(lasts).await;
                gateway.thaw();
            }
            Fault::GatewaysRolled => {
                for gateway in &self.gateways {
                    roll(&mut *gateway.lock().await).await;
                }
            }
            Fault::PostgresKilled => {
                let mut postgres = self.postgres.lock().await;
                postgres.kill9();
                sleep(lasts).await;
                postgres.restart().await;
            }
            Fault::PostgresFrozen => {
                let postgres = self.postgres.lock().await;
                postgres.freeze();
                sleep(lasts).await;
                postgres.thaw();
            }
            Fault::SessionsEnded => self.database.terminate_sessions().await,
            Fault::WayDelayed => {
                self.ways[target].delay(Duration::from_millis(200), Duration::from_millis(100));
                sleep(lasts).await;
                self.ways[target].speed_up();
            }
            Fault::WayBlackHoled => {
                self.ways[target].freeze();
                sleep(lasts).await;
                self.ways[target].thaw();
            }
            Fault::WayRefused => {
                // Nobody listens there.
                self.ways[target].retarget(([127, 0, 0, 1], free_port()).into());
                sleep(lasts).await;
                let servers = self.servers.lock().await;
                self.ways[target].retarget(servers.master.addr());
            }
            Fault::TenantBroken => self.break_tenant(lasts, &tenants[target]).await,
            Fault::LogStalled => {
                let stalled = self.gateways[target].lock().await.log().stall().await;
                sleep(lasts).await;
                drop(stalled);
            }
            Fault::WayReset => self.ways[target].reset(),
            Fault::WayHalfClosed => self.ways[target].half_close(),
            Fault::ClientsReset => feel(followers, tenants, target, Whim::Reset),
            Fault::ClientsDeaf => {
                feel(followers, tenants, target, Whim::Deafness(lasts));
                sleep(lasts).await;
            }
            Fault::ClientsAbsent => {
                feel(followers, tenants, target, Whim::Absence(lasts));
                sleep(lasts).await;
            }
            Fault::ClientsLeave => {
                feel(followers, tenants, target, Whim::Leave(lasts));
                sleep(lasts).await;
            }
            Fault::FailedOver => healed = Some(self.fail_over(lasts).await),
            Fault::OutputOverrun => receipts = self.overrun(target, lasts, &tenants[target]).await,
            of_redis => self.harm_redis(of_redis, lasts, &tenants[target]).await,
        }
        Done { strike, begun, healed: healed.unwrap_or_else(Instant::now), receipts }
    }

    async fn harm_redis(&self, fault: Fault, lasts: Duration, tenant: &TenantId) {
        let mut servers = self.servers.lock().await;
        let master = &mut servers.master;
        let millis = lasts.as_millis().to_string();
        match fault {
            Fault::SubscribersKilled => again_and_again(lasts, async || _ = master.kill_subscribers().await).await,
            Fault::ConnectionsKilled => again_and_again(lasts, async || master.kill_everyone().await).await,
            Fault::ScriptsForgotten => {
                again_and_again(lasts, async || drop(master.command(&["SCRIPT", "FLUSH"]).await)).await;
            }
            Fault::WritesPaused | Fault::CommandsPaused => {
                let which = if fault == Fault::WritesPaused { "WRITE" } else { "ALL" };
                master.command(&["CLIENT", "PAUSE", &millis, which]).await;
                sleep(lasts).await;
            }
            Fault::RedisAsleep => {
                master.command(&["DEBUG", "SLEEP", &lasts.as_secs_f32().to_string()]).await;
            }
            Fault::RedisFrozen => {
                master.freeze();
                sleep(lasts).await;
                master.thaw();
            }
            Fault::RedisEmptied => {
                master.kill9();
                sleep(lasts).await;
                master.restart_empty().await;
            }
            Fault::RedisRestarted => {
                master.kill9();
                sleep(lasts).await;
                master.restart().await;
            }
            Fault::Flushed => drop(master.command(&["FLUSHALL"]).await),
            Fault::StateDeleted => drop(master.command(&["DEL", &self.key(tenant, "state")]).await),
            Fault::LogDeleted => drop(master.command(&["DEL", &self.key(tenant, "log")]).await),
            other => unreachable!("{other:?} is no fault of one Redis server"),
        }
    }

    /// One tenant's log is of another type, and its outbox has rows that were written past every check.
    async fn break_tenant(&self, lasts: Duration, tenant: &TenantId) {
        let bad = |id: &str, kind: &str, data: &str| {
            format!(
                "insert into dashboard.outbox (tenant_id, event_id, type, data, happened_at)
                 values ('{tenant}', 'broken-{id}', '{kind}', '{data}', now());"
            )
        };
        let later = bad("later", "of_a_later_version", "{}");
        let empty = bad("empty", "payment_received", "{}");
        self.database.run(&[later, empty].concat()).await;
        let log = self.key(tenant, "log");
        let master = async |words: &[&str]| drop(self.servers.lock().await.master.command(words).await);
        master(&["DEL", &log]).await;
        master(&["SET", &log, "no stream"]).await;
        sleep(lasts).await;
        master(&["DEL", &log]).await;
        self.database.run("delete from dashboard.outbox where event_id like 'broken-%'").await;
    }

    /// The replica, which has missed the last of what the master said, takes over from it; returns when it did.
    async fn fail_over(&self, lag: Duration) -> Instant {
        let mut servers = self.servers.lock().await;
        let Servers { master, replica, replication } = &mut *servers;
        replication.freeze();
        sleep(lag).await;
        master.kill9();
        replica.promote().await;
        for way in self.ways.iter().chain([&self.billing]) {
            way.retarget(replica.addr());
        }
        let healed = Instant::now();
        std::mem::swap(master, replica);
        replication.thaw();
        replication.retarget(master.addr());
        replica.restart_empty().await;
        replica.follow(replication.addr()).await;
        healed
    }

    /// A gateway reads nothing until Redis has more for it than it may keep.
    async fn overrun(&self, target: usize, lasts: Duration, tenant: &TenantId) -> Vec<Receipt> {
        let servers = self.servers.lock().await;
        let set =
            async |limit| drop(servers.master.command(&["CONFIG", "SET", "client-output-buffer-limit", limit]).await);
        set(SMALL_BUFFER).await;
        self.ways[target].freeze();
        let unlimited = self.publisher(1000).await;
        let mut receipts = Vec::new();
        for _ in 0..OVERRUN {
            receipts.push(publish(&unlimited, tenant, &bulky()).await);
        }
        unlimited.close().await;
        sleep(lasts).await;
        self.ways[target].thaw();
        set(USUAL_BUFFER).await;
        receipts
    }

    /// Where the tenant's counter stands, as Redis has it.
    pub async fn head(&self, tenant: &TenantId) -> Option<Cursor> {
        let servers = self.servers.lock().await;
        let reply = servers.master.command(&["HMGET", &self.key(tenant, "state"), "epoch", "seq"]).await;
        match reply.texts()[..] {
            [epoch, seq] => Some(Cursor { epoch: epoch.to_owned(), seq: seq.parse().unwrap() }),
            _ => None,
        }
    }

    /// Waits until the relay has published every row.
    pub async fn outbox_is_empty(&self, limit: Duration) {
        eventually("every row is relayed", limit, async || {
            let waiting =
                self.database.value::<i64>("select count(*) from dashboard.outbox where relayed_at is null").await;
            (waiting == 0).then_some(())
        })
        .await;
        let otherwise = "select count(*) from dashboard.outbox where fate <> 'published'";
        assert_eq!(self.database.value::<i64>(otherwise).await, 0, "rows were condensed or refused");
    }

    /// No gateway has died or written what it must not.
    pub async fn assert_unharmed(&self) {
        for gateway in &self.gateways {
            gateway.lock().await.assert_unharmed();
        }
    }

    /// What the gateways hold, and both servers of Redis for them.
    pub async fn holdings(&self) -> Holdings {
        let (gateways, servers) = self.everybody().await;
        Holdings::of(&gateways.iter().map(|gateway| &**gateway).collect::<Vec<_>>(), servers).await
    }

    /// Waits until it is no more than that.
    pub async fn is_back_to(&self, before: &Holdings) {
        let (gateways, _) = self.everybody().await;
        before.are_back_at(&gateways.iter().map(|gateway| &**gateway).collect::<Vec<_>>(), SNAPSHOTS).await;
    }

    async fn everybody(&self) -> (Vec<MutexGuard<'_, Gateway>>, [SocketAddr; 2]) {
        let servers = self.servers.lock().await;
        let gateways = join_all(self.gateways.iter().map(Mutex::lock)).await;
        (gateways, [servers.master.addr(), servers.replica.addr()])
    }

    fn key(&self, tenant: &TenantId, what: &str) -> String {
        format!("{}:{{{tenant}}}:{what}", self.prefix)
    }
}

/// As an operator restarts one: it says goodbye, and listens again before the next one goes.
async fn roll(gateway: &mut Gateway) {
    gateway.terminate();
    let (status, _) = gateway.exit(Duration::from_secs(10)).await;
    assert!(status.success(), "a gateway told to stop ended with {status}: {}", gateway.log().text());
    gateway.restart().await;
}

/// All clients of every third tenant, so that its rooms may be empty for a while.
fn feel(followers: &[Follower], tenants: &[TenantId], group: usize, whim: Whim) {
    let group: Vec<&TenantId> = tenants.iter().skip(group).step_by(GATEWAYS).collect();
    followers.iter().filter(|follower| group.contains(&&follower.tenant)).for_each(|follower| follower.feel(whim));
}

async fn again_and_again(time: Duration, mut strike: impl AsyncFnMut()) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        strike().await;
        sleep(Duration::from_millis(300)).await;
    }
}
