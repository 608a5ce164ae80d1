//! Which server holds which tenant: the one server there is, the master that Sentinels name, or a node of a Cluster.
//!
//! The client library would follow Sentinels and a Cluster by itself, and isn't let (`fred` 10.1): it takes the
//! `sunsubscribe` by which a server says that a slot has moved for an answer to nothing, it hears of a new master only
//! once the old one breaks its connection, which a frozen one never does, and one node that hangs stalls what comes from
//! all others. So whoever talks to Redis has connections to single servers, each with a health of its own, and learns here
//! which servers those are. A wrong view does no harm: a server that does not hold a tenant says so ([`is_elsewhere`]), and
//! a master that was succeeded unnoticed is found out by the fence of the scripts, since its successor has another run id.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::ClientLike,
    types::{
        Builder, ClusterHash, CustomCommand, Resp3Frame, RespVersion,
        config::{Config, ConnectionConfig, PerformanceConfig, ServerConfig},
    },
    util::redis_keyslot,
};
use futures::future::{join_all, select_ok};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use url::Url;

use crate::{complaints::Complaints, error::ConnectError};

pub use fred::types::config::Server;

/// Slots and masters move without telling us, so we look this often.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks at the least, however many ask for one.
const PAUSE: Duration = Duration::from_millis(50);
/// Dialling, greeting and answering must each be done in this time.
const LIMIT: Duration = Duration::from_secs(1);
const LAST_SLOT: u16 = 16_383;

/// An address of Redis, checked.
#[derive(Clone)]
pub struct RedisUrl {
    /// How to talk to the servers that hold tenants; its own server is nobody's.
    config: Config,
    place: Place,
}

#[derive(Clone)]
enum Place {
    One(Server),
    /// `ask` is how to talk to the Sentinels themselves.
    Sentinels {
        seeds: Vec<Server>,
        service: String,
        ask: Box<Config>,
    },
    Cluster {
        seeds: Vec<Server>,
    },
}

impl RedisUrl {
    /// Reads `redis://[[user]:password@]host[:port][/database]`, `redis-sentinel://…?sentinelServiceName=name`,
    /// `redis-cluster://…`, the latter two with `node=host:port` in the query for each further Sentinel or node. With
    /// `rediss` in place of `redis` connections use TLS.
    ///
    /// # Errors
    /// When it can't be used; the text names the rule, and never repeats the URL, for a password may be in it.
    pub fn parse(url: &str) -> Result<Self, ConnectError> {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        let rule = match scheme {
            "redis" | "rediss" | "redis-sentinel" | "rediss-sentinel" | "redis-cluster" | "rediss-cluster" => {
                rule(scheme)
            }
            _ => return Err(ConnectError::Url(rule("redis").to_owned())),
        };
        let unusable = || ConnectError::Url(rule.to_owned());
        if !is_well_formed(url) {
            return Err(unusable());
        }
        // The library panics without a default provider; that it is set already is fine.
        let _ = fred::rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut config = Config::from_url(url).map_err(|_| unusable())?;
        config.version = RespVersion::RESP3;
        let place = match &config.server {
            ServerConfig::Centralized { server } => Place::One(server.clone()),
            ServerConfig::Clustered { hosts, .. } => Place::Cluster { seeds: hosts.clone() },
            ServerConfig::Sentinel { hosts, service_name, username, password } => {
                let (username, password) = (username.clone(), password.clone());
                let ask = Config { username, password, database: None, ..config.clone() };
                Place::Sentinels { seeds: hosts.clone(), service: service_name.clone(), ask: Box::new(ask) }
            }
        };
        Ok(Self { config, place })
    }

    /// Whether channels are sharded: a tenant's events are then published on its own node only.
    pub fn is_cluster(&self) -> bool {
        matches!(self.place, Place::Cluster { .. })
    }

    /// The settings for a connection to one of the servers.
    pub fn config_of(&self, server: &Server) -> Config {
        to(server, &self.config)
    }

    /// The servers that the URL names.
    pub fn seeds(&self) -> &[Server] {
        match &self.place {
            Place::One(server) => std::slice::from_ref(server),
            Place::Sentinels { seeds, .. } | Place::Cluster { seeds } => seeds,
        }
    }

    /// Asks once who holds what, and whether every one of them answers.
    ///
    /// # Errors
    /// The first that went wrong, with the server it went wrong at.
    pub async fn reach(&self) -> Result<Arc<Layout>, String> {
        let mut scout = Scout::new(self.clone());
        let layout = scout.ask_anyone(&Layout::nothing()).await.map_err(|error| error.to_string())?;
        let pings = layout.servers().iter().map(async |server| {
            let answered: Result<String, Error> = match connect(&self.config_of(server)).await {
                Ok(client) => client.ping(None).await,
                Err(error) => Err(error),
            };
            answered.map_err(|error| format!("{server}: {error}"))
        });
        join_all(pings).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(layout)
    }
}

