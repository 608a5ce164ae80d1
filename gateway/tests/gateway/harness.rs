//! What the tests are written with: real processes, real sockets, and the means to break them.

pub mod admission;
pub mod balancer;
pub mod billing_api;
pub mod books;
pub mod calm;
pub mod dashboard;
pub mod failover;
pub mod follower;
pub mod gateway;
pub mod holdings;
pub mod http;
pub mod ledger;
pub mod metrics;
pub mod oracle;
pub mod pooler;
pub mod prometheus;
pub mod raw;
pub mod refusals;
pub mod stack;
pub mod traffic;

pub use balancer::Balancer;
pub use calm::Calm;
pub use dashboard::{Bring, Dashboard, Incoming};
pub use follower::Follower;
pub use gateway::Gateway;
pub use holdings::Holdings;
pub use oracle::Oracle;
pub use stack::{Bystanders, Setup, Stack, hostile};
pub use traffic::Traffic;

pub use testkit::events::{payment, tenant, tenants};
pub use testkit::postgres::{Database, PostgresServer};
pub use testkit::redis_cluster::RedisCluster;
pub use testkit::sentinel::Sentinels;
pub use testkit::token::Token;
pub use testkit::wait::{eventually, within};
pub use testkit::{events, ports, postgres, process, proxy, redis, resp, sentinel, tls, token, wait};

/// The key of every publish API in these tests.
pub const PUBLISH_API_KEY: &str = "the-publish-key-of-these-tests-32-bytes";
