//! A server that knows the layout: a Sentinel, or a node of a Cluster. One connection to each is kept, and asked over and
//! over.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tracing::info;

use super::{
    Server,
    layout::Layout,
    url::{Place, RedisUrl},
};
use crate::{
    backoff::Backoff,
    resp::{
        Connection, ConnectionError, Frame, Target,
        frame::{array, field, refusal, text, value},
    },
};

/// Dialling, greeting and answering must each be done in this time.
const LIMIT: Duration = Duration::from_secs(1);
/// The connection's name in CLIENT LIST.
const NAME: &str = "dashboard-topology";
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
    pub view: Result<View, ConnectionError>,
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
) -> Result<std::convert::Infallible, ConnectionError> {
    let mut line = Source::open(&url.target_to_ask(source)).await?;
    if *listen && let Err(error) = line.listen().await {
        if matches!(&error, ConnectionError::Refused(why) if why.starts_with("NOPERM")) {
            info!(%source, %error, "Sentinel grants no SUBSCRIBE: a new master is found by asking");
            *listen = false;
        }
        return Err(error);
    }
    loop {
        let view = look(&mut line, url, source).await?;
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
            news = line.news() => news?,
            () = sleep(LOOK) => {}
        }
    }
}

/// Asks a source once.
pub(super) async fn ask(url: &RedisUrl, source: &Server) -> Result<View, ConnectionError> {
    look(&mut Source::open(&url.target_to_ask(source)).await?, url, source).await
}

async fn look(line: &mut Source, url: &RedisUrl, source: &Server) -> Result<View, ConnectionError> {
    match &url.place {
        Place::One(server) => Ok(View { layout: Layout::all_on(server.clone()), rank: Rank { well: true, epoch: 0 } }),
        Place::Sentinels { service, .. } => {
            // The epoch first: an address that is newer than its epoch does no harm, the other way round would.
            let about = line.ask(&["SENTINEL", "MASTER", service]).await;
            let address = line.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", service]).await?;
            let Some([host, port]) = array(&address) else {
                return Err(ConnectionError::Refused(format!("{source} knows no master of that name")));
            };
            let address = text(host).zip(text(port).and_then(|port| port.parse().ok()));
            let (host, port) = address.ok_or_else(|| ConnectionError::Refused("no address".to_owned()))?;
            // Refused, as by a Sentinel that was set up for earlier versions, it counts as the oldest.
            let epoch = about.ok().and_then(|about| value(&about, "config-epoch")?.parse().ok()).unwrap_or(0);
            Ok(View { layout: Layout::all_on(Server::new(host, port)), rank: Rank { well: true, epoch } })
        }
        Place::Cluster { .. } => {
            let about = line.ask(&["CLUSTER", "INFO"]).await;
            let slots = line.ask(&["CLUSTER", "SLOTS"]).await?;
            let nothing = || ConnectionError::Refused(format!("{source} knows no slots"));
            let layout = Layout::of_cluster(&slots, source).ok_or_else(nothing)?;
            let about = about.ok();
            let said = |name| field(text(about.as_ref()?)?, name);
            let well = said("cluster_state") == Some("ok");
            let epoch = said("cluster_current_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
            Ok(View { layout, rank: Rank { well, epoch } })
        }
    }
}

/// A connection to a source.
pub(super) struct Source {
    connection: Connection,
    /// Whether a message came that was not heard yet.
    news: News,
}

#[derive(PartialEq)]
enum News {
    Unheard,
    Nothing,
}

impl Source {
    pub(super) async fn open(target: &Target) -> Result<Self, ConnectionError> {
        Ok(Self { connection: Connection::open(target, NAME, LIMIT).await?, news: News::Nothing })
    }

    /// Runs a command; a refusal is an error.
    pub(super) async fn ask(&mut self, words: &[&str]) -> Result<Frame, ConnectionError> {
        self.connection.send(words);
        let answer = timeout(LIMIT, async {
            loop {
                match self.connection.frame().await? {
                    Frame::Push { .. } => self.news = News::Unheard,
                    answer => return Ok(answer),
                }
            }
        });
        let answer = answer.await.unwrap_or(Err(ConnectionError::Silent(LIMIT)))?;
        refusal(&answer).map_or(Ok(answer), |why| Err(ConnectionError::Refused(why)))
    }

    /// Subscribes to the news. After an error the connection is of no use: the answers that are still to come are older commands'.
    async fn listen(&mut self) -> Result<(), ConnectionError> {
        self.connection.send(&[&["SUBSCRIBE"], &NEWS[..]].concat());
        self.ask(&["PING"]).await.map(drop)
    }

    /// Waits for news, or for the end of the connection. Cancel-safe.
    async fn news(&mut self) -> Result<(), ConnectionError> {
        while std::mem::replace(&mut self.news, News::Nothing) == News::Nothing {
            if let Frame::Push { .. } = self.connection.frame().await? {
                self.news = News::Unheard;
            }
        }
        Ok(())
    }
}
