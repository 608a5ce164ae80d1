//! The attackers of `attack`: each opens a bounded number of connections at a bounded pace, and opens what it loses again.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;
use socket2::SockRef;

use crate::client::{Client, GatewayUrl, dial};
use crate::message::Scanner;
use crate::token::Mint;
use crate::websocket;

/// The tenant of the attackers that have a token.
pub const TENANT: &str = "attacker";
/// Events that a slow reader has replayed: `RECOVERY_EVENTS`, less one that may be trimmed meanwhile.
pub const REPLAYED: u32 = 511;

/// What an attacker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// 30 sockets of a user that leave and resume ten times a second, and never read.
    SlowReaders,
    /// 1000 sockets without a token, at 100 handshakes a second.
    Strangers,
    /// 1000 connections that never send a request.
    IdleConnections,
    /// 256 connections that send 64 requests at once, and read 512 bytes ten times a second.
    TricklingReaders,
    /// 20 handshakes a second with tokens of keys that no issuer has.
    JunkKids,
    /// 1000 sockets of one user, at 100 handshakes a second.
    OneUser,
}

impl Kind {
    /// Connections at the most, and how many are opened a second.
    fn size(self) -> (f64, f64) {
        match self {
            Self::SlowReaders => (30.0, 30.0),
            Self::Strangers | Self::OneUser => (1000.0, 100.0),
            Self::IdleConnections => (1000.0, 1000.0),
            Self::TricklingReaders => (256.0, 256.0),
            Self::JunkKids => (20.0, 20.0),
        }
    }

    /// The most files that it holds.
    pub fn files(self, scale: f64) -> usize {
        (self.size().0 * scale).ceil() as usize
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// Where attackers find the gateways, and what they sign tokens with.
pub struct Ground {
    pub gateways: Vec<GatewayUrl>,
    pub mint: Mint,
    /// The part of each attacker's size.
    pub scale: f64,
}

/// What an attacker achieved.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Tally {
    pub kind: Kind,
    /// Connections, and sockets after their handshake, that were opened.
    pub opened: usize,
    /// Attempts that opened nothing.
    pub refused: usize,
    /// Those that the gateway closed.
    pub closed: usize,
    /// Those that were open at the end.
    pub held: usize,
}

/// Attackers at work.
pub struct Attack {
    stop: Arc<AtomicBool>,
    lanes: Vec<JoinHandle<Tally>>,
}

impl Attack {
    /// Threads of an attacker: a handshake that is answered late must not stop its others.
    const LANES: usize = 4;

    pub fn start(ground: Ground, kinds: &[Kind]) -> Self {
        let (ground, stop) = (Arc::new(ground), Arc::new(AtomicBool::new(false)));
        let next = Arc::new(AtomicUsize::new(0));
        let lane = |kind: Kind| {
            let lane = Lane { kind, ground: ground.clone(), next: next.clone(), stop: stop.clone() };
            thread::spawn(move || lane.run())
        };
        let lanes = kinds.iter().flat_map(|&kind| (0..Self::LANES).map(move |_| kind)).map(lane).collect();
        Self { stop, lanes }
    }

    /// Ends it, and says what each attacker achieved.
    pub fn stop(self) -> Vec<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut tallies: Vec<Tally> = Vec::new();
        for lane in self.lanes {
            let lane = lane.join().expect("an attacker does not panic");
            match tallies.iter_mut().find(|tally| tally.kind == lane.kind) {
                Some(all) => {
                    all.opened += lane.opened;
                    all.refused += lane.refused;
                    all.closed += lane.closed;
                    all.held += lane.held;
                }
                None => tallies.push(lane),
            }
        }
        tallies
    }
}

/// A part of an attacker, on a thread of its own.
struct Lane {
    kind: Kind,
    ground: Arc<Ground>,
    /// Numbers the connections of all attackers, so that they have addresses of their own.
    next: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

/// A connection of an attacker.
struct Held {
    stream: TcpStream,
    /// What it sends again and again.
    repeats: Vec<u8>,
    /// Bytes that it reads at a time; `usize::MAX` reads all that there is.
    reads: usize,
}

impl Lane {
    const TICK: Duration = Duration::from_millis(100);

