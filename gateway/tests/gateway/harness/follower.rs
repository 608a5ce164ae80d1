//! A dashboard as the browser runs it: it comes back by itself, on any gateway, and resumes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use publisher::TenantId;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::dashboard::{Dashboard, Incoming};
use super::ledger::{Entry, Ledger, Standing};
use super::oracle::{Oracle, Receipt};
use super::token::Token;
use super::wait::{PATIENCE, eventually};

pub struct Follower {
    pub tenant: TenantId,
    ledger: Arc<Mutex<Ledger>>,
    whims: mpsc::UnboundedSender<Whim>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// What a browser may do at any moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whim {
    /// Its network dies; it comes back.
    Reset,
    /// Its page is too busy to read for so long.
    Deafness(Duration),
    /// Its lid is closed for so long.
    Absence(Duration),
    /// It leaves the room and joins anew after so long, on the same socket.
    Leave(Duration),
}

impl Follower {
    /// Follows `tenant` on one of the gateways, the first one first; returns once joined.
    pub async fn start(gateways: &[SocketAddr], tenant: &TenantId) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let stop = CancellationToken::new();
        let (whims, moods) = mpsc::unbounded_channel();
        let browser = Browser {
            tenant: tenant.clone(),
            token: Token::of(tenant.as_str()).sign(),
            shared: Arc::clone(&ledger),
            whims: moods,
            cookie: None,
            socket: None,
            failures: 0,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(browser.follow(gateways.to_vec(), stop.clone())));
        let follower = Self { tenant: tenant.clone(), ledger, whims, stop, task };
        eventually("a follower has joined", PATIENCE, async || follower.ledger().cursor()).await;
        follower
    }

    /// One for each tenant, spread over the gateways.
    pub async fn start_all(gateways: &[SocketAddr], tenants: &[TenantId]) -> Vec<Self> {
        let starts = tenants.iter().enumerate().map(|(index, tenant)| {
            let mut order = gateways.to_vec();
            order.rotate_left(index % gateways.len());
            async move { Self::start(&order, tenant).await }
        });
        futures::future::join_all(starts).await
    }

    /// What it has seen until now, and nobody has taken yet.
    pub fn ledger(&self) -> Ledger {
        self.ledger.lock().unwrap().clone()
    }

    /// The same, and its memory is free again.
    pub fn take_ledger(&self) -> Ledger {
        self.ledger.lock().unwrap().take()
    }

    pub fn standing(&self) -> Standing {
        self.ledger.lock().unwrap().standing()
    }

    /// As soon as it is joined.
    pub fn feel(&self, whim: Whim) {
        let _ = self.whims.send(whim);
    }

    /// Whether it came into its room after this moment.
    pub fn joined_since(&self, moment: std::time::Instant) -> bool {
        let joined = |(at, entry): &(_, Entry)| *at > moment && matches!(entry, Entry::Joined { .. });
        self.ledger.lock().unwrap().entries.iter().rev().any(joined)
    }

    /// Whether it is in its room, as far as it knows.
    pub fn is_joined(&self) -> bool {
        let entries = &self.ledger.lock().unwrap().entries;
        let last = entries.iter().rev().find(|(_, entry)| matches!(entry, Entry::Joined { .. } | Entry::Closed(_)));
        matches!(last, Some((_, Entry::Joined { .. })))
    }

    fn has(&self, id: &str) -> bool {
        self.ledger.lock().unwrap().has(id)
    }

    /// Closes its socket; everything it saw.
    pub async fn stop(self) -> Ledger {
        self.stop.cancel();
        let _ = self.task.await;
        std::mem::take(&mut self.ledger.lock().unwrap())
    }
}

/// From dialling to being joined.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(15);
/// A connection that lasted so long was a good one: the next failure is a first one again.
const STABLE: Duration = Duration::from_secs(5);
/// A link with no heartbeat for so many intervals is dead.
const SILENT_INTERVALS: f64 = 1.5;

/// Full jitter: what was cut off together does not return together.
fn backoff(failures: u32) -> Duration {
    const BASE: Duration = Duration::from_secs(1);
    const CAP: Duration = Duration::from_secs(30);
    BASE.saturating_mul(2_u32.saturating_pow(failures)).min(CAP).mul_f64(rand::random())
}

/// When to come back, and from where on, is what `gateway/web/src/core/socket.ts` says.
struct Browser {
    tenant: TenantId,
    token: String,
    shared: Arc<Mutex<Ledger>>,
    whims: mpsc::UnboundedReceiver<Whim>,
    /// The balancer's, which leads back to the same gateway.
    cookie: Option<String>,
    socket: Option<Dashboard>,
    failures: u32,
}

