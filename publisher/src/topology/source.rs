//! A server that knows the layout: a Sentinel, or a node of a Cluster. One connection to each is kept, and asked over and
//! over.

use std::{sync::Arc, time::Duration};

use fred::{
    error::{Error, ErrorKind},
    types::config::Server,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tracing::info;

use super::{
    connection::Connection,
    frame::{array, field, text, value},
    layout::Layout,
    url::{Place, RedisUrl},
};
use crate::backoff::Backoff;

/// A source is asked this often, unasked-for news or not.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks at the least, however many doubts there are.
const PAUSE: Duration = Duration::from_millis(50);
/// What a Sentinel says of a new master: when it has switched to it, and, if it leads the failover, already when the
/// replica calls itself a master.
const NEWS: [&str; 2] = ["+switch-master", "+promoted-slave"];

/// What a source says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub layout: Layout,
    pub rank: Rank,
}

/// Which of two views to believe: the greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Whether the node of a Cluster can reach most of the others.
    pub well: bool,
    /// Rises with every failover: the `config-epoch` of Sentinels, the `cluster_current_epoch` of a Cluster.
    pub epoch: u64,
}

/// What the last look at a source brought.
pub(super) struct Report {
    pub source: Server,
    pub view: Result<View, Error>,
}

/// Looks at a source for ever: every second, at each doubt, and whenever a Sentinel tells of a new master.
pub(super) async fn watch(
    url: Arc<RedisUrl>,
    source: Server,
    reports: mpsc::Sender<Report>,
    mut doubts: watch::Receiver<()>,
) {
    let mut backoff = Backoff::up_to(LOOK);
    // Sentinels that were set up for earlier versions grant no SUBSCRIBE.
    let mut listen = matches!(url.place, Place::Sentinels { .. });
    loop {
        let begun = Instant::now();
        let Err(error) = look_for_ever(&url, &source, &reports, &mut doubts, &mut listen).await;
        // Fails only when the scout is gone; this task is aborted then.
        let _ = reports.send(Report { source: source.clone(), view: Err(error) }).await;
        backoff.reset_after(begun.elapsed());
        sleep(backoff.delay()).await;
    }
}

async fn look_for_ever(
    url: &RedisUrl,
    source: &Server,
    reports: &mpsc::Sender<Report>,
    doubts: &mut watch::Receiver<()>,
    listen: &mut bool,
) -> Result<std::convert::Infallible, Error> {
    let mut connection = Connection::open(url.config_to_ask(source)).await?;
    if *listen && let Err(error) = connection.subscribe(NEWS.map(str::to_owned).to_vec()).await {
        if error.details().starts_with("NOPERM") {
            info!(%source, %error, "Sentinel grants no SUBSCRIBE: a new master is found by asking");
            *listen = false;
        }
        return Err(error);
    }
    loop {
        let view = look(&connection, url, source).await?;
        let _ = reports.send(Report { source: source.clone(), view: Ok(view) }).await;
        let doubted = async {
            sleep(PAUSE).await;
            // Fails only when the last `Servers` is gone.
            if doubts.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = doubted => {}
            pushed = connection.pushed() => pushed?,
            () = sleep(LOOK) => {}
        }
    }
}

/// Asks a source once.
pub(super) async fn ask(url: &RedisUrl, source: &Server) -> Result<View, Error> {
    look(&Connection::open(url.config_to_ask(source)).await?, url, source).await
}

async fn look(connection: &Connection, url: &RedisUrl, source: &Server) -> Result<View, Error> {
    match &url.place {
        Place::One(server) => Ok(View { layout: Layout::all_on(server.clone()), rank: Rank { well: true, epoch: 0 } }),
        Place::Sentinels { service, .. } => {
            // The epoch first: an address that is newer than its epoch does no harm, the other way round would.
            let about = connection.run("SENTINEL", &["MASTER", service]).await;
            let address = connection.run("SENTINEL", &["GET-MASTER-ADDR-BY-NAME", service]).await?;
            let Some([host, port]) = array(&address) else {
                return Err(Error::new(ErrorKind::Sentinel, format!("{source} knows no master of that name")));
            };
            let address = text(host).zip(text(port).and_then(|port| port.parse().ok()));
            let (host, port) = address.ok_or_else(|| Error::new(ErrorKind::Sentinel, "no address"))?;
            // Refused, as by a Sentinel that was set up for earlier versions, it counts as the oldest.
            let epoch = about.ok().and_then(|about| value(&about, "config-epoch")?.parse().ok()).unwrap_or(0);
            Ok(View { layout: Layout::all_on(Server::new(host.to_owned(), port)), rank: Rank { well: true, epoch } })
        }
        Place::Cluster { .. } => {
            let about = connection.run("CLUSTER", &["INFO"]).await;
            let slots = connection.run("CLUSTER", &["SLOTS"]).await?;
            let nothing = || Error::new(ErrorKind::Cluster, format!("{source} knows no slots"));
            let layout = Layout::of_cluster(&slots, source).ok_or_else(nothing)?;
            let about = about.ok();
            let said = |name| field(text(about.as_ref()?)?, name);
            let well = said("cluster_state") == Some("ok");
            let epoch = said("cluster_current_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
            Ok(View { layout, rank: Rank { well, epoch } })
        }
    }
}
