//! The three ways an event can take into the system, behind one call.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use publisher::{DashboardEvent, Outcome, PublishError, Publisher, PublisherConfig, TenantId, outbox};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::publishing::{Target, Via};

/// One way in; cheap to clone.
#[derive(Clone)]
pub enum Door {
    Redis(Publisher),
    Http(Arc<Api>),
    Outbox(PgPool),
}

/// What became of one attempt.
pub enum Sent {
    /// It will be shown.
    Accepted,
    /// The tenant's limit is used up for so long.
    Throttled { retry_after: Duration },
    /// Nobody knows: the same event may be sent again.
    Unknown,
}

/// The gateways' publish API; each event goes to another of them.
pub struct Api {
    http: reqwest::Client,
    internal: Vec<String>,
    key: String,
}

impl Door {
    /// Transactions that one publisher may have open.
    const DATABASE_CONNECTIONS: u32 = 4;

    /// Connects, and proves what a wrong setting would break only later.
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
                    let status = answer.with_context(|| format!("nobody answers at --internal {internal}"))?.status();
                    if !status.is_success() {
                        bail!("{internal} answers {status}; is --publish-api-key its PUBLISH_API_KEY?");
                    }
                }
                Ok(Self::Http(Arc::new(Api { http, internal: internal.clone(), key: key.clone() })))
            }
            Via::Outbox { database_url } => {
                let address = publisher::database::options(database_url).context("--database-url")?;
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
                Err(PublishError::Invalid(error)) => unreachable!("a payment that is always valid: {error}"),
                Err(_) => Sent::Unknown,
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
