//! The publisher: it runs one script for each event, and answers in time whatever Redis does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Semaphore, TryAcquireError},
    time::{sleep, timeout},
};

use crate::{
    config::PublisherConfig,
    error::{ConnectError, PublishError},
    event::{DashboardEvent, EventData, EventId},
    metrics::PublisherMetrics,
    names::Names,
    outcome::{Outcome, Relayed, Term},
    payload::{ArrearsAlert, InvoiceStatusChanged, MetricsUpdated, PaymentReceived},
    redis::{Call, Failure, Redis},
    script::{self, Urgency},
    tenant::TenantId,
    topology::{RedisUrl, Servers, is_elsewhere},
};

/// An attempt without an answer for this time is followed by another one, over another connection. The first answer counts.
const ATTEMPT: Duration = Duration::from_millis(100);
/// The time between two searches of a call for a connection: one that is back after the first attempt was lost, or one to the
/// server that has the tenant now.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// `connect` waits for Redis for this time; afterwards the connecting goes on in the background.
const FIRST_CONNECTION: Duration = Duration::from_secs(1);

/// Publishes events to the dashboards of tenants.
///
/// Cheap to clone. One is enough for a process: any number of tasks share its few connections. Every call ends within the
/// configured timeout (250 ms).
#[derive(Clone)]
pub struct Publisher {
    inner: Arc<Inner>,
}

struct Inner {
    redis: Redis,
    names: Names,
    slots: Semaphore,
    config: PublisherConfig,
    metrics: PublisherMetrics,
    /// The arguments that no event changes.
    limits: Limits,
}

struct Limits {
    capacity: Bytes,
    log_length: Bytes,
    log_millis: Bytes,
    state_millis: Bytes,
}

impl Publisher {
    /// Connects to Redis. When Redis can't be reached within a second, the publisher is returned all the same, and goes on
    /// connecting in the background.
    ///
    /// # Errors
    /// [`ConnectError`], when the configuration can't be used.
    pub async fn connect(config: PublisherConfig) -> Result<Self, ConnectError> {
        let servers = Servers::follow(RedisUrl::parse(&config.redis_url)?);
        Self::connect_on(servers, config).await
    }

    /// The same for a process that follows the servers already.
    #[doc(hidden)]
    pub async fn connect_on(servers: Servers, config: PublisherConfig) -> Result<Self, ConnectError> {
        config.validate()?;
        let names = Names::new(&config.prefix)?;
        // Room for every call's attempts: a queue that grows beyond it waits for a connection that is dead.
        let redis = Redis::open(servers, config.connections, config.max_in_flight * 4);
        redis.ready(FIRST_CONNECTION).await;
        let limits = Limits {
            capacity: config.events_per_second.to_string().into(),
            log_length: config.recovery_events.to_string().into(),
            log_millis: config.recovery.as_millis().to_string().into(),
            state_millis: script::STATE_MILLIS.to_string().into(),
        };
        let slots = Semaphore::new(config.max_in_flight);
        let metrics = PublisherMetrics::register();
        Ok(Self { inner: Arc::new(Inner { redis, names, slots, config, metrics, limits }) })
    }

    /// Publishes an event. After [`PublishError::Unknown`], call it again with the same event.
    ///
    /// # Errors
    /// [`PublishError`] says whether the event was published, and what to do.
    pub async fn broadcast_to_tenant(
        &self,
        tenant: &TenantId,
        event: &DashboardEvent,
    ) -> Result<Outcome, PublishError> {
        self.broadcast_with(tenant, event, Urgency::Usual).await
    }

    /// The same for figures that may have waited for too long.
    #[doc(hidden)]
    pub async fn broadcast_with(
        &self,
        tenant: &TenantId,
        event: &DashboardEvent,
        urgency: Urgency,
    ) -> Result<Outcome, PublishError> {
        match self.publish(tenant, event, None, urgency).await? {
            Relayed::Outcome(outcome) => Ok(outcome),
            Relayed::Superseded { .. } => Err(not_ours()),
        }
    }