/// What the library lets pass: it ignores a query that it doesn't know, and takes port 0 for one.
fn is_well_formed(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let (sentinels, cluster) = (url.scheme().ends_with("-sentinel"), url.scheme().ends_with("-cluster"));
    let is_place = |host: Option<&str>, port| host.is_some_and(|host| !host.is_empty()) && port != Some(0);
    let is_node = |node: &str| {
        let parts = node.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        parts.is_some_and(|(host, port)| is_place(Some(host), Some(port)))
    };
    let database = url.path().trim_start_matches('/');
    is_place(url.host_str(), url.port())
        && url.fragment().is_none()
        && (database.is_empty() || !cluster && database.parse::<u8>().is_ok())
        && url.query_pairs().all(|(name, value)| match &*name {
            "node" => (sentinels || cluster) && is_node(&value),
            "sentinelServiceName" | "sentinelUsername" | "sentinelPassword" => sentinels && !value.is_empty(),
            _ => false,
        })
}

fn rule(scheme: &str) -> &'static str {
    match scheme {
        "redis-sentinel" | "rediss-sentinel" => {
            "must be redis-sentinel://[user:password@]host:port[/database]?sentinelServiceName=name[&node=host:port…], or \
             rediss-sentinel:// for TLS"
        }
        "redis-cluster" | "rediss-cluster" => {
            "must be redis-cluster://[user:password@]host:port[?node=host:port…], or rediss-cluster:// for TLS"
        }
        _ => {
            "must be an address such as redis://[user:password@]host[:port][/database], or rediss:// for TLS; \
             redis-sentinel:// and redis-cluster:// lead to more than one server"
        }
    }
}

fn to(server: &Server, config: &Config) -> Config {
    Config { server: ServerConfig::Centralized { server: server.clone() }, ..config.clone() }
}

/// Which server holds which slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    servers: Vec<Server>,
    /// Ranges by their last slot, ascending; each with the index of its server. What lies between them is nobody's.
    ranges: Vec<Range>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    server: usize,
}

impl Layout {
    fn nothing() -> Self {
        Self { servers: Vec::new(), ranges: Vec::new() }
    }

    fn all_on(server: Server) -> Self {
        Self { servers: vec![server], ranges: vec![Range { first: 0, last: LAST_SLOT, server: 0 }] }
    }

    /// The server that holds a name; `None` while nobody is known to.
    pub fn server_of(&self, name: &[u8]) -> Option<&Server> {
        // One server holds all there is, whatever the slot.
        if let ([server], [Range { first: 0, last: LAST_SLOT, .. }]) = (&self.servers[..], &self.ranges[..]) {
            return Some(server);
        }
        let slot = redis_keyslot(name);
        let range = self.ranges.get(self.ranges.partition_point(|range| range.last < slot))?;
        (range.first <= slot).then(|| &self.servers[range.server])
    }

    /// Whether every slot has a server.
    pub fn is_whole(&self) -> bool {
        let mut next = 0;
        for range in &self.ranges {
            if range.first > next {
                return false;
            }
            next = range.last + 1;
        }
        next > LAST_SLOT
    }

    /// Every server that holds something.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// Reads the answer to CLUSTER SLOTS, which the node `asked` gave.
    fn of_cluster(answer: &Resp3Frame, asked: &Server) -> Option<Self> {
        let mut layout = Self::nothing();
        for entry in array(answer)? {
            let [first, last, master, ..] = array(entry)? else { return None };
            let [host, port, ..] = array(master)? else { return None };
            // A node that doesn't know how it is reached leaves that to us, who have just reached it.
            let host = text(host).filter(|host| !host.is_empty() && *host != "?").unwrap_or(&asked.host);
            let server = Server::new(host.to_owned(), number(port)?.try_into().ok()?);
            let known = layout.servers.iter().position(|known| *known == server);
            let server = known.unwrap_or_else(|| {
                layout.servers.push(server);
                layout.servers.len() - 1
            });
            let slot = |frame| number(frame)?.try_into().ok();
            layout.ranges.push(Range { first: slot(first)?, last: slot(last)?, server });
        }
        layout.ranges.sort_by_key(|range| range.last);
        (!layout.ranges.is_empty()).then_some(layout)
    }
}

/// Whether a server refuses because the name is on another, or is on its way there, or because another is the master now:
/// it did nothing.
pub fn is_elsewhere(refusal: &str) -> bool {
    ["MOVED ", "ASK ", "TRYAGAIN ", "READONLY "].iter().any(|prefix| refusal.starts_with(prefix))
}

