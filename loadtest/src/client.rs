//! One dashboard with blocking calls: it connects, upgrades, joins, and ends its connection in the ways of a browser.

pub mod attackers;
pub mod fleet;
pub mod token;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde_json::json;
use socket2::{Domain, SockRef, Socket, Type};

use crate::wire::message::{Message, Position, Scanner};
use crate::wire::websocket::{self, Frame};

/// Where a gateway listens: `ws://host:port[/path]`, the path `/dashboard` unless given.
#[derive(Debug, Clone)]
pub struct GatewayUrl {
    address: SocketAddr,
    path: String,
}

impl GatewayUrl {
    pub fn at(address: SocketAddr) -> Self {
        Self { address, path: "/dashboard".to_owned() }
    }
}

impl FromStr for GatewayUrl {
    type Err = anyhow::Error;

    fn from_str(url: &str) -> anyhow::Result<Self> {
        let rest = url.strip_prefix("ws://").context("a gateway URL starts with ws://")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, "dashboard"));
        let address = host.to_socket_addrs().with_context(|| format!("{host} is no host:port"))?.next();
        Ok(Self { address: address.context("the host has no address")?, path: format!("/{path}") })
    }
}

impl fmt::Display for GatewayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ws://{}{}", self.address, self.path)
    }
}

/// The source address of socket number `index` towards a gateway of this machine.
///
/// One address has some 28,000 ports towards one listener, and a closed connection keeps its port for a minute. Sixteen
/// addresses are enough for 10,000 sockets and 20,000 cycles.
fn source(index: usize, gateway: SocketAddr) -> Option<SocketAddr> {
    let own = Ipv4Addr::new(127, 0, 0, 2 + (index % 16) as u8);
    gateway.ip().is_loopback().then(|| SocketAddr::from((own, 0))).filter(|_| gateway.is_ipv4())
}

/// How a client that reconnects sends its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Resume {
    /// In the handshake, as subprotocol offers: one round trip.
    Handshake,
    /// In a `join` message after the handshake: two round trips.
    Message,
}

/// An upgraded connection.
pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    parsed: usize,
}

/// The content of a `joined` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    pub position: Position,
    /// Whether the events since the requested position follow.
    pub recovered: bool,
}

/// Longest wait for any answer of a gateway.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Opens a TCP connection and sends nothing.
pub fn dial(gateway: &GatewayUrl, index: usize) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(gateway.address), Type::STREAM, None)?;
    if let Some(source) = source(index, gateway.address) {
        socket.bind(&source.into()).with_context(|| format!("no free port at {source}"))?;
    }
    socket
        .connect_timeout(&gateway.address.into(), ANSWER_LIMIT)
        .with_context(|| format!("no gateway answers at {gateway}; is the gateway running, and --gateway right?"))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    Ok(stream)
}

impl Client {
    /// Connects and upgrades with the token in a header: a token of one tenant joins at once.
    pub fn upgrade(gateway: &GatewayUrl, index: usize, token: &str) -> anyhow::Result<Self> {
        Self::open(gateway, index, &format!("Authorization: Bearer {token}\r\n"))
    }

    /// Connects, upgrades and asks for the events since `position`; the next message is `joined`.
    pub fn resume(
        gateway: &GatewayUrl,
        index: usize,
        token: &str,
        tenant: &str,
        position: &Position,
        resume: Resume,
    ) -> anyhow::Result<Self> {
        let epoch = str::from_utf8(&position.epoch).context("an epoch is text")?;
        let seq = position.seq;
        match resume {
            Resume::Handshake => {
                let offers = format!(
                    "Sec-WebSocket-Protocol: crechebooks.dashboard.v1, bearer.{token}, tenant.{tenant}, resume.{epoch}.{seq}\r\n"
                );
                Self::open(gateway, index, &offers)
            }
            Resume::Message => {
                let mut client = Self::open(gateway, index, "")?;
                let data = json!({ "tenantId": tenant, "token": token, "epoch": epoch, "lastSeq": seq });
                client.send(&json!({ "event": "join", "data": data }).to_string())?;
                Ok(client)
            }
        }
    }

    /// Connects and upgrades without a token.
    pub fn without_token(gateway: &GatewayUrl, index: usize) -> anyhow::Result<Self> {
        Self::open(gateway, index, "")
    }

    /// Sends a text message.
    pub fn send(&mut self, message: &str) -> io::Result<()> {
        self.stream.write_all(&websocket::text(message.as_bytes()))
    }