    /// Publishes an event for the outbox: as [`broadcast_to_tenant`](Self::broadcast_to_tenant), but not for a leader whose
    /// term was followed by a later one.
    #[doc(hidden)]
    pub async fn relay(&self, tenant: &TenantId, event: &DashboardEvent, term: Term) -> Result<Relayed, PublishError> {
        self.publish(tenant, event, Some(term), Urgency::Usual).await
    }

    /// When Redis was last found on another server than before: events of the seconds before may be lost, although they were
    /// acknowledged. `None` when it never moved.
    #[doc(hidden)]
    pub fn moved(&self) -> Option<tokio::time::Instant> {
        self.inner.redis.moved()
    }

    async fn publish(
        &self,
        tenant: &TenantId,
        event: &DashboardEvent,
        term: Option<Term>,
        urgency: Urgency,
    ) -> Result<Relayed, PublishError> {
        let started = Instant::now();
        let result = self.inner.publish(tenant, event, term, urgency).await;
        self.inner.metrics.publish_ended(&result, started.elapsed());
        result
    }

    /// Shows the tenant's dashboards a payment.
    ///
    /// # Errors
    /// As [`broadcast_to_tenant`](Self::broadcast_to_tenant).
    pub async fn send_payment_received(
        &self,
        tenant: &TenantId,
        data: PaymentReceived,
    ) -> Result<Outcome, PublishError> {
        self.send(tenant, data).await
    }

    /// Shows the tenant's dashboards that an invoice has another status.
    ///
    /// # Errors
    /// As [`broadcast_to_tenant`](Self::broadcast_to_tenant).
    pub async fn send_invoice_status_change(
        &self,
        tenant: &TenantId,
        data: InvoiceStatusChanged,
    ) -> Result<Outcome, PublishError> {
        self.send(tenant, data).await
    }

    /// Shows the tenant's dashboards that a parent is in arrears.
    ///
    /// # Errors
    /// As [`broadcast_to_tenant`](Self::broadcast_to_tenant).
    pub async fn send_arrears_alert(&self, tenant: &TenantId, data: ArrearsAlert) -> Result<Outcome, PublishError> {
        self.send(tenant, data).await
    }

    /// Shows the tenant's dashboards new figures. They are refused while fewer than 4 of the 10 events of a second are left, since
    /// figures replace each other, and must leave places for payments.
    ///
    /// # Errors
    /// As [`broadcast_to_tenant`](Self::broadcast_to_tenant).
    pub async fn send_metrics_updated(&self, tenant: &TenantId, data: MetricsUpdated) -> Result<Outcome, PublishError> {
        self.send(tenant, data).await
    }

    /// Waits for the calls in flight, then closes the connections. From then on calls on other clones fail as `Unavailable`.
    pub async fn close(self) {
        let all = u32::try_from(self.inner.config.max_in_flight).expect("validated to be far smaller");
        // Every call ends within the timeout, so that this wait does too.
        let _ = timeout(self.inner.config.timeout, self.inner.slots.acquire_many(all)).await;
        self.inner.slots.close();
        self.inner.redis.close().await;
    }

    async fn send(&self, tenant: &TenantId, data: impl Into<EventData>) -> Result<Outcome, PublishError> {
        self.broadcast_to_tenant(tenant, &DashboardEvent::new(data)).await
    }
}

