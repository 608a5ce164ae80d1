//! Which server holds which tenant: the one server there is, the master that Sentinels name, or a node of a Cluster.
//!
//! The client library can follow Sentinels and a Cluster, and is not used for it: it drops the `sunsubscribe` by which a server says
//! that a slot has moved, it learns of a new master only when the old one ends the connection, which a frozen one never does, and one
//! node that hangs stalls what comes from all others. So every connection leads to one server and has a health of its own, and this
//! module says which servers those are. A wrong layout does no harm: a server that does not hold a tenant says so
//! ([`is_elsewhere`]), and the scripts' fence finds a master that was succeeded unnoticed, since its successor has another run id.
//!
//! Every Sentinel, or node, is asked over one connection that is kept (`source`), and the newest of their views counts
//! (`scout`): the highest `config-epoch` or `cluster_current_epoch`. So all processes follow a failover at the same moment,
//! when the first Sentinel tells of it, and a stale Sentinel misleads none of them.

mod layout;
mod scout;
mod server;
mod source;
mod url;

use std::sync::Arc;

use futures::future::join_all;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use self::{scout::Scout, source::Source, url::Place};
use crate::task::keep_running;

pub use self::{layout::Layout, server::Server, url::RedisUrl};

/// Whether a server refuses because the name is on another, or is on its way there, or because another is the master now:
/// it did nothing.
pub fn is_elsewhere(refusal: &str) -> bool {
    ["MOVED ", "ASK ", "TRYAGAIN ", "READONLY "].iter().any(|prefix| refusal.starts_with(prefix))
}

/// Asks once which servers hold tenants, and whether each of them answers.
///
/// # Errors
/// What went wrong, with the server it went wrong at.
pub async fn reach(url: &RedisUrl) -> Result<Arc<Layout>, String> {
    let layout = match &url.place {
        Place::One(server) => Layout::all_on(server.clone()),
        Place::Sentinels { .. } | Place::Cluster { .. } => {
            let views = join_all(url.seeds().iter().map(|seed| source::ask(url, seed))).await;
            let (views, errors): (Vec<_>, Vec<_>) = views.into_iter().partition(Result::is_ok);
            let best = views.into_iter().flatten().max_by_key(|view| view.rank).map(|view| view.layout);
            best.ok_or_else(|| errors.into_iter().find_map(Result::err).map_or_else(String::new, |e| e.to_string()))?
        }
    };
    let pings = layout.servers().iter().map(async |server| {
        let answered = async { Source::open(&url.target(server)).await?.ask(&["PING"]).await };
        answered.await.map(drop).map_err(|error| format!("{server}: {error}"))
    });
    join_all(pings).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(layout))
}

/// The layout as it changes. Cheap to clone; the looking ends with the last clone.
#[derive(Clone)]
pub struct Servers {
    url: Arc<RedisUrl>,
    layout: watch::Receiver<Arc<Layout>>,
    doubts: watch::Sender<()>,
    _scout: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Servers {
    /// Starts to look. The layout is empty until a source has answered, except that one server needs no looking for.
    pub fn follow(url: RedisUrl) -> Self {
        let doubts = watch::Sender::new(());
        let url = Arc::new(url);
        if let Place::One(server) = &url.place {
            let (_, layout) = watch::channel(Arc::new(Layout::all_on(server.clone())));
            return Self { url, layout, doubts, _scout: None };
        }
        let (found, layout) = watch::channel(Arc::new(Layout::nothing()));
        let (of, doubted) = (url.clone(), doubts.subscribe());
        let scout =
            keep_running("Redis topology", move || Scout::new(of.clone(), found.clone(), doubted.clone()).run());
        Self { url, layout, doubts, _scout: Some(Arc::new(scout)) }
    }

    /// The address that all this follows from.
    pub fn url(&self) -> &RedisUrl {
        &self.url
    }

    /// The layout by the last answers.
    pub fn layout(&self) -> Arc<Layout> {
        self.layout.borrow().clone()
    }

    /// Waits for another layout than the last one seen here. Cancel-safe; waits for ever where nothing can change.
    pub async fn changed(&mut self) -> Arc<Layout> {
        if self.layout.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.layout.borrow_and_update().clone()
    }

    /// Says that the layout may be wrong: the sources that are connected are asked now. Opens no connection.
    pub fn doubt(&self) {
        self.doubts.send_replace(());
    }
}
