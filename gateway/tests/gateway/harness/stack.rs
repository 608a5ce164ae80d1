//! Redis, gateways and a publisher, put together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use publisher::{DashboardEvent, Publisher, PublisherConfig, TenantId};

use super::dashboard::Dashboard;
use super::events::{payment, tenant};
use super::gateway::Gateway;
use super::oracle::Receipt;
use super::ports::free_port;
use super::postgres::Database;
use super::redis::RedisServer;
use super::refusals::Refusals;
use super::token::{SECRET, Token};
use super::{PUBLISH_API_KEY, traffic};

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Setup {
    gateways: usize,
    memory: bool,
    keeps_ports: bool,
    redis_url: Option<String>,
    environment: Vec<(String, String)>,
}

impl Setup {
    /// One gateway on one Redis, with intervals short enough for tests.
    pub fn new() -> Self {
        let setup = Self { gateways: 1, memory: false, keeps_ports: false, redis_url: None, environment: Vec::new() };
        setup
            .env("LISTEN", "127.0.0.1:0")
            .env("INTERNAL_LISTEN", "127.0.0.1:0")
            .env("LOG_FORMAT", "json")
            .env("JWT_SECRET", SECRET)
            // Nearly every token of the tests is the bursar's.
            .env("MAX_CONNECTIONS_PER_USER", "10000")
            .env("PUBLISH_API_KEY", PUBLISH_API_KEY)
            .env("HEARTBEAT_SECONDS", "5")
            .env("UNSUBSCRIBE_LINGER_SECONDS", "0")
            .env("DRAIN_SECONDS", "1")
    }

    pub fn gateways(mut self, count: usize) -> Self {
        self.gateways = count;
        self
    }

    /// Each gateway on ports of its own that nobody takes while it is away, so that it finds them again.
    pub fn keeping_ports(mut self) -> Self {
        self.keeps_ports = true;
        self
    }

    /// The in-memory engine.
    pub fn memory(mut self) -> Self {
        self.memory = true;
        self
    }

    /// The gateways reach Redis through this address.
    pub fn through(self, proxy: SocketAddr) -> Self {
        self.redis_url(&format!("redis://{proxy}"))
    }

    /// The gateways' REDIS_URL, where it is not the plain address of their Redis. Without a Redis of the stack's own it is
    /// the publishers' as well.
    pub fn redis_url(mut self, url: &str) -> Self {
        self.redis_url = Some(url.to_owned());
        self
    }

    /// With the outbox and the snapshots of this database.
    pub fn database(self, database: &Database) -> Self {
        self.env("DATABASE_URL", &database.url)
    }

    pub fn env(self, name: &str, value: &str) -> Self {
        let mut setup = self.without(name);
        setup.environment.push((name.to_owned(), value.to_owned()));
        setup
    }

    pub fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    /// The environment of a gateway that is not part of a stack.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// Of its own, with a Redis of its own: for tests that break things.
    pub async fn start(self) -> Stack {
        let redis = match self.memory {
            true => None,
            false => Some(RedisServer::start().await),
        };
        self.start_on(redis).await
    }

    /// On a Redis that the test has prepared.
    pub async fn start_on(self, redis: Option<RedisServer>) -> Stack {
        let prefix = format!("test-{}", tenant());
        let mut environment = self.environment.clone();
        if let Some(url) = self.redis_url.clone().or_else(|| redis.as_ref().map(RedisServer::url)) {
            environment.push(("REDIS_URL".to_owned(), url));
            environment.push(("REDIS_PREFIX".to_owned(), prefix.clone()));
        }
        let start = async || {
            let mut environment = environment.clone();
            if self.keeps_ports {
                for listen in ["LISTEN", "INTERNAL_LISTEN"] {
                    environment.push((listen.to_owned(), format!("127.0.0.1:{}", free_port())));
                }
            }
            Gateway::start(&environment).await
        };
        let gateways = futures::future::join_all((0..self.gateways).map(|_| start())).await;
        let refused = Refusals::default();
        Stack { setup: self, leased: false, prefix, redis, gateways, environment, publisher: None, refused }
    }

