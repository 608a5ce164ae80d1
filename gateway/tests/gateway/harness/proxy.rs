//! A TCP proxy that does to a connection what networks do: nothing at all, an end, another destination, a lost frame.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::resp::Reply;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// What becomes of a RESP frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Pass,
    /// It never arrives, and nobody is told.
    Swallow,
    /// The connection ends instead, in both directions.
    Cut,
}

type OfFrames = Box<dyn Fn(Direction, &Reply) -> Fate + Send + Sync>;
type OfChunks = Box<dyn Fn(Direction) -> Fate + Send + Sync>;

enum Rule {
    /// For each frame of Redis' protocol.
    Redis(OfFrames),
    /// For whatever came at once, in any protocol.
    Chunks(OfChunks),
}

struct Shared {
    target: Mutex<SocketAddr>,
    rule: Option<Rule>,
    mode: watch::Sender<Mode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode {
    /// Neither reads nor writes, and closes nothing: a black hole.
    frozen: bool,
    /// Connections of an older generation are closed.
    generation: u64,
}

pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Any protocol, byte by byte.
    pub async fn to(target: SocketAddr) -> Self {
        Self::start(target, None).await
    }

    /// Redis' protocol, frame by frame: `rule` decides each one's fate.
    pub async fn of_redis(
        target: SocketAddr,
        rule: impl Fn(Direction, &Reply) -> Fate + Send + Sync + 'static,
    ) -> Self {
        Self::start(target, Some(Rule::Redis(Box::new(rule)))).await
    }

    /// Any protocol, by what arrives at once: for a protocol of questions and answers, a message or a few.
    pub async fn of_chunks(target: SocketAddr, rule: impl Fn(Direction) -> Fate + Send + Sync + 'static) -> Self {
        Self::start(target, Some(Rule::Chunks(Box::new(rule)))).await
    }

    async fn start(target: SocketAddr, rule: Option<Rule>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mode = watch::Sender::new(Mode { frozen: false, generation: 0 });
        let shared = Arc::new(Shared { target: Mutex::new(target), rule, mode });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { addr, shared, accepting }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn freeze(&self) {
        self.shared.mode.send_modify(|mode| mode.frozen = true);
    }

    /// Ends every connection, losing what was on its way; new ones are welcome.
    pub fn cut(&self) {
        self.shared.mode.send_modify(|mode| mode.generation += 1);
    }

    /// New connections go elsewhere from now on, and the old ones end.
    pub fn retarget(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
        self.cut();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, so that no connection outlives its proxy.
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        connections.spawn(connection(client, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(client: TcpStream, shared: Arc<Shared>) {
    let target = *shared.target.lock().unwrap();
    let mut mode = shared.mode.subscribe();
    let generation = mode.borrow_and_update().generation;
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // The first direction to end ends both: a half-open leftover is a fault of its own, injected by `freeze`.
    tokio::select! {
        () = pump(Direction::ToServer, from_client, to_server, &shared) => {}
        () = pump(Direction::ToClient, from_server, to_client, &shared) => {}
        _ = mode.wait_for(|mode| mode.generation != generation) => {}
    }
}

async fn pump(direction: Direction, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared) {
    let mut mode = shared.mode.subscribe();
    let mut pending = Vec::new();
    loop {
        if mode.wait_for(|mode| !mode.frozen).await.is_err() {
            return;
        }
        tokio::select! {
            biased;
            _ = mode.wait_for(|mode| mode.frozen) => continue,
            read = from.read_buf(&mut pending) => if !matches!(read, Ok(1..)) { return },
        }
        let Some(passing) = judge(direction, &mut pending, shared.rule.as_ref()) else { return };
        if to.write_all(&passing).await.is_err() {
            return;
        }
    }
}

/// What may go on of the bytes that came; incomplete frames stay pending. `None`: a frame cut the connection.
fn judge(direction: Direction, pending: &mut Vec<u8>, rule: Option<&Rule>) -> Option<Vec<u8>> {
    let rule = match rule {
        None => return Some(std::mem::take(pending)),
        Some(Rule::Redis(rule)) => rule,
        Some(Rule::Chunks(rule)) => {
            let chunk = std::mem::take(pending);
            return match rule(direction) {
                Fate::Pass => Some(chunk),
                Fate::Swallow => Some(Vec::new()),
                Fate::Cut => None,
            };
        }
    };
    let mut passing = Vec::new();
    while let Some((frame, length)) = Reply::parse(pending) {
        let bytes = pending.drain(..length);
        match rule(direction, &frame) {
            Fate::Pass => passing.extend(bytes),
            Fate::Swallow => {}
            Fate::Cut => return None,
        }
    }
    Some(passing)
}
