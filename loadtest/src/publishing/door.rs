//! The three ways to publish an event, behind one call.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use publisher::{DashboardEvent, Outcome, PublishError, Publisher, PublisherConfig, TenantId, outbox};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

/// How events are published.
#[derive(Debug, Clone)]
pub enum Via {
    /// Directly to Redis, with the publisher crate.
    Redis,
    /// Through the publish API of these gateways' internal ports, host:port, with their PUBLISH_API_KEY.
    Http { internal: Vec<String>, key: String },
    /// Through the outbox in this database, and from there by the gateways' relay.
    Outbox { database_url: String },
}

/// Where events are published.
#[derive(Debug, Clone)]
pub struct Target {
    pub via: Via,
    pub redis_url: String,
    pub redis_prefix: String,
    /// Most events a second of each tenant.
    pub limit: u32,
}

/// A connected publisher; cheap to clone.
#[derive(Clone)]
pub enum Door {
    Redis(Publisher),
    Http(Arc<Api>),
    Outbox(PgPool),
}

/// The outcome of one attempt.
pub enum Sent {
    Accepted,
    /// The tenant is at its limit for this long.
    Throttled {
        retry_after: Duration,
    },
    /// No outcome; the same event may be sent again.
    Unknown,
}

/// The publish API; each event goes to a random gateway.
pub struct Api {
    http: reqwest::Client,
    internal: Vec<String>,
    key: String,
}

impl Door {
    /// Transactions that one publisher may have open.
    const DATABASE_CONNECTIONS: u32 = 4;

    /// Connects, and checks the settings: a wrong one must fail now and not in the middle of the run.
    pub async fn open(target: &Target) -> anyhow::Result<Self> {
        match &target.via {
            Via::Redis => {
                let mut config = PublisherConfig::new(&target.redis_url);
                config.prefix.clone_from(&target.redis_prefix);
                config.events_per_second = target.limit;
                Ok(Self::Redis(Publisher::connect(config).await.context("connecting a publisher")?))
            }
            Via::Http { internal, key } => {
                let http = reqwest::Client::new();
                for internal in internal {
                    let answer = http.get(format!("http://{internal}/v1/tenants")).bearer_auth(key).send().await;
                    let status =
                        answer.with_context(|| format!("no gateway answers at --internal {internal}"))?.status();
                    if !status.is_success() {
                        bail!("{internal} answers {status}; is --publish-api-key its PUBLISH_API_KEY?");
                    }
                }
                Ok(Self::Http(Arc::new(Api { http, internal: internal.clone(), key: key.clone() })))
            }
            Via::Outbox { database_url } => {
                let address = publisher::internals::database::options(database_url).context("--database-url")?;
                let pool = PgPoolOptions::new().max_connections(Self::DATABASE_CONNECTIONS).connect_with(address).await;
                let pool = pool.context("the database does not answer; is --database-url right?")?;
                let function = "select to_regproc('dashboard.record') is not null";
                let migrated: bool = sqlx::query_scalar(function).fetch_one(&pool).await?;
                ensure!(migrated, "the database has no outbox; run gateway migrate");
                Ok(Self::Outbox(pool))
            }
        }
    }

    /// Sends one event once.
    pub async fn send(&self, tenant: &TenantId, event: &DashboardEvent) -> Sent {
        match self {
            Self::Redis(publisher) => match publisher.broadcast_to_tenant(tenant, event).await {
                Ok(Outcome::Published { .. } | Outcome::Duplicate { .. }) => Sent::Accepted,
                Ok(Outcome::Throttled { retry_after }) => Sent::Throttled { retry_after },
                Err(PublishError::Invalid(error)) => unreachable!("the payment is always valid: {error}"),
                Ok(_) | Err(_) => Sent::Unknown,
            },
            Self::Http(api) => api.post(tenant, event).await.unwrap_or(Sent::Unknown),
            Self::Outbox(pool) => {
                let Ok(mut connection) = pool.acquire().await else { return Sent::Unknown };
                match outbox::record(&mut connection, tenant, event).await {
                    Ok(()) => Sent::Accepted,
                    Err(_) => Sent::Unknown,
                }
            }
        }
    }
}

impl Api {
    async fn post(&self, tenant: &TenantId, event: &DashboardEvent) -> reqwest::Result<Sent> {
        let internal = &self.internal[rand::random_range(0..self.internal.len())];
        let url = format!("http://{internal}/v1/tenants/{}/events", tenant.as_str());
        let body = serde_json::to_string(event).expect("plain fields always serialise");
        let request = self.http.post(url).bearer_auth(&self.key).header("content-type", "application/json");
        let answer = request.body(body).send().await?;
        Ok(match answer.status().as_u16() {
            202 => Sent::Accepted,
            429 => {
                let seconds = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                Sent::Throttled { retry_after: Duration::from_secs(seconds.unwrap_or(1)) }
            }
            _ => Sent::Unknown,
        })
    }
}