    /// Used by nobody else until [`Stack::finish`] gives it back, so that counts are exact; taken over from
    /// an earlier test when one has left its own in good order, since starting processes is what takes time.
    pub async fn lease(self) -> Stack {
        let idle = IDLE.lock().unwrap().get_mut(&self).and_then(Vec::pop);
        match idle {
            Some(stack) => Stack { refused: stack.refusals().await, ..stack },
            None => Stack { leased: true, ..self.start().await },
        }
    }
}

static IDLE: LazyLock<Mutex<HashMap<Setup, Vec<Stack>>>> = LazyLock::new(Mutex::default);

pub struct Stack {
    setup: Setup,
    leased: bool,
    pub prefix: String,
    pub redis: Option<RedisServer>,
    pub gateways: Vec<Gateway>,
    environment: Vec<(String, String)>,
    /// Lives in the runtime of the test that first asked for it.
    publisher: Option<Publisher>,
    /// By earlier tests.
    refused: Refusals,
}

impl Stack {
    pub fn redis(&self) -> &RedisServer {
        self.redis.as_ref().expect("this stack has a Redis")
    }

    pub fn redis_mut(&mut self) -> &mut RedisServer {
        self.redis.as_mut().expect("this stack has a Redis")
    }

    /// The first gateway, which most tests need no other than.
    pub fn gateway(&self) -> &Gateway {
        &self.gateways[0]
    }

