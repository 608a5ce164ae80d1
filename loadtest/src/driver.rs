//! All sockets of a run on one thread: one epoll, one read buffer, no task and no allocation per delivery.
//! Cheap enough that 10,000 connections and 100,000 deliveries a second leave the machine to the gateway.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use socket2::SockRef;

use crate::websocket::{self, Frame};

/// Whoever wants to know what the sockets receive.
pub trait Audience {
    /// Bytes were read: what is handed over next arrived now.
    fn arrived(&mut self) {}
    /// The length of the first frame in `bytes` when the audience knows it already; it counts as handed over.
    fn recognised(&mut self, _socket: usize, _bytes: &[u8]) -> Option<usize> {
        None
    }
    /// A message on this socket.
    fn text(&mut self, socket: usize, payload: &[u8]);
    /// The socket is over: closed, cut, or cut off by us because it broke the protocol.
    fn ended(&mut self, socket: usize);
}

/// How a browser goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// It says goodbye.
    Close,
    /// Its connection is cut, as by a network that changes.
    Reset,
    /// It falls silent, as a laptop that is shut: the gateway must find out by itself.
    Silence,
}

/// The sockets, numbered from 0 in the order in which they were added.
pub struct Driver {
    epoll: OwnedFd,
    sockets: Vec<Socket>,
    /// Open and never served again, since when.
    silent: Vec<(Instant, TcpStream)>,
    buffer: Box<[u8]>,
}

struct Socket {
    /// `None` once the socket is over.
    stream: Option<TcpStream>,
    /// The beginning of a frame whose end has not come yet: empty, and without memory, nearly always.
    incomplete: Vec<u8>,
}

impl Driver {
    /// More than any frame of a gateway, with room for many small ones in one read.
    const BUFFER: usize = 256 * 1024;
    /// Sockets served between two looks at the clock.
    const EVENTS: usize = 512;
    /// How long a gateway has to give a silent socket up: more than two heartbeats.
    const SILENCE: Duration = Duration::from_secs(120);

    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sockets: Vec::new(),
            silent: Vec::new(),
            buffer: vec![0; Self::BUFFER].into(),
        })
    }

    /// Takes a connection over, together with what was received on it and not parsed yet.
    pub fn add(&mut self, stream: TcpStream, received: Vec<u8>, audience: &mut impl Audience) -> io::Result<usize> {
        let socket = self.sockets.len();
        self.sockets.push(Socket { stream: None, incomplete: Vec::new() });
        self.replace(socket, stream, received, audience)?;
        Ok(socket)
    }

    /// The same for a socket that was added before and is over: its browser is back.
    pub fn replace(
        &mut self,
        socket: usize,
        stream: TcpStream,
        received: Vec<u8>,
        audience: &mut impl Audience,
    ) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(socket as u64), epoll::EventFlags::IN)?;
        self.sockets[socket] = Socket { stream: Some(stream), incomplete: Vec::new() };
        self.buffer[..received.len()].copy_from_slice(&received);
        audience.arrived();
        self.parse(socket, received.len(), audience);
        Ok(())
    }

    /// Ends a socket from this side, which is no end that its audience is told of; `false` when it was over already.
    pub fn leave(&mut self, socket: usize, farewell: Farewell) -> io::Result<bool> {
        let Socket { stream, incomplete } = &mut self.sockets[socket];
        *incomplete = Vec::new();
        let Some(mut stream) = stream.take() else { return Ok(false) };
        match farewell {
            // Where it can't be said any more, the connection is over already.
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

    /// Ends all sockets, also those that are silent.
    pub fn leave_all(&mut self) -> io::Result<()> {
        self.silent.clear();
        (0..self.sockets.len()).try_for_each(|socket| self.leave(socket, Farewell::Close).map(drop))
    }

    /// Sockets that were added, open or over.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Serves what is ready; waits at most `patience` for something to be.
    pub fn turn(&mut self, patience: Duration, audience: &mut impl Audience) -> io::Result<()> {
        let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        let mut events = [const { MaybeUninit::uninit() }; Self::EVENTS];
        let ready = match epoll::wait(&self.epoll, &mut events, Some(&patience)) {
            Ok((ready, _)) => ready,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in ready {
            self.read(event.data.u64() as usize, audience);
        }
        Ok(())
    }

    /// One read for one readiness: epoll is level-triggered here, and says so again if there is more.
    fn read(&mut self, index: usize, audience: &mut impl Audience) {
        let socket = &mut self.sockets[index];
        let Some(mut stream) = socket.stream.as_ref() else { return };
        let held = socket.incomplete.len();
        self.buffer[..held].copy_from_slice(&socket.incomplete);
        match stream.read(&mut self.buffer[held..]) {
            Ok(0) => self.end(index, audience),
            Ok(size) => {
                audience.arrived();
                self.parse(index, held + size, audience);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.end(index, audience),
        }
    }

    /// Hands over every whole frame in the first `length` bytes of the buffer and keeps the rest.
    fn parse(&mut self, index: usize, length: usize, audience: &mut impl Audience) {
        let mut parsed = 0;
        loop {
            if let Some(size) = audience.recognised(index, &self.buffer[parsed..length]) {
                parsed += size;
                continue;
            }
            match websocket::first_frame(&self.buffer[parsed..length]) {
                Ok(Some((frame, size))) => {
                    parsed += size;
                    match frame {
                        Frame::Text(payload) => audience.text(index, payload),
                        Frame::Pong => {}
                        Frame::Ping(payload) => {
                            let pong = websocket::pong(payload);
                            // A pong is a few bytes every 30 s. Where even those don't fit, the gateway has
                            // stopped reading, and this socket is as good as over.
                            let sent = self.sockets[index]
                                .stream
                                .as_ref()
                                .is_some_and(|mut stream| stream.write_all(&pong).is_ok());
                            if !sent {
                                return self.end(index, audience);
                            }
                        }
                        Frame::Close(_) => return self.end(index, audience),
                    }
                }
                Ok(None) => break,
                Err(_) => return self.end(index, audience),
            }
        }
        if parsed == 0 && length == self.buffer.len() {
            return self.end(index, audience);
        }
        self.sockets[index].incomplete = self.buffer[parsed..length].to_vec();
    }

    fn end(&mut self, index: usize, audience: &mut impl Audience) {
        // Dropping the stream takes it out of the epoll set.
        if self.sockets[index].stream.take().is_some() {
            audience.ended(index);
        }
        self.sockets[index].incomplete = Vec::new();
    }
}