    fn open(gateway: &GatewayUrl, index: usize, headers: &str) -> anyhow::Result<Self> {
        let mut client = Self { stream: dial(gateway, index)?, received: Vec::new(), parsed: 0 };
        client.handshake(gateway, headers)?;
        Ok(client)
    }

    fn handshake(&mut self, gateway: &GatewayUrl, headers: &str) -> anyhow::Result<()> {
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n{headers}\r\n",
            gateway.path,
            gateway.address,
            websocket::KEY
        );
        self.stream.write_all(request.as_bytes())?;
        let end = loop {
            if let Some(end) = memchr::memmem::find(&self.received, b"\r\n\r\n") {
                break end + 4;
            }
            self.receive().context("waiting for the upgrade")?;
        };
        let answer = String::from_utf8_lossy(&self.received[..end]);
        if answer.starts_with("HTTP/1.1 401 ") {
            bail!("the gateway refused the token; is --jwt-secret the gateways' JWT_SECRET?");
        }
        if answer.starts_with("HTTP/1.1 503 ") {
            bail!("the gateway is full or draining; does its MAX_CONNECTIONS allow so many sockets?");
        }
        if !answer.starts_with("HTTP/1.1 101 ") {
            bail!("the gateway did not upgrade: {}", answer.lines().next().unwrap_or_default());
        }
        if !answer.contains(websocket::ACCEPT) {
            bail!("the upgrade lacks the right Sec-WebSocket-Accept");
        }
        self.parsed = end;
        Ok(())
    }

    /// Waits for `joined`. The gateway sends it without a request when the token names one tenant.
    pub fn joined(&mut self, scanner: &Scanner) -> anyhow::Result<Joined> {
        self.until("joined", |payload| match scanner.scan(payload) {
            Some(Message::Joined { epoch, seq, recovered }) => {
                Some(Joined { position: Position { epoch: epoch.into(), seq }, recovered })
            }
            _ => None,
        })
    }

    /// Leaves the room and waits for the gateway's `left`.
    pub fn leave(&mut self, scanner: &Scanner) -> anyhow::Result<()> {
        self.send(r#"{"event":"leave"}"#)?;
        self.until("left", |payload| (scanner.scan(payload) == Some(Message::Left)).then_some(()))
    }

    /// The next text message.
    pub fn next_text(&mut self) -> anyhow::Result<Vec<u8>> {
        self.until("a message", |payload| Some(payload.to_vec()))
    }

    /// Removes the limit on the wait for a message: a quiet socket receives nothing but heartbeats.
    pub fn remove_read_limit(&self) -> io::Result<()> {
        self.stream.set_read_timeout(None)
    }

    fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> anyhow::Result<T> {
        loop {
            let frame =
                websocket::first_frame(&self.received[self.parsed..]).map_err(|broken| anyhow::anyhow!(broken.0))?;
            let (found, size) = match frame {
                Some((Frame::Text(payload), size)) => (wanted(payload), size),
                Some((Frame::Ping(payload), size)) => {
                    self.stream.write_all(&websocket::pong(payload))?;
                    (None, size)
                }
                Some((Frame::Pong, size)) => (None, size),
                Some((Frame::Close(4401), _)) => {
                    bail!("the gateway refused the token; is --jwt-secret the gateways' JWT_SECRET?")
                }
                Some((Frame::Close(code), _)) => bail!("closed with {code} while waiting for {what}"),
                None => {
                    self.receive().with_context(|| format!("waiting for {what}"))?;
                    continue;
                }
            };
            self.parsed += size;
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    /// Sends a close frame and waits until the gateway ends the connection.
    pub fn close(mut self) -> anyhow::Result<()> {
        self.stream.write_all(&websocket::close(1000))?;
        while self.receive_more().context("waiting for the gateway to close")? {
            self.received.clear();
        }
        Ok(())
    }

    /// Resets the connection, as a laptop does whose network changes.
    pub fn reset(self) -> io::Result<()> {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }

    /// The stream, and the bytes received after the last message that was read.
    pub fn into_parts(mut self) -> (TcpStream, Vec<u8>) {
        self.received.drain(..self.parsed);
        (self.stream, self.received)
    }

    fn receive(&mut self) -> io::Result<()> {
        match self.receive_more() {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the gateway closed the connection")),
            Err(error) => Err(error),
        }
    }

    /// Reads once; `false` at the end of the connection.
    fn receive_more(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let size = self.stream.read(&mut buffer)?;
        self.received.extend_from_slice(&buffer[..size]);
        Ok(size > 0)
    }
}
