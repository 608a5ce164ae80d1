//! Holds what the sources say against each other, and finds the layout by it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::{
    Server,
    layout::Layout,
    source::{self, Rank, Report, View},
    url::{Place, RedisUrl},
};
use crate::{log_throttle::LogThrottle, resp::ConnectionError, task::keep_running};

/// At the start the first answers wait this long for better ones, unless most sources have answered.
const SETTLE: Duration = Duration::from_millis(300);
/// A view is forgotten when most sources have answered for this long, all with older views: they were set up again, and
/// count from zero.
const FORGET: Duration = Duration::from_secs(10);

pub(super) struct Scout {
    url: Arc<RedisUrl>,
    sources: HashMap<Server, Source>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    doubts: watch::Receiver<()>,
    found: watch::Sender<Arc<Layout>>,
    /// The rank of the view that was found.
    rank: Option<Rank>,
    /// Since when most sources answer, and all views are older than that.
    older_since: Option<Instant>,
    started: Instant,
    throttle: LogThrottle,
}

/// What is known of a source.
struct Source {
    /// Its last view, and when it was new: between equals the latest change is believed.
    view: Option<(View, Instant)>,
    state: State,
    _watch: AbortOnDropHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asked,
    Answers,
    Fails,
}

impl Scout {
    pub(super) fn new(url: Arc<RedisUrl>, found: watch::Sender<Arc<Layout>>, doubts: watch::Receiver<()>) -> Self {
        Self {
            url,
            sources: HashMap::new(),
            reports: mpsc::channel(64),
            doubts,
            found,
            rank: None,
            older_since: None,
            started: Instant::now(),
            throttle: LogThrottle::default(),
        }
    }

    pub(super) async fn run(mut self) {
        self.watch_sources();
        loop {
            if let Ok(Some(report)) = timeout(SETTLE, self.reports.1.recv()).await {
                self.take(report);
            }
            self.choose();
        }
    }

    /// Watches the servers of the URL, and those of a Cluster's layout: the URL's may all have been replaced since.
    fn watch_sources(&mut self) {
        let mut servers = self.url.seeds().to_vec();
        if matches!(self.url.place, Place::Cluster { .. }) {
            servers.extend_from_slice(self.found.borrow().servers());
        }
        self.sources.retain(|server, _| servers.contains(server));
        for server in servers {
            let source = || {
                let (url, of) = (self.url.clone(), server.clone());
                let (reports, doubts) = (self.reports.0.clone(), self.doubts.clone());
                let watch = keep_running("Redis topology source", move || {
                    source::watch(url.clone(), of.clone(), reports.clone(), doubts.clone())
                });
                Source { view: None, state: State::Asked, _watch: watch }
            };
            self.sources.entry(server.clone()).or_insert_with(source);
        }
    }

    fn take(&mut self, Report { source, view }: Report) {
        // One that was let go may have reported before.
        let Some(known) = self.sources.get_mut(&source) else { return };
        match view {
            Ok(view) => {
                known.state = State::Answers;
                if known.view.as_ref().is_none_or(|(last, _)| *last != view) {
                    known.view = Some((view, Instant::now()));
                }
            }
            Err(error) => {
                known.state = State::Fails;
                self.complain(&error);
            }
        }
    }

    fn complain(&mut self, error: &ConnectionError) {
        let all_fail = self.sources.values().all(|source| source.state == State::Fails);
        if all_fail && self.throttle.is_due(&error.to_string()) {
            let asked = if self.url.is_cluster() { "node of the Cluster" } else { "Sentinel" };
            warn!(%error, "no {asked} answers");
        }
    }

    /// Finds the layout by the best view of the sources that answer.
    fn choose(&mut self) {
        let answering: Vec<_> = self.sources.values().filter(|source| source.state == State::Answers).collect();
        let most_answer = answering.len() * 2 > self.sources.len();
        let views = answering.iter().filter_map(|source| source.view.as_ref());
        let Some((best, _)) = views.max_by_key(|(view, at)| (view.rank, *at)).cloned() else { return };
        let is_good_enough = match self.rank {
            None => most_answer || self.have_all_reported() || self.started.elapsed() >= SETTLE,
            Some(known) if best.rank >= known || best.rank.epoch >= known.epoch => true,
            Some(_) if most_answer => self.older_since.get_or_insert_with(Instant::now).elapsed() >= FORGET,
            Some(_) => {
                self.older_since = None;
                false
            }
        };
        if !is_good_enough {
            return;
        }
        self.older_since = None;
        self.rank = Some(best.rank);
        if **self.found.borrow() != best.layout {
            let servers: Vec<_> = best.layout.servers().iter().map(ToString::to_string).collect();
            info!(?servers, epoch = best.rank.epoch, "Redis topology changed");
            self.found.send_replace(Arc::new(best.layout));
            self.watch_sources();
        }
    }

    fn have_all_reported(&self) -> bool {
        self.sources.values().all(|source| source.state != State::Asked)
    }
}
