//! The bare server: the least work that brings an event from Redis to its sockets.
//!
//! One thread, one epoll, one `write` of one shared frame for each socket; no authentication, order, recovery, limits or
//! queues. The gateway's cost above this floor is the cost of its promises.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use publisher::internals::Names;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;

use crate::machine::process;
use crate::schedule::tenant_name;
use crate::wire::resp::RedisConnection;
use crate::wire::{unless_blocked, websocket};

/// Serves tenants `l0001` to `l<tenants>` until it is killed. It prints one line, its address. With `join`, the events of
/// a room that came from Redis together are sent in one `write` for each socket.
pub fn run(redis_url: &str, prefix: &str, tenants: u32, join: bool) -> anyhow::Result<Infallible> {
    process::raise_file_limit()?;
    let names = Names::new(prefix)?;
    let redis = subscribe(redis_url, &names, tenants)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    redis.stream().set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    epoll::add(&epoll, redis.stream(), EventData::new_u64(REDIS), EventFlags::IN)?;
    println!("{}", listener.local_addr()?);
    let (sockets, rooms, frame) = (Vec::new(), HashMap::new(), Vec::new());
    BareServer { epoll, listener, redis, names, join, sockets, rooms, frame }.serve()
}

const LISTENER: u64 = u64::MAX;
const REDIS: u64 = u64::MAX - 1;

struct BareServer {
    epoll: OwnedFd,
    listener: TcpListener,
    redis: RedisConnection,
    names: Names,
    join: bool,
    /// By their number in epoll.
    sockets: Vec<Option<Socket>>,
    /// By channel.
    rooms: HashMap<Vec<u8>, Room>,
    frame: Vec<u8>,
}

#[derive(Default)]
struct Room {
    sockets: Vec<usize>,
    /// The frames to be written.
    waiting: Vec<u8>,
}

struct Socket {
    stream: TcpStream,
    /// The upgrade request so far; `None` after the upgrade.
    request: Option<Vec<u8>>,
    channel: Vec<u8>,
}

fn subscribe(redis_url: &str, names: &Names, tenants: u32) -> anyhow::Result<RedisConnection> {
    let mut redis = RedisConnection::open(redis_url)?;
    for tenant in 0..tenants {
        redis.command(&["SUBSCRIBE", &names.events(&tenant_name(tenant).parse()?)])?;
    }
    Ok(redis)
}

impl BareServer {
    fn serve(mut self) -> anyhow::Result<Infallible> {
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(1024);
        loop {
            ready.clear();
            epoll::wait(&self.epoll, spare_capacity(&mut ready), None)?;
            for event in &ready {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    REDIS => self.fan_out()?,
                    socket => self.read(socket as usize)?,
                }
            }
        }
    }

    fn accept(&mut self) -> anyhow::Result<()> {
        while let Some(stream) = unless_blocked(self.listener.accept())?.map(|(stream, _)| stream) {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let number = self.sockets.len();
            epoll::add(&self.epoll, &stream, EventData::new_u64(number as u64), EventFlags::IN)?;
            self.sockets.push(Some(Socket { stream, request: Some(Vec::new()), channel: Vec::new() }));
        }
        Ok(())
    }

    fn fan_out(&mut self) -> anyhow::Result<()> {
        self.redis.receive().context("the subscription")?;
        while let Some(push) = self.redis.parsed()? {
            let [_, channel, message] = push.items() else { continue };
            let message = message.bytes();
            // The first line is for gateways, the JSON after it for browsers.
            let json = memchr::memchr(b'\n', message).map_or(message, |end| &message[end + 1..]);
            websocket::server_text(json, &mut self.frame);
            let Some(room) = self.rooms.get_mut(channel.bytes()) else { continue };
            room.waiting.extend_from_slice(&self.frame);
            if !self.join {
                room.write(&mut self.sockets);
            }
        }
        self.rooms.values_mut().for_each(|room| room.write(&mut self.sockets));
        Ok(())
    }

    fn read(&mut self, number: usize) -> anyhow::Result<()> {
        let Some(socket) = &mut self.sockets[number] else { return Ok(()) };
        let mut buffer = [0; 4096];
        let size = match socket.stream.read(&mut buffer) {
            Ok(size) if size > 0 => size,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Ok(_) | Err(_) => {
                if let Some(room) = self.rooms.get_mut(&socket.channel) {
                    room.sockets.retain(|&member| member != number);
                }
                self.sockets[number] = None;
                return Ok(());
            }
        };
        // Messages of clients are ignored after the upgrade.
        let Some(request) = &mut socket.request else { return Ok(()) };
        request.extend_from_slice(&buffer[..size]);
        if !request.ends_with(b"\r\n\r\n") {
            return Ok(());
        }
        let tenant = tenant_of(request).context("an upgrade without a token that names a tenant")?;
        self.upgrade(number, &tenant)
    }

    /// Answers the handshake and sends `joined` in the same write: the channel is subscribed already.
    fn upgrade(&mut self, number: usize, tenant: &str) -> anyhow::Result<()> {
        let Some(socket) = &mut self.sockets[number] else { return Ok(()) };
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
            websocket::ACCEPT
        )
        .into_bytes();
        let joined = format!(r#"{{"type":"joined","data":{{"tenantId":"{tenant}","epoch":"bare","seq":0}}}}"#);
        websocket::server_text(joined.as_bytes(), &mut self.frame);
        answer.extend_from_slice(&self.frame);
        socket.stream.write_all(&answer)?;
        socket.request = None;
        socket.channel = self.names.events(&tenant.parse()?).into_bytes();
        self.rooms.entry(socket.channel.clone()).or_default().sockets.push(number);
        Ok(())
    }
}

impl Room {
    /// Drops sockets that can't take all of it: the load is above what this server can do.
    fn write(&mut self, sockets: &mut [Option<Socket>]) {
        if self.waiting.is_empty() {
            return;
        }
        for &number in &self.sockets {
            let Some(socket) = &mut sockets[number] else { continue };
            if !socket.stream.write(&self.waiting).is_ok_and(|written| written == self.waiting.len()) {
                sockets[number] = None;
            }
        }
        self.waiting.clear();
    }
}

/// The tenant of the request's token, which is not verified.
fn tenant_of(request: &[u8]) -> Option<String> {
    let request = str::from_utf8(request).ok()?;
    let claims = request.lines().find_map(|line| line.strip_prefix("Authorization: Bearer "))?.split('.').nth(1)?;
    let claims: serde_json::Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    claims["tenantId"].as_str().map(str::to_owned)
}