    fn run(&self) -> Tally {
        let lanes = Attack::LANES as f64;
        let (most, a_second) = self.kind.size();
        let most = (most * self.ground.scale / lanes).ceil() as usize;
        let a_tick = a_second * self.ground.scale / lanes * Self::TICK.as_secs_f64();
        let mut tally = Tally { kind: self.kind, opened: 0, refused: 0, closed: 0, held: 0 };
        let (mut held, mut may_open): (Vec<Held>, f64) = (Vec::new(), 0.0);
        while !self.stop.load(Ordering::Relaxed) {
            let tick = Instant::now();
            let before = held.len();
            held.retain_mut(|connection| connection.tend().is_ok());
            tally.closed += before - held.len();
            may_open = (may_open + a_tick).min(a_tick + 1.0);
            while held.len() < most && may_open >= 1.0 {
                may_open -= 1.0;
                match self.open() {
                    Ok(connection) => {
                        held.push(connection);
                        tally.opened += 1;
                    }
                    Err(_) => tally.refused += 1,
                }
            }
            thread::sleep(Self::TICK.saturating_sub(tick.elapsed()));
        }
        tally.held = held.len();
        tally
    }

    fn open(&self) -> anyhow::Result<Held> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let gateway = &self.ground.gateways[number % self.ground.gateways.len()];
        let mint = &self.ground.mint;
        let all = |stream| Held { stream, repeats: Vec::new(), reads: usize::MAX };
        let held = match self.kind {
            Kind::SlowReaders => slow_reader(gateway, number, mint)?,
            Kind::Strangers => all(Client::stranger(gateway, number)?.into_parts().0),
            Kind::IdleConnections => all(dial(gateway, number)?),
            Kind::TricklingReaders => trickling_reader(gateway, number)?,
            Kind::JunkKids => {
                all(Client::upgrade(gateway, number, &mint.junk(&format!("junk-{number}")))?.into_parts().0)
            }
            Kind::OneUser => all(Client::upgrade(gateway, number, &mint.token("one-user", TENANT)?)?.into_parts().0),
        };
        held.stream.set_nonblocking(true)?;
        Ok(held)
    }
}

/// Joins once, and asks for everything again from then on.
fn slow_reader(gateway: &GatewayUrl, number: usize, mint: &Mint) -> anyhow::Result<Held> {
    let mut client = Client::upgrade(gateway, number, &mint.token("slow-reader", TENANT)?)?;
    let position = client.joined(&Scanner::new())?.position;
    let epoch = str::from_utf8(&position.epoch).context("an epoch is text")?;
    let from = position.seq.saturating_sub(REPLAYED.into());
    let join = json!({ "event": "join", "data": { "tenantId": TENANT, "lastSeq": from, "epoch": epoch } });
    let repeats = [websocket::text(br#"{"event":"leave"}"#), websocket::text(join.to_string().as_bytes())].concat();
    let (stream, _) = client.into_parts();
    narrow(&stream)?;
    Ok(Held { stream, repeats, reads: 0 })
}

fn trickling_reader(gateway: &GatewayUrl, number: usize) -> anyhow::Result<Held> {
    let mut stream = dial(gateway, number)?;
    narrow(&stream)?;
    stream.write_all("GET /asyncapi.json HTTP/1.1\r\nHost: attack\r\n\r\n".repeat(64).as_bytes())?;
    Ok(Held { stream, repeats: Vec::new(), reads: 512 })
}

/// Leaves no room for what is not read.
fn narrow(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_recv_buffer_size(4096)
}

impl Held {
    /// An error says that the gateway has closed it.
    fn tend(&mut self) -> io::Result<()> {
        unless_blocked(self.stream.write_all(&self.repeats))?;
        let (mut buffer, mut left) = ([0; 4096], self.reads);
        while left > 0 {
            let room = left.min(buffer.len());
            match unless_blocked(self.stream.read(&mut buffer[..room]))? {
                Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Some(read) => left -= read,
                None => break,
            }
        }
        Ok(())
    }
}

/// `None` where the call would block.
fn unless_blocked<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}
