//! The one module that talks to Redis: connections for commands and scripts, which fail fast, notice silence and heal.
//!
//! Commands, scripts and publishing go through the client library, `fred` 10.1. Only this module, [`resp`](crate::resp) and
//! [`topology`](crate::topology) name it, and its types leave none of them. What it gets wrong, and what is done about it:
//!
//! - It hides what a server says about subscriptions: `subscribe` returns once it is written, a refusal goes to the next command
//!   instead, an unasked-for `sunsubscribe` is dropped, and a message that its queue has no room for is lost. So nothing here
//!   subscribes; [`resp::Connection`](crate::resp::Connection) does.
//! - It queues each order to reconnect, and carries all of them out after an outage, each time ending a healthy connection. So it
//!   gets no reconnect policy: its task ends with the connection, and [`Connection`] starts it again.
//! - Its state says "connected" before the greeting and after the end. So a connection counts as up once it has answered.
//! - It sends a command whose answer was lost again, whatever time it is. So every command has one attempt and a limit; a limit of
//!   zero would mean "none".
//! - It never pipelines its own EVALSHA. So scripts are sent as custom commands.
//! - It holds some errors to be final, a name that did not resolve for one. The same restart covers that.
//! - It follows neither Sentinels nor a Cluster as it must ([`topology`](crate::topology) says how). So every client of it leads to
//!   one server.
//! - Its feature `tcp-user-timeouts` needs socket2's `all`, which it forgets to ask for (aembke/fred.rs#369).

mod commands;
mod connection;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    backoff::Backoff,
    task::keep_running,
    topology::{Layout, RedisUrl, Server, Servers},
};

pub(crate) use self::connection::{Call, Connection};
use self::connection::{PULSE_LIMIT, Settings};
pub use self::{
    commands::{Access, Commands},
    connection::Failure,
};

/// The longest delay between two attempts to connect to a server.
const RECONNECT_DELAY: Duration = Duration::from_millis(250);

/// The connections of one publisher.
pub(crate) struct Redis {
    reach: watch::Sender<Arc<Reach>>,
    servers: Servers,
    /// When the layout last changed.
    moved: watch::Receiver<Option<Instant>>,
    next: AtomicUsize,
    _following: AbortOnDropHandle<()>,
}

/// What can be reached: the connections to every server of a layout.
struct Reach {
    layout: Arc<Layout>,
    nodes: HashMap<Server, Arc<Node>>,
}

/// The connections to one server; they end with it.
struct Node {
    connections: Vec<Arc<Connection>>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// How connections are made.
#[derive(Clone, Copy)]
struct Width {
    connections: usize,
    /// Bounds what waits for one connection.
    queue: usize,
}

impl Redis {
    /// Starts to connect, and goes on trying in the background. `queue` bounds what waits for one connection.
    pub(crate) fn open(servers: Servers, connections: usize, queue: usize) -> Self {
        let width = Width { connections, queue };
        let nothing = HashMap::new();
        let reach = watch::Sender::new(Arc::new(Reach::new(servers.layout(), &nothing, servers.url(), width)));
        let (moves, moved) = watch::channel(None);
        let (followed, reached) = (servers.clone(), reach.clone());
        let following =
            keep_running("Redis connections", move || follow(followed.clone(), reached.clone(), width, moves.clone()));
        Self { reach, servers, moved, next: AtomicUsize::new(0), _following: following }
    }

    /// Returns when every connection is up, or after `limit`.
    pub(crate) async fn ready(&self, limit: Duration) {
        let all_up = async {
            // The senders live as long as `self`, so that neither wait can fail.
            let reach =
                self.reach.subscribe().wait_for(|reach| !reach.nodes.is_empty()).await.map(|reach| reach.clone());
            for connection in reach.iter().flat_map(|reach| reach.nodes.values()).flat_map(|node| &node.connections) {
                connection.becomes_up().await;
            }
        };
        let _ = timeout(limit, all_up).await;
    }

    /// The next connection in turn that leads to where `name` is and is worth trying, if there is one.
    pub(crate) fn pick(&self, name: &[u8]) -> Option<Arc<Connection>> {
        let reach = self.reach.borrow();
        let Node { connections, .. } = &**reach.nodes.get(reach.layout.server_of(name)?)?;
        let first = self.next.fetch_add(1, Relaxed);
        let mut turn = (0..connections.len()).map(|n| &connections[(first + n) % connections.len()]);
        turn.find(|connection| connection.is_usable()).cloned()
    }

    /// When the names were last found on another server than before.
    pub(crate) fn moved(&self) -> Option<Instant> {
        *self.moved.borrow()
    }

    /// Says that a server refused as the wrong one does.
    pub(crate) fn doubt(&self) {
        self.servers.doubt();
    }

    /// Says goodbye on every connection.
    pub(crate) async fn close(&self) {
        let reach = self.reach.borrow().clone();
        for connection in reach.nodes.values().flat_map(|node| &node.connections) {
            connection.close().await;
        }
    }
}

impl Reach {
    /// Keeps the connections to servers that are in the layout still.
    fn new(layout: Arc<Layout>, known: &HashMap<Server, Arc<Node>>, url: &RedisUrl, width: Width) -> Self {
        let node =
            |server: &Server| known.get(server).cloned().unwrap_or_else(|| Arc::new(Node::open(server, url, width)));
        let nodes = layout.servers().iter().map(|server| (server.clone(), node(server))).collect();
        Self { layout, nodes }
    }
}

/// Connects to the servers that hold something now, and leaves the others.
async fn follow(
    mut servers: Servers,
    reach: watch::Sender<Arc<Reach>>,
    width: Width,
    moves: watch::Sender<Option<Instant>>,
) {
    loop {
        let layout = servers.changed().await;
        let known = reach.borrow().clone();
        reach.send_replace(Arc::new(Reach::new(layout, &known.nodes, servers.url(), width)));
        // After it: from here on, everything is published where it belongs.
        if !known.nodes.is_empty() {
            moves.send_replace(Some(Instant::now()));
        }
    }
}

impl Node {
    fn open(server: &Server, url: &RedisUrl, width: Width) -> Self {
        let settings = Settings { queue: width.queue, pulse_limit: PULSE_LIMIT };
        let (mut connections, mut tasks) = (Vec::new(), Vec::new());
        // One connection dials at a time: a server that is dead is not dialled by all of them.
        let dialling = Arc::new(Mutex::new(Backoff::up_to(RECONNECT_DELAY)));
        for number in 0..width.connections {
            let connection = Arc::new(Connection::new(number.to_string(), url.target(server), settings));
            let (kept, dialling) = (connection.clone(), dialling.clone());
            tasks.push(keep_running("Redis connection", move || kept.clone().keep_alive(dialling.clone())));
            connections.push(connection);
        }
        Self { connections, _tasks: tasks }
    }
}