impl Browser {
    async fn follow(mut self, gateways: Vec<SocketAddr>, stop: CancellationToken) {
        for addr in gateways.iter().cycle() {
            let pause = stop.run_until_cancelled(self.connection(*addr)).await;
            let socket = self.socket.take();
            let Some(pause) = pause else {
                if let Some(dashboard) = socket {
                    dashboard.close().await;
                }
                return;
            };
            drop(socket);
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// One connection, from its first packet to its end; how long to stay away then.
    async fn connection(&mut self, addr: SocketAddr) -> Duration {
        let begun = Instant::now();
        self.shared.lock().unwrap().record(Entry::Dialled);
        let (joined, told) = match timeout_at(begun + ATTEMPT_LIMIT, self.dial(addr)).await {
            Ok(Ok(dashboard)) => {
                self.socket = Some(dashboard);
                self.life(begun + ATTEMPT_LIMIT).await
            }
            _ => (None, None),
        };
        if joined.is_some_and(|at| at.elapsed() >= STABLE) {
            self.failures = 0;
        }
        told.unwrap_or_else(|| {
            self.failures += 1;
            backoff(self.failures - 1)
        })
    }

    /// The open socket, until it ends or is silent for too long: when it joined, and when to come back if that is known.
    async fn life(&mut self, mut until: Instant) -> (Option<Instant>, Option<Duration>) {
        let resume = self.shared.lock().unwrap().cursor();
        let dashboard = self.socket.as_mut().expect("just opened");
        dashboard.send_join(self.tenant.as_str(), Some(&self.token), resume.as_ref()).await;
        let (mut joined, mut told) = (None, None);
        let (mut patience, mut outside) = (ATTEMPT_LIMIT, Duration::ZERO);
        loop {
            let incoming = tokio::select! {
                incoming = timeout_at(until, dashboard.next_unbounded()) => incoming,
                Some(whim) = self.whims.recv(), if joined.is_some() => {
                    match whim {
                        Whim::Reset => {
                            self.socket.take().expect("open").reset();
                            return (joined, None);
                        }
                        Whim::Absence(time) => return (joined, Some(time)),
                        Whim::Deafness(time) => tokio::time::sleep(time).await,
                        Whim::Leave(time) => {
                            outside = time;
                            dashboard.send_json(json!({ "event": "leave" })).await;
                        }
                    }
                    continue;
                }
            };
            self.shared.lock().unwrap().entries.extend(dashboard.take_ledger().entries);
            let Ok(Incoming::Message(message)) = incoming else { return (joined, told) };
            match message.kind.as_str() {
                "joined" => {
                    joined = Some(Instant::now());
                    let heartbeat = Duration::from_secs(message.data["heartbeatSeconds"].as_u64().unwrap());
                    patience = heartbeat.mul_f64(SILENT_INTERVALS);
                    until = Instant::now() + patience;
                }
                "heartbeat" => until = Instant::now() + patience,
                "left" => {
                    tokio::time::sleep(outside).await;
                    until = Instant::now() + ATTEMPT_LIMIT;
                    dashboard.send_join(self.tenant.as_str(), Some(&self.token), None).await;
                }
                "error" => told = message.data["retryInMs"].as_u64().map(Duration::from_millis),
                _ => {}
            }
        }
    }

    async fn dial(&mut self, addr: SocketAddr) -> Result<Dashboard, tungstenite::Error> {
        let cookie = self.cookie.clone();
        let headers: Vec<_> = cookie.iter().map(|cookie| ("cookie", cookie.as_str())).collect();
        let (dashboard, response) = Dashboard::upgrade(TcpStream::connect(addr).await?, &headers).await?;
        if let Some(set) = response.headers().get("set-cookie") {
            self.cookie = Some(set.to_str().unwrap().split(';').next().unwrap().to_owned());
        }
        Ok(dashboard)
    }
}

/// Waits until every follower has the last event published for its tenant, or started afresh after it.
pub async fn caught_up(followers: &[Follower], receipts: &[Receipt]) {
    for follower in followers {
        let Some(last) =
            receipts.iter().filter(|receipt| receipt.tenant == follower.tenant).max_by_key(|receipt| receipt.at)
        else {
            continue;
        };
        let what = format!("{} has event {} of {:?}", follower.tenant, last.id, last.seq);
        eventually(&what, PATIENCE * 2, async || {
            // As the oracle judges it: a fresh start may count the event before its publisher has heard that it was published.
            let replaced = || {
                let ledger = follower.ledger.lock().unwrap();
                let fresh = ledger.entries.iter().rev().find_map(|(at, entry)| match entry {
                    Entry::Resync(head) | Entry::Joined { at: head, recovered: false, .. } => Some((*at, head.seq)),
                    _ => None,
                });
                fresh.is_some_and(|(at, seq)| at >= last.at || last.seq.is_some_and(|published| published <= seq))
            };
            (follower.has(&last.id) || replaced()).then_some(())
        })
        .await;
    }
}

/// Ends the run and judges it: every follower's ledger against all that was published.
pub async fn judge(followers: Vec<Follower>, receipts: Vec<Receipt>) -> Vec<Ledger> {
    caught_up(&followers, &receipts).await;
    let mut oracle = Oracle::new(receipts);
    let mut ledgers = Vec::new();
    for (index, follower) in followers.into_iter().enumerate() {
        let name = format!("follower {index} of {}", follower.tenant);
        let ledger = follower.stop().await;
        oracle.judge_to_the_end(&name, &ledger);
        ledgers.push(ledger);
    }
    ledgers
}