/// The layout as it changes. Cheap to clone; the looking ends with the last clone.
#[derive(Clone)]
pub struct Servers {
    url: Arc<RedisUrl>,
    layout: watch::Receiver<Arc<Layout>>,
    doubt: Arc<Notify>,
    _scout: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Servers {
    /// Starts to look. The layout is empty until somebody has answered, except that one server needs no looking for.
    pub fn follow(url: RedisUrl) -> Self {
        let doubt = Arc::new(Notify::new());
        let url = Arc::new(url);
        if let Place::One(server) = &url.place {
            let (_, layout) = watch::channel(Arc::new(Layout::all_on(server.clone())));
            return Self { url, layout, doubt, _scout: None };
        }
        let (found, layout) = watch::channel(Arc::new(Layout::nothing()));
        let scout = Scout::new((*url).clone()).run(found, doubt.clone());
        let scout = Some(Arc::new(AbortOnDropHandle::new(tokio::spawn(scout))));
        Self { url, layout, doubt, _scout: scout }
    }

    /// The address that all this follows from.
    pub fn url(&self) -> &RedisUrl {
        &self.url
    }

    /// The layout by the last answer.
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

    /// Says that the layout may be wrong: look now, and ask everybody.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }
}

/// Asks those who know.
struct Scout {
    url: RedisUrl,
    /// The connection that the last good answer came over.
    kept: Option<(Server, Client)>,
}

impl Scout {
    fn new(url: RedisUrl) -> Self {
        Self { url, kept: None }
    }

    async fn run(mut self, found: watch::Sender<Arc<Layout>>, doubt: Arc<Notify>) {
        let mut complaints = Complaints::default();
        let mut doubted = true;
        loop {
            let known = found.borrow().clone();
            let answer = match self.kept.take() {
                Some((server, client)) if !doubted => match self.ask(&server, &client).await {
                    Ok(layout) => {
                        self.kept = Some((server, client));
                        Ok(Arc::new(layout))
                    }
                    Err(_) => self.ask_anyone(&known).await,
                },
                _ => self.ask_anyone(&known).await,
            };
            match answer {
                Ok(layout) if layout != known => {
                    let servers: Vec<_> = layout.servers().iter().map(ToString::to_string).collect();
                    info!(?servers, "Redis is where it was not before");
                    found.send_replace(layout);
                }
                Ok(_) => {}
                Err(error) => {
                    if complaints.may_say(&error.to_string()) {
                        warn!(%error, "nobody says which Redis server to use");
                    }
                }
            }
            sleep(PAUSE).await;
            doubted = timeout(LOOK - PAUSE, doubt.notified()).await.is_ok();
        }
    }

    /// Asks everybody at once, and takes the first good answer: a server that hangs costs no time.
    async fn ask_anyone(&mut self, known: &Layout) -> Result<Arc<Layout>, Error> {
        let (mut candidates, config) = match &self.url.place {
            Place::One(server) => return Ok(Arc::new(Layout::all_on(server.clone()))),
            Place::Sentinels { seeds, ask, .. } => (seeds.clone(), &**ask),
            // The seeds may all have been replaced since the URL was written.
            Place::Cluster { seeds } => ([&seeds[..], known.servers()].concat(), &self.url.config),
        };
        candidates.sort();
        candidates.dedup();
        let answers = candidates.into_iter().map(|server| {
            let this = &*self;
            Box::pin(async move {
                let client = connect(&to(&server, config)).await?;
                let layout = this.ask(&server, &client).await?;
                Ok::<_, Error>((layout, server, client))
            })
        });
        let ((layout, server, client), _) = select_ok(answers).await?;
        self.kept = Some((server, client));
        Ok(Arc::new(layout))
    }

