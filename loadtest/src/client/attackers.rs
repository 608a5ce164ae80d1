//! The attackers of `attack`: each opens a bounded number of connections at a bounded pace, and replaces those that it
//! loses.

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

use super::token::Mint;
use super::{Client, GatewayUrl, dial};
use crate::wire::message::Scanner;
use crate::wire::{unless_blocked, websocket};

/// The tenant of the attackers that have a token.
pub const TENANT: &str = "attacker";
/// Events that a slow reader asks for: `RECOVERY_EVENTS` less one, since the log may be trimmed meanwhile.
pub const REPLAYED: u32 = 511;

/// The kinds of attackers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// 30 sockets of a user that leave and resume ten times a second, and never read.
    SlowReaders,
    /// 1000 sockets without a token, at 100 handshakes a second.
    Strangers,
    /// 1000 connections that never send a request.
    IdleConnections,
    /// 256 connections that each send 64 requests at once, and read 512 bytes ten times a second.
    TricklingReaders,
    /// 20 handshakes a second with tokens whose key ids no issuer has.
    JunkKids,
    /// 1000 sockets of one user, at 100 handshakes a second.
    OneUser,
}

impl Kind {
    /// The most connections, and how many are opened a second.
    fn size(self) -> (f64, f64) {
        match self {
            Self::SlowReaders => (30.0, 30.0),
            Self::Strangers | Self::OneUser => (1000.0, 100.0),
            Self::IdleConnections => (1000.0, 1000.0),
            Self::TricklingReaders => (256.0, 256.0),
            Self::JunkKids => (20.0, 20.0),
        }
    }

    /// The most files that this kind keeps open.
    pub fn files(self, scale: f64) -> usize {
        (self.size().0 * scale).ceil() as usize
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// The attacked gateways, and the key of the attackers' tokens.
pub struct Target {
    pub gateways: Vec<GatewayUrl>,
    pub mint: Mint,
    /// The factor on each attacker's size.
    pub scale: f64,
}

/// The counts of an attacker.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Tally {
    pub kind: Kind,
    /// Opened connections; for sockets, those that completed the handshake.
    pub opened: usize,
    /// Attempts that failed.
    pub refused: usize,
    /// Connections that the gateway closed.
    pub closed: usize,
    /// Connections open at the end.
    pub held: usize,
}

/// Running attackers.
pub struct Attack {
    stop: Arc<AtomicBool>,
    lanes: Vec<JoinHandle<Tally>>,
}

impl Attack {
    /// Threads of an attacker: a late answer to one handshake must not delay all the others.
    const LANES: usize = 4;

    pub fn start(target: Target, kinds: &[Kind]) -> Self {
        let (target, stop) = (Arc::new(target), Arc::new(AtomicBool::new(false)));
        let next = Arc::new(AtomicUsize::new(0));
        let lane = |kind: Kind| {
            let lane = Lane { kind, target: target.clone(), next: next.clone(), stop: stop.clone() };
            thread::spawn(move || lane.run())
        };
        let lanes = kinds.iter().flat_map(|&kind| (0..Self::LANES).map(move |_| kind)).map(lane).collect();
        Self { stop, lanes }
    }

    /// Ends the attack; returns the counts of each attacker.
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
    target: Arc<Target>,
    /// Numbers the connections of all attackers, which spreads them over source addresses.
    next: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

/// A connection of an attacker.
struct Held {
    stream: TcpStream,
    /// Bytes that it sends in every tick.
    repeats: Vec<u8>,
    /// Bytes that it reads in every tick; `usize::MAX` reads everything.
    reads: usize,
}

impl Lane {
    const TICK: Duration = Duration::from_millis(100);

    fn run(&self) -> Tally {
        let lanes = Attack::LANES as f64;
        let (most, a_second) = self.kind.size();
        let most = (most * self.target.scale / lanes).ceil() as usize;
        let a_tick = a_second * self.target.scale / lanes * Self::TICK.as_secs_f64();
        let mut tally = Tally { kind: self.kind, opened: 0, refused: 0, closed: 0, held: 0 };
        let (mut held, mut may_open): (Vec<Held>, f64) = (Vec::new(), 0.0);
        while !self.stop.load(Ordering::Relaxed) {
            let tick = Instant::now();
            let before = held.len();
            held.retain_mut(|connection| connection.tick().is_ok());
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
        let gateway = &self.target.gateways[number % self.target.gateways.len()];
        let mint = &self.target.mint;
        let all = |stream| Held { stream, repeats: Vec::new(), reads: usize::MAX };
        let held = match self.kind {
            Kind::SlowReaders => slow_reader(gateway, number, mint)?,
            Kind::Strangers => all(Client::without_token(gateway, number)?.into_parts().0),
            Kind::IdleConnections => all(dial(gateway, number)?),
            Kind::TricklingReaders => trickling_reader(gateway, number)?,
            Kind::JunkKids => {
                all(Client::upgrade(gateway, number, &mint.of_unknown_key(&format!("junk-{number}")))?.into_parts().0)
            }
            Kind::OneUser => all(Client::upgrade(gateway, number, &mint.token("one-user", TENANT)?)?.into_parts().0),
        };
        held.stream.set_nonblocking(true)?;
        Ok(held)
    }
}

/// Joins, and then leaves and resumes from the oldest position again and again.
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

/// Makes the receive buffer small: unread bytes soon fill the gateway's side.
fn narrow(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_recv_buffer_size(4096)
}

impl Held {
    /// Sends and reads; an error means that the gateway has closed the connection.
    fn tick(&mut self) -> io::Result<()> {
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
