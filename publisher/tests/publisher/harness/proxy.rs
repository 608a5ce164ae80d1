//! A TCP proxy that can lose what passes through it without closing anything.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

#[derive(Default)]
struct Faults {
    /// Connections numbered below this are black holes, in both directions.
    swallowed_below: AtomicUsize,
    accepted: AtomicUsize,
    /// The next replies vanish; the requests went through.
    lose_replies: AtomicBool,
    /// Whether what the connection of this number brings waits on its way to the server.
    held: watch::Sender<Option<usize>>,
}

pub struct Proxy {
    port: u16,
    faults: Arc<Faults>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let faults = Arc::new(Faults::default());
        let mut tasks = JoinSet::new();
        let shared = faults.clone();
        tasks.spawn(async move {
            let mut pumps = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
                let number = shared.accepted.fetch_add(1, SeqCst);
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                pumps.spawn(pump(from_client, to_server, number, shared.clone(), false));
                pumps.spawn(pump(from_server, to_client, number, shared.clone(), true));
            }
        });
        Self { port, faults, _tasks: tasks }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Every connection there is becomes a black hole; new ones work.
    pub fn swallow_connections(&self) {
        self.faults.swallowed_below.store(self.faults.accepted.load(SeqCst), SeqCst);
    }

    /// What comes over one connection, by its number, goes on when it is let go.
    pub fn hold(&self, number: Option<usize>) {
        self.faults.held.send_replace(number);
    }

    pub fn lose_replies(&self, lose: bool) {
        self.faults.lose_replies.store(lose, SeqCst);
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, number: usize, faults: Arc<Faults>, replies: bool) {
    let mut buffer = vec![0; 64 * 1024];
    let mut held = faults.held.subscribe();
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let _ = held.wait_for(|held| replies || *held != Some(number)).await;
        let lost = number < faults.swallowed_below.load(SeqCst) || (replies && faults.lose_replies.load(SeqCst));
        if !lost && to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