    async fn ask(&self, server: &Server, client: &Client) -> Result<Layout, Error> {
        match &self.url.place {
            Place::One(server) => Ok(Layout::all_on(server.clone())),
            Place::Sentinels { service, .. } => {
                let answer = run(client, "SENTINEL", &["GET-MASTER-ADDR-BY-NAME", service]).await?;
                let Some([host, port]) = array(&answer) else {
                    return Err(Error::new(ErrorKind::Sentinel, format!("{server} knows no master of that name")));
                };
                let address = text(host).zip(text(port).and_then(|port| port.parse().ok()));
                let (host, port) = address.ok_or_else(|| Error::new(ErrorKind::Sentinel, "no address"))?;
                Ok(Layout::all_on(Server::new(host.to_owned(), port)))
            }
            Place::Cluster { .. } => {
                let answer = run(client, "CLUSTER", &["SLOTS"]).await?;
                let nothing = || Error::new(ErrorKind::Cluster, format!("{server} knows no slots"));
                Layout::of_cluster(&answer, server).ok_or_else(nothing)
            }
        }
    }
}

/// A connection that is given up at the first trouble.
async fn connect(config: &Config) -> Result<Client, Error> {
    let connection = ConnectionConfig {
        connection_timeout: LIMIT,
        internal_command_timeout: LIMIT,
        max_command_attempts: 1,
        ..ConnectionConfig::default()
    };
    let performance = PerformanceConfig { default_command_timeout: LIMIT, ..PerformanceConfig::default() };
    let mut builder = Builder::from_config(config.clone());
    builder.set_connection_config(connection).set_performance_config(performance);
    let client = builder.build()?;
    client.init().await?;
    Ok(client)
}

async fn run(client: &Client, command: &'static str, words: &[&str]) -> Result<Resp3Frame, Error> {
    let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
    let words: Vec<_> = words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
    match client.custom_raw(command, words).await? {
        Resp3Frame::SimpleError { data, .. } => Err(Error::new(ErrorKind::Unknown, data.to_string())),
        frame => Ok(frame),
    }
}

fn array(frame: &Resp3Frame) -> Option<&[Resp3Frame]> {
    match frame {
        Resp3Frame::Array { data, .. } => Some(data),
        _ => None,
    }
}

fn text(frame: &Resp3Frame) -> Option<&str> {
    match frame {
        Resp3Frame::BlobString { data, .. } | Resp3Frame::SimpleString { data, .. } => std::str::from_utf8(data).ok(),
        _ => None,
    }
}

fn number(frame: &Resp3Frame) -> Option<i64> {
    match frame {
        Resp3Frame::Number { data, .. } => Some(*data),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(ranges: &[(u16, u16, &str, i64)]) -> Option<Layout> {
        let blob = |text: &str| Resp3Frame::BlobString { data: text.to_owned().into(), attributes: None };
        let number = |data: i64| Resp3Frame::Number { data, attributes: None };
        let list = |data: Vec<Resp3Frame>| Resp3Frame::Array { data, attributes: None };
        let entries = ranges.iter().map(|(first, last, host, port)| {
            let master = list(vec![blob(host), number(*port), blob("id")]);
            list(vec![number((*first).into()), number((*last).into()), master])
        });
        Layout::of_cluster(&list(entries.collect()), &Server::new("asked", 1))
    }

    #[test]
    fn a_slot_is_where_the_cluster_says() {
        let layout = layout(&[(5000, 9000, "b", 2), (0, 4999, "a", 1), (9001, 16383, "", 3)]).expect("a layout");
        let slot = |name: &str| redis_keyslot(name.as_bytes());
        for name in ["dash:{acorn}:events", "dash:{hazel}:log", "dash:{maple}:state", "dash:kicks"] {
            let expected = match slot(name) {
                ..=4999 => Server::new("a", 1),
                5000..=9000 => Server::new("b", 2),
                _ => Server::new("asked", 3),
            };
            assert_eq!(layout.server_of(name.as_bytes()), Some(&expected), "{name} in slot {}", slot(name));
        }
        assert_eq!(layout.servers().len(), 3);
        assert!(layout.is_whole());
    }

    #[test]
    fn what_is_between_the_ranges_is_nobodys() {
        let slot = redis_keyslot(b"dash:kicks");
        let layout = layout(&[(0, slot - 1, "a", 1), (slot + 1, 16383, "a", 1)]).expect("a layout");
        assert_eq!(layout.server_of(b"dash:kicks"), None);
        assert_eq!(layout.servers().len(), 1);
        assert!(!layout.is_whole());
    }

    #[test]
    fn a_cluster_without_slots_is_no_answer() {
        assert_eq!(layout(&[]), None);
    }

    #[test]
    fn an_address_is_of_one_of_three_kinds() {
        for (url, seeds, cluster) in [
            ("redis://localhost", 1, false),
            ("rediss://user:p%40ss@redis.example:6380/3", 1, false),
            ("redis-cluster://:hunter2@a:7001?node=b:7002&node=c:7003", 3, true),
            ("redis-sentinel://a:26379/1?sentinelServiceName=books&node=b:26379", 2, false),
        ] {
            let parsed = RedisUrl::parse(url).expect(url);
            assert_eq!((parsed.seeds().len(), parsed.is_cluster()), (seeds, cluster), "{url}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_is_said_without_it() {
        for url in [
            "",
            "http://hunter2",
            "redis+unix:///hunter2",
            "redis-sentinel://:hunter2@a:26379",
            "redis://",
            "redis-cluster://a:1/3",
            "redis-cluster://a:1?node=b",
            "redis-cluster://a:1?hunter2=b:2",
            "redis://a?node=b:2",
            "redis-sentinel://a:0?sentinelServiceName=s",
        ] {
            let error = RedisUrl::parse(url).err().expect(url).to_string();
            assert!(error.contains("must be") && !error.contains("hunter2"), "{url}: {error}");
        }
    }
}