    /// The first gateway's public address.
    pub fn addr(&self) -> SocketAddr {
        self.gateways[0].public
    }

    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.gateways.iter().map(|gateway| gateway.public).collect()
    }

    /// One more gateway on the same Redis.
    pub async fn add_gateway(&mut self) {
        self.gateways.push(Gateway::start(&self.environment).await);
    }

    /// One more gateway on the same Redis, which writes its log to these outputs.
    pub async fn add_gateway_writing_to(&mut self, stdout: Stdio, stderr: Stdio) {
        let mut environment = self.environment.clone();
        for listen in ["LISTEN", "INTERNAL_LISTEN"] {
            environment.push((listen.to_owned(), format!("127.0.0.1:{}", free_port())));
        }
        self.gateways.push(Gateway::start_writing_to(&environment, stdout, stderr).await);
    }

    pub fn publisher_config(&self) -> PublisherConfig {
        let url = self.redis.as_ref().map(RedisServer::url).or_else(|| self.setup.redis_url.clone());
        let mut config = PublisherConfig::new(url.expect("this stack has a Redis"));
        config.prefix = self.prefix.clone();
        config
    }

    pub async fn publisher(&mut self) -> Publisher {
        if self.publisher.is_none() {
            self.publisher = Some(Publisher::connect(self.publisher_config()).await.unwrap());
        }
        self.publisher.clone().expect("connected just now")
    }

    pub async fn publish(&mut self, tenant: &TenantId, event: &DashboardEvent) -> Receipt {
        traffic::publish(&self.publisher().await, tenant, event).await
    }

    /// A client of `tenant`, joined on the first gateway.
    pub async fn dashboard(&self, tenant: &TenantId) -> Dashboard {
        Dashboard::joined(self.addr(), tenant.as_str(), &Token::of(tenant.as_str()).sign()).await
    }

    pub fn channel(&self, tenant: &TenantId) -> String {
        format!("{}:{{{tenant}}}:events", self.prefix)
    }

    pub fn state_key(&self, tenant: &TenantId) -> String {
        format!("{}:{{{tenant}}}:state", self.prefix)
    }

    pub fn log_key(&self, tenant: &TenantId) -> String {
        format!("{}:{{{tenant}}}:log", self.prefix)
    }

    /// Waits until exactly the channels of these tenants have subscribers.
    pub async fn subscriptions_become(&self, tenants: &[&TenantId]) {
        let mut wanted: Vec<String> = tenants.iter().map(|tenant| self.channel(tenant)).collect();
        wanted.sort();
        super::wait::eventually(&format!("subscribed: {wanted:?}"), Duration::from_secs(10), async || {
            (self.redis().subscribed_channels(&self.prefix).await == wanted).then_some(())
        })
        .await;
    }

    pub(super) async fn refusals(&self) -> Refusals {
        Refusals::of(&futures::future::join_all(self.gateways.iter().map(Gateway::scrape)).await)
    }

    /// Exactly these refusals were counted in this test, each at least once: `disconnects framing` for
    /// `gateway_disconnects_total{reason="framing"}`. Returns how often.
    pub async fn refused(&self, expected: &[&str]) -> BTreeMap<String, u64> {
        let expected: BTreeSet<_> = expected.iter().map(ToString::to_string).collect();
        let begun = Instant::now();
        loop {
            let counted = self.refusals().await.since(&self.refused);
            if counted.keys().eq(&expected) {
                return counted;
            }
            // A client may learn of its end a moment before that is counted.
            assert!(begun.elapsed() < Duration::from_secs(5), "{counted:?} were counted, not {expected:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The gateways are alive, empty, and wrote nothing they shouldn't; a leased stack is free for the next test.
    pub async fn finish(mut self) {
        for gateway in &mut self.gateways {
            gateway.metric_becomes("gateway_connections", &[], 0.0).await;
            gateway.metric_becomes("gateway_unauthenticated", &[], 0.0).await;
            gateway.metric_becomes("gateway_tenants", &[], 0.0).await;
            gateway.assert_unharmed();
        }
        if let Some(publisher) = self.publisher.take() {
            publisher.close().await;
        }
        if self.leased {
            IDLE.lock().unwrap().entry(self.setup.clone()).or_default().push(self);
        }
    }
}

/// Two honest dashboards, of the tenant under attack and of another: nothing that happens may disturb them.
pub struct Bystanders {
    pub victim: TenantId,
    same: Dashboard,
    other_tenant: TenantId,
    other: Dashboard,
}

impl Bystanders {
    pub async fn join(stack: &Stack) -> Self {
        let (victim, other_tenant) = (tenant(), tenant());
        let (same, other) = (stack.dashboard(&victim).await, stack.dashboard(&other_tenant).await);
        Self { victim, same, other_tenant, other }
    }

    /// A good token for the tenant under attack.
    pub fn token(&self) -> String {
        Token::of(self.victim.as_str()).sign()
    }

    /// Both get the next event, and nobody else is left connected.
    pub async fn unharmed(&mut self, stack: &mut Stack) {
        self.receive(stack).await;
        stack.gateway().metric_becomes("gateway_connections", &[], 2.0).await;
        stack.gateway().metric_becomes("gateway_unauthenticated", &[], 0.0).await;
        stack.gateways[0].assert_unharmed();
    }

    /// Both get the next event.
    pub async fn receive(&mut self, stack: &mut Stack) {
        for (tenant, dashboard) in [(&self.victim, &mut self.same), (&self.other_tenant, &mut self.other)] {
            let receipt = stack.publish(tenant, &payment()).await;
            let event = dashboard.next_event().await;
            assert_eq!((event.seq, event.id), (receipt.seq, Some(receipt.id)));
        }
    }

    pub async fn leave(self) {
        self.same.close().await;
        self.other.close().await;
    }
}

/// The shape of every hostile row: bystanders before, the attack, bystanders unharmed, what was refused counted as `refused` and
/// nothing else (see [`Stack::refused`]), nothing left behind.
pub async fn hostile(setup: Setup, refused: &[&str], attack: impl AsyncFnOnce(&mut Stack, &Bystanders)) {
    let mut stack = setup.lease().await;
    let mut bystanders = Bystanders::join(&stack).await;
    attack(&mut stack, &bystanders).await;
    bystanders.unharmed(&mut stack).await;
    stack.refused(refused).await;
    bystanders.leave().await;
    stack.finish().await;
}
