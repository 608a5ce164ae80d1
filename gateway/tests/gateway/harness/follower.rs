//! A dashboard as the browser runs it: it comes back by itself, on any gateway, and resumes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use publisher::TenantId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::dashboard::{Dashboard, Incoming};
use super::ledger::{Entry, Ledger};
use super::oracle::{Oracle, Receipt};
use super::token::Token;
use super::wait::{PATIENCE, eventually};

pub struct Follower {
    pub tenant: TenantId,
    ledger: Arc<Mutex<Ledger>>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Follower {
    /// Follows `tenant` on one of the gateways, the first one first; returns once joined.
    pub async fn start(gateways: &[SocketAddr], tenant: &TenantId) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let stop = CancellationToken::new();
        let run = follow(gateways.to_vec(), tenant.clone(), Arc::clone(&ledger), stop.clone());
        let follower = Self { tenant: tenant.clone(), ledger, stop, task: AbortOnDropHandle::new(tokio::spawn(run)) };
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

    /// What it has seen until now.
    pub fn ledger(&self) -> Ledger {
        self.ledger.lock().unwrap().clone()
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

async fn follow(gateways: Vec<SocketAddr>, tenant: TenantId, shared: Arc<Mutex<Ledger>>, stop: CancellationToken) {
    let token = Token::of(tenant.as_str()).sign();
    for addr in gateways.iter().cycle() {
        let ledger = shared.lock().unwrap().clone();
        let resume = ledger.cursor();
        if let Ok((dashboard, _)) = Dashboard::connect(*addr, &[]).await {
            let mut dashboard = dashboard.continuing(ledger);
            dashboard.send_join(tenant.as_str(), Some(&token), resume.as_ref()).await;
            loop {
                let Some(incoming) = stop.run_until_cancelled(dashboard.next_unbounded()).await else {
                    dashboard.close().await;
                    return;
                };
                let newest = dashboard.ledger().entries.last().unwrap().clone();
                shared.lock().unwrap().entries.push(newest);
                if matches!(incoming, Incoming::Closed(_)) {
                    break;
                }
            }
        }
        let pause = Duration::from_millis(rand::random_range(20..150));
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
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
            let fresh_since = |(at, entry): &(_, Entry)| {
                *at >= last.at && matches!(entry, Entry::Resync(_) | Entry::Joined { recovered: false, .. })
            };
            let replaced = || follower.ledger.lock().unwrap().entries.iter().rev().any(fresh_since);
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