impl Inner {
    async fn publish(
        &self,
        tenant: &TenantId,
        event: &DashboardEvent,
        term: Option<Term>,
        urgency: Urgency,
    ) -> Result<Relayed, PublishError> {
        let deadline = Instant::now() + self.config.timeout;
        let call = self.call(tenant, event, term, urgency)?;
        let _slot = self.slots.try_acquire().map_err(|error| match error {
            TryAcquireError::NoPermits => PublishError::Overloaded,
            TryAcquireError::Closed => PublishError::Unavailable,
        })?;

        // Once an attempt was perhaps sent, only an answer of Redis says whether the event was published.
        let mut sent = false;
        // An answer by which this attempt changed nothing. Another attempt that is under way still may.
        let mut unchanged = None;
        let mut attempts = FuturesUnordered::new();
        loop {
            match unchanged {
                Some(_) if sent => return Err(given_up(true, &event.id)),
                Some(answer) if attempts.is_empty() => return answer,
                _ => {}
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            let may_try = unchanged.is_none() && !rest.is_zero() && attempts.len() < self.config.connections;
            let patience = match may_try.then(|| self.redis.pick(&call.keys[0])).flatten() {
                Some(connection) => {
                    let call = &call;
                    attempts.push(async move { connection.run(call, rest).await });
                    ATTEMPT
                }
                // The attempts under way end with the deadline.
                None if !attempts.is_empty() => LOOK_AGAIN,
                None if rest.is_zero() => return Err(given_up(sent, &event.id)),
                None if sent => {
                    sleep(rest.min(LOOK_AGAIN)).await;
                    continue;
                }
                None => return Err(PublishError::Unavailable),
            };
            let Ok(Some(answer)) = timeout(patience, attempts.next()).await else { continue };
            match answer {
                Ok(reply) => match outcome(&reply) {
                    done @ Ok(Relayed::Outcome(Outcome::Published { .. } | Outcome::Duplicate { .. })) => return done,
                    answer => unchanged = Some(answer),
                },
                Err(Failure::NotSent) => {}
                Err(Failure::Lost | Failure::Silent) => sent = true,
                Err(Failure::Refused(why)) if is_elsewhere(&why) => {
                    self.redis.doubt();
                    sleep(rest.min(LOOK_AGAIN)).await;
                }
                Err(Failure::Refused(why)) => unchanged = Some(Err(PublishError::Refused(why))),
            }
        }
    }

    fn call(
        &self,
        tenant: &TenantId,
        event: &DashboardEvent,
        term: Option<Term>,
        urgency: Urgency,
    ) -> Result<Call, PublishError> {
        let body = event.checked_body()?;
        let event_type = event.event_type();
        let reserve = script::reserve(&event.data, urgency, self.config.events_per_second);
        Ok(Call {
            script: &script::PUBLISH,
            keys: vec![
                self.names.state(tenant).into(),
                self.names.log(tenant).into(),
                self.names.once(tenant, &event.id).into(),
                self.names.events(tenant).into(),
            ],
            args: vec![
                Bytes::copy_from_slice(event.id.as_str().as_bytes()),
                Bytes::from_static(event_type.as_str().as_bytes()),
                body.into(),
                self.limits.capacity.clone(),
                reserve.to_string().into(),
                self.limits.log_length.clone(),
                self.limits.log_millis.clone(),
                self.limits.state_millis.clone(),
                script::once_millis(&event.data, term.is_some()).to_string().into(),
                term.map_or_else(String::new, |term| term.to_string()).into(),
            ],
        })
    }
}

fn given_up(sent: bool, id: &EventId) -> PublishError {
    if sent { PublishError::Unknown { id: id.clone() } } else { PublishError::Unavailable }
}

/// The result that publish.lua documents.
fn outcome(reply: &[i64]) -> Result<Relayed, PublishError> {
    Ok(Relayed::Outcome(match *reply {
        [0, seq, receivers] => Outcome::Published { seq: seq.unsigned_abs(), receivers: receivers.unsigned_abs() },
        [1, micros] => Outcome::Throttled { retry_after: Duration::from_micros(micros.unsigned_abs()) },
        [2, seq] => Outcome::Duplicate { seq: seq.unsigned_abs() },
        [3, term] => return Ok(Relayed::Superseded { term: Term(term) }),
        _ => return Err(not_ours()),
    }))
}

fn not_ours() -> PublishError {
    PublishError::Refused("the script's answer is not ours".to_owned())
}
