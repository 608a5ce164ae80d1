//! Serves all sockets of a run on one thread: one epoll, one read buffer, no task and no allocation per delivery. This
//! is cheap enough to leave the machine to the gateway at 10,000 connections and 100,000 deliveries a second.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use socket2::SockRef;

use crate::wire::websocket::{self, Frame};

/// Handles what the sockets receive.
pub trait Handler {
    /// Bytes were read; the calls until the next `arrived` are about them.
    fn arrived(&mut self) {}
    /// Returns the length of the first frame in `bytes` when the handler recognises and handles it; it is not parsed
    /// then.
    fn recognised(&mut self, _socket: usize, _bytes: &[u8]) -> Option<usize> {
        None
    }
    /// A message arrived on this socket.
    fn text(&mut self, socket: usize, payload: &[u8]);
    /// The socket ended: the gateway closed it, its connection broke, or it was dropped because of a protocol error.
    fn ended(&mut self, socket: usize);
}

/// How a browser ends its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// With a close frame.
    Close,
    /// With a reset, as when its network changes.
    Reset,
    /// Not at all, as a laptop that is shut: the gateway must find out by itself.
    Silence,
}

/// The sockets, numbered from 0 in the order in which they were added.
pub struct Driver {
    epoll: OwnedFd,
    sockets: Vec<Socket>,
    /// Silent connections: open and no longer served, with the moment of their farewell.
    silent: Vec<(Instant, TcpStream)>,
    buffer: Box<[u8]>,
}

struct Socket {
    /// `None` after the socket's end.
    stream: Option<TcpStream>,
    /// The beginning of an incomplete frame: nearly always empty, and then without memory.
    incomplete: Vec<u8>,
}

impl Driver {
    /// Larger than any frame of a gateway, and room for many small ones in one read.
    const BUFFER: usize = 256 * 1024;
    /// Most sockets served in one turn.
    const EVENTS: usize = 512;
    /// How long silent connections stay open: longer than the two heartbeats after which a gateway drops them.
    const SILENCE: Duration = Duration::from_secs(120);

    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sockets: Vec::new(),
            silent: Vec::new(),
            buffer: vec![0; Self::BUFFER].into(),
        })
    }

    /// Adds a connection, together with the bytes that were received on it and not parsed yet.
    pub fn add(&mut self, stream: TcpStream, received: Vec<u8>, handler: &mut impl Handler) -> io::Result<usize> {
        let socket = self.sockets.len();
        self.sockets.push(Socket { stream: None, incomplete: Vec::new() });
        self.replace(socket, stream, received, handler)?;
        Ok(socket)
    }

    /// Gives a new connection to a socket whose old one has ended.
    pub fn replace(
        &mut self,
        socket: usize,
        stream: TcpStream,
        received: Vec<u8>,
        handler: &mut impl Handler,
    ) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(socket as u64), epoll::EventFlags::IN)?;
        self.sockets[socket] = Socket { stream: Some(stream), incomplete: Vec::new() };
        self.buffer[..received.len()].copy_from_slice(&received);
        handler.arrived();
        self.parse(socket, received.len(), handler);
        Ok(())
    }

    /// Ends a socket from this side, without [`Handler::ended`]; `false` when it had ended already.
    pub fn leave(&mut self, socket: usize, farewell: Farewell) -> io::Result<bool> {
        let Socket { stream, incomplete } = &mut self.sockets[socket];
        *incomplete = Vec::new();
        let Some(mut stream) = stream.take() else { return Ok(false) };
        match farewell {
            // A failed write means that the connection has ended already.
            Farewell::Close => drop(stream.write_all(&websocket::close(1000))),
            Farewell::Reset => SockRef::from(&stream).set_linger(Some(Duration::ZERO))?,
            Farewell::Silence => {
                epoll::delete(&self.epoll, &stream)?;
                self.silent.retain(|(since, _)| since.elapsed() < Self::SILENCE);
                self.silent.push((Instant::now(), stream));
            }
        }
        Ok(true)
    }

    /// Ends all sockets, and all silent connections.
    pub fn leave_all(&mut self) -> io::Result<()> {
        self.silent.clear();
        (0..self.sockets.len()).try_for_each(|socket| self.leave(socket, Farewell::Close).map(drop))
    }

    /// The number of sockets, open or ended.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Serves the sockets that are ready; waits for the first one, at most for `limit`.
    pub fn turn(&mut self, limit: Duration, handler: &mut impl Handler) -> io::Result<()> {
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        let mut events = [const { MaybeUninit::uninit() }; Self::EVENTS];
        let ready = match epoll::wait(&self.epoll, &mut events, Some(&limit)) {
            Ok((ready, _)) => ready,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in ready {
            self.read(event.data.u64() as usize, handler);
        }
        Ok(())
    }

    /// Reads once: epoll is level-triggered here, and reports the socket again if there is more to read.
    fn read(&mut self, index: usize, handler: &mut impl Handler) {
        let socket = &mut self.sockets[index];
        let Some(mut stream) = socket.stream.as_ref() else { return };
        let held = socket.incomplete.len();
        self.buffer[..held].copy_from_slice(&socket.incomplete);
        match stream.read(&mut self.buffer[held..]) {
            Ok(0) => self.end(index, handler),
            Ok(size) => {
                handler.arrived();
                self.parse(index, held + size, handler);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.end(index, handler),
        }
    }

    /// Handles every complete frame in the first `length` bytes of the buffer and keeps the rest.
    fn parse(&mut self, index: usize, length: usize, handler: &mut impl Handler) {
        let mut parsed = 0;
        loop {
            if let Some(size) = handler.recognised(index, &self.buffer[parsed..length]) {
                parsed += size;
                continue;
            }
            match websocket::first_frame(&self.buffer[parsed..length]) {
                Ok(Some((frame, size))) => {
                    parsed += size;
                    match frame {
                        Frame::Text(payload) => handler.text(index, payload),
                        Frame::Pong => {}
                        Frame::Ping(payload) => {
                            let pong = websocket::pong(payload);
                            // A pong is a few bytes every 30 s. When there is no room for them, the gateway has stopped
                            // reading: the socket counts as ended.
                            let sent = self.sockets[index]
                                .stream
                                .as_ref()
                                .is_some_and(|mut stream| stream.write_all(&pong).is_ok());
                            if !sent {
                                return self.end(index, handler);
                            }
                        }
                        Frame::Close(_) => return self.end(index, handler),
                    }
                }
                Ok(None) => break,
                Err(_) => return self.end(index, handler),
            }
        }
        if parsed == 0 && length == self.buffer.len() {
            return self.end(index, handler);
        }
        self.sockets[index].incomplete = self.buffer[parsed..length].to_vec();
    }

    fn end(&mut self, index: usize, handler: &mut impl Handler) {
        // Dropping the stream takes it out of the epoll set.
        if self.sockets[index].stream.take().is_some() {
            handler.ended(index);
        }
        self.sockets[index].incomplete = Vec::new();
    }
}
