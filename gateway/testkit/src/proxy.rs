//! A TCP proxy that does to a connection what networks do: nothing at all, delay, an end, another destination, a lost frame.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::resp::Reply;

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
    /// Nothing arrives any more on this connection, in either direction, and nobody is told.
    BlackHole,
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
    accepted: AtomicUsize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode {
    /// Neither reads nor writes, and closes nothing: a black hole.
    frozen: bool,
    latency: Option<Latency>,
    /// Bytes a second, each way.
    bandwidth: Option<usize>,
    /// Connections accepted before this one are black holes.
    swallowed_below: usize,
    /// What this connection brings waits on its way to the server.
    held: Option<usize>,
    /// What servers answer is lost.
    answers_lost: bool,
    /// Connections of an older generation end, in this way.
    generation: u64,
    end: End,
}

/// How long bytes are on their way, each way: at least the difference, at most the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Latency {
    mean: Duration,
    jitter: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Both sides read an end.
    Close,
    /// Both sides read `ECONNRESET`.
    Reset,
    /// The client reads an end; what it still says goes on to the server until it closes as well.
    HalfClose,
}

pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Latency {
    fn draw(self) -> Duration {
        rand::random_range(self.mean.saturating_sub(self.jitter)..=self.mean + self.jitter)
    }
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
        let mode = watch::Sender::new(Mode {
            frozen: false,
            latency: None,
            bandwidth: None,
            swallowed_below: 0,
            held: None,
            answers_lost: false,
            generation: 0,
            end: End::Close,
        });
        let shared = Arc::new(Shared { target: Mutex::new(target), rule, mode, accepted: AtomicUsize::new(0) });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { addr, shared, accepting }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections were made to it.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    pub fn freeze(&self) {
        self.shared.mode.send_modify(|mode| mode.frozen = true);
    }

    pub fn thaw(&self) {
        self.shared.mode.send_modify(|mode| mode.frozen = false);
    }

    /// Every connection that there is becomes a black hole; new ones work.
    pub fn swallow_connections(&self) {
        self.shared.mode.send_modify(|mode| mode.swallowed_below = self.accepted());
    }

    /// What one connection brings, by its number from 0, goes on to the server when it is let go.
    pub fn hold(&self, connection: Option<usize>) {
        self.shared.mode.send_modify(|mode| mode.held = connection);
    }

    /// Whether answers vanish. The questions arrive.
    pub fn lose_answers(&self, lose: bool) {
        self.shared.mode.send_modify(|mode| mode.answers_lost = lose);
    }

    /// Bytes take so long from now on, give or take `jitter`, and stay in order.
    pub fn delay(&self, mean: Duration, jitter: Duration) {
        self.shared.mode.send_modify(|mode| mode.latency = Some(Latency { mean, jitter }));
    }

    /// Lets through so many bytes a second, each way. The kernel's buffers of connections made from now on are as small as
    /// they can be: what doesn't pass stays with the sender.
    pub fn bandwidth(&self, bytes_per_second: usize) {
        self.shared.mode.send_modify(|mode| mode.bandwidth = Some(bytes_per_second));
    }

    /// No delay and no limit any more.
    pub fn speed_up(&self) {
        self.shared.mode.send_modify(|mode| (mode.latency, mode.bandwidth) = (None, None));
    }

    /// Ends every connection, losing what was on its way; new ones are welcome.
    pub fn cut(&self) {
        self.end(End::Close);
    }

    /// The same as a crash does it: both sides are told that the connection is no more.
    pub fn reset(&self) {
        self.end(End::Reset);
    }

    /// Ends the way to the client of every connection, and leaves the way to the server open.
    pub fn half_close(&self) {
        self.end(End::HalfClose);
    }

    fn end(&self, end: End) {
        self.shared.mode.send_modify(|mode| (mode.generation, mode.end) = (mode.generation + 1, end));
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
        let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
        connections.spawn(connection(client, number, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(client: TcpStream, number: usize, shared: Arc<Shared>) {
    let target = *shared.target.lock().unwrap();
    let mut mode = shared.mode.subscribe();
    let Mode { generation, bandwidth, .. } = *mode.borrow_and_update();
    let Ok(server) = connect(target, bandwidth.is_some()).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    {
        let hole = CancellationToken::new();
        let mut onward = pin!(pump((Direction::ToServer, number), &mut from_client, &mut to_server, &shared, &hole));
        // The first direction to end ends both, unless it is the fault that only one of them does.
        let end = tokio::select! {
            () = &mut onward => return,
            () = pump((Direction::ToClient, number), &mut from_server, &mut to_client, &shared, &hole) => return,
            ended = mode.wait_for(|mode| mode.generation != generation) => ended.map_or(End::Close, |mode| mode.end),
        };
        match end {
            End::Close => return,
            End::HalfClose => {
                drop(to_client);
                return onward.await;
            }
            End::Reset => {}
        }
    }
    for (stream, writing) in [(from_client, to_client), (from_server, to_server)] {
        let _ = stream.as_ref().set_zero_linger();
        // Dropped, it would send an orderly end first.
        writing.forget();
    }
}

async fn connect(target: SocketAddr, narrow: bool) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if narrow {
        socket.set_recv_buffer_size(4096)?;
    }
    socket.connect(target).await
}

/// Carries one direction until its source ends.
async fn pump(
    way: (Direction, usize),
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    shared: &Shared,
    hole: &CancellationToken,
) {
    // Room for what is on its way when there is latency; beyond it the source has to wait.
    let (sender, receiver) = mpsc::channel(64);
    let receiving = async {
        receive(way, from, sender, shared, hole).await;
        // What is on its way still arrives.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = hole.cancelled() => std::future::pending().await,
        () = receiving => {}
        () = send(to, receiver, shared) => {}
    }
}

/// What a rule has decided about a whole connection.
enum Doom {
    Cut,
    BlackHole,
}

/// What came, and when it may go on.
type InFlight = (Instant, Vec<u8>);

async fn receive(
    (direction, number): (Direction, usize),
    from: &mut OwnedReadHalf,
    onward: mpsc::Sender<InFlight>,
    shared: &Shared,
    hole: &CancellationToken,
) {
    let mut mode = shared.mode.subscribe();
    let mut pending = Vec::new();
    let mut due = Instant::now();
    loop {
        let holds = |mode: &Mode| direction == Direction::ToServer && mode.held == Some(number);
        if mode.wait_for(|mode| !mode.frozen && !holds(mode)).await.is_err() {
            return;
        }
        pending.reserve(16 * 1024);
        tokio::select! {
            biased;
            _ = mode.wait_for(|mode| mode.frozen || holds(mode)) => continue,
            read = from.read_buf(&mut pending) => if !matches!(read, Ok(1..)) { return },
        }
        let Mode { swallowed_below, answers_lost, .. } = *shared.mode.borrow();
        if number < swallowed_below || answers_lost && direction == Direction::ToClient {
            pending.clear();
            continue;
        }
        let passing = match judge(direction, &mut pending, shared.rule.as_ref()) {
            Ok(passing) => passing,
            Err(Doom::Cut) => return,
            Err(Doom::BlackHole) => {
                hole.cancel();
                return std::future::pending().await;
            }
        };
        // Later bytes don't overtake earlier ones, whatever their luck.
        let latency = shared.mode.borrow().latency;
        due = due.max(Instant::now() + latency.map_or(Duration::ZERO, Latency::draw));
        if onward.send((due, passing)).await.is_err() {
            return;
        }
    }
}

async fn send(to: &mut OwnedWriteHalf, mut arriving: mpsc::Receiver<InFlight>, shared: &Shared) {
    let mut mode = shared.mode.subscribe();
    while let Some((due, bytes)) = arriving.recv().await {
        tokio::time::sleep_until(due.into()).await;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let Ok(bandwidth) = mode.wait_for(|mode| !mode.frozen).await.map(|mode| mode.bandwidth) else { return };
            // Ten portions a second, or one byte at a time.
            let portion = bandwidth.map_or(rest.len(), |limit| limit.div_ceil(10).min(rest.len()));
            let (now, later) = rest.split_at(portion);
            if to.write_all(now).await.is_err() {
                return;
            }
            rest = later;
            if let Some(limit) = bandwidth {
                tokio::time::sleep(Duration::from_secs_f64(portion as f64 / limit as f64)).await;
            }
        }
    }
}

/// What may go on of the bytes that came, unless they end the connection; incomplete frames stay pending.
fn judge(direction: Direction, pending: &mut Vec<u8>, rule: Option<&Rule>) -> Result<Vec<u8>, Doom> {
    let rule = match rule {
        None => return Ok(std::mem::take(pending)),
        Some(Rule::Redis(rule)) => rule,
        Some(Rule::Chunks(rule)) => {
            let chunk = std::mem::take(pending);
            return match rule(direction) {
                Fate::Pass => Ok(chunk),
                Fate::Swallow => Ok(Vec::new()),
                Fate::Cut => Err(Doom::Cut),
                Fate::BlackHole => Err(Doom::BlackHole),
            };
        }
    };
    let mut passing = Vec::new();
    while let Some((frame, length)) = Reply::parse(pending) {
        let bytes = pending.drain(..length);
        match rule(direction, &frame) {
            Fate::Pass => passing.extend(bytes),
            Fate::Swallow => {}
            Fate::Cut => return Err(Doom::Cut),
            Fate::BlackHole => return Err(Doom::BlackHole),
        }
    }
    Ok(passing)
}
