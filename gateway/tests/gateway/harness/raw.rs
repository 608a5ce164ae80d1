//! A socket that speaks WebSocket by hand, and badly when asked to.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http::Response;
use super::wait::{PATIENCE, within};

/// RFC 6455's opcodes.
pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// The RFC's own sample key.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A client's frame, right until a test makes it wrong.
#[derive(Debug, Clone)]
pub struct RawFrame {
    pub opcode: u8,
    pub fin: bool,
    /// The three reserved bits.
    pub rsv: u8,
    pub masked: bool,
    pub payload: Vec<u8>,
    /// A length other than the payload's; always written as 64 bits.
    pub declared: Option<u64>,
}

impl RawFrame {
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { opcode, fin: true, rsv: 0, masked: true, payload: payload.into(), declared: None }
    }

    pub fn text(text: &str) -> Self {
        Self::new(TEXT, text)
    }

    /// A Close with this code and reason.
    pub fn close(code: u16, reason: &[u8]) -> Self {
        Self::new(CLOSE, [&code.to_be_bytes(), reason].concat())
    }

    /// More frames of this message follow.
    pub fn unfinished(mut self) -> Self {
        self.fin = false;
        self
    }

    pub fn with_rsv(mut self, rsv: u8) -> Self {
        self.rsv = rsv;
        self
    }

    pub fn unmasked(mut self) -> Self {
        self.masked = false;
        self
    }

    pub fn declaring(mut self, length: u64) -> Self {
        self.declared = Some(length);
        self
    }

    pub fn encode(&self) -> Vec<u8> {
        const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
        let mut bytes = vec![u8::from(self.fin) << 7 | self.rsv << 4 | self.opcode];
        let mask_bit = u8::from(self.masked) << 7;
        match (self.declared, self.payload.len()) {
            (Some(length), _) => {
                bytes.push(mask_bit | 127);
                bytes.extend(length.to_be_bytes());
            }
            (None, length @ ..126) => bytes.push(mask_bit | length as u8),
            (None, length @ ..65536) => {
                bytes.push(mask_bit | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            (None, length) => {
                bytes.push(mask_bit | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if self.masked {
            bytes.extend(MASK);
            bytes.extend(self.payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        } else {
            bytes.extend(&self.payload);
        }
        bytes
    }
}

/// A frame of the gateway's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Received {
    pub fn text(&self) -> String {
        String::from_utf8(self.payload.clone()).unwrap()
    }

    /// The code of a Close.
    pub fn code(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.payload.get(..2)?.try_into().unwrap()))
    }
}

/// The head of a right handshake, with `extra` lines (each ending in CRLF) and without the last empty line.
pub fn handshake(addr: SocketAddr, extra: &str) -> String {
    format!(
        "GET /dashboard HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{extra}"
    )
}

pub struct RawSocket {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl RawSocket {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// After a handshake with a token in its header.
    pub async fn upgraded(addr: SocketAddr, token: &str) -> Self {
        let mut socket = Self::connect(addr).await;
        let response = socket.handshake(&handshake(addr, &format!("Authorization: Bearer {token}\r\n\r\n"))).await;
        assert_eq!(response.status, 101, "{response:?}");
        socket
    }

    /// Upgraded, and its `joined` read.
    pub async fn joined(addr: SocketAddr, token: &str) -> Self {
        let mut socket = Self::upgraded(addr, token).await;
        let joined = socket.next_frame().await.expect("joined comes first").text();
        assert!(joined.contains(r#""type":"joined""#), "{joined}");
        socket
    }

    /// Sends a request head and reads the answer's.
    pub async fn handshake(&mut self, head: &str) -> Response {
        self.send_bytes(head.as_bytes()).await;
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            assert!(self.fill().await, "the gateway closed instead of answering");
        };
        let head = String::from_utf8(self.buffer[..end].to_vec()).unwrap();
        self.buffer.drain(..end + 4);
        Response::parse_head(&head)
    }

    pub async fn send(&mut self, frame: RawFrame) {
        self.send_bytes(&frame.encode()).await;
    }

    /// `false` when the gateway no longer takes bytes.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> bool {
        within("the gateway reads", PATIENCE, self.stream.write_all(bytes)).await.is_ok()
    }

    async fn fill(&mut self) -> bool {
        let read = within("bytes or an end from the gateway", PATIENCE, self.stream.read_buf(&mut self.buffer)).await;
        matches!(read, Ok(1..))
    }

    /// Takes in what has come already, so that no reset can destroy it any more.
    pub fn take_in(&mut self) {
        while let Ok(1..) = self.stream.try_read_buf(&mut self.buffer) {}
    }

    /// The next frame, or `None` when the connection ended.
    pub async fn next_frame(&mut self) -> Option<Received> {
        loop {
            if let Some((frame, length)) = parse(&self.buffer) {
                self.buffer.drain(..length);
                return Some(frame);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next frame with this opcode; text messages pass unseen, a Close does not.
    pub async fn expect_frame(&mut self, opcode: u8) -> Received {
        loop {
            let frame = self.next_frame().await.unwrap_or_else(|| panic!("ended before a frame {opcode}"));
            if frame.opcode == opcode {
                return frame;
            }
            assert_ne!(frame.opcode, CLOSE, "closed with {:?} before a frame {opcode}", frame.code());
        }
    }

    /// The next text message of this type.
    pub async fn expect_message(&mut self, kind: &str) -> String {
        loop {
            let text = self.expect_frame(TEXT).await.text();
            if text.contains(&format!(r#""type":"{kind}""#)) {
                return text;
            }
        }
    }

    /// The code of the Close that comes, after which the connection must end within `limit`.
    pub async fn close_code(&mut self) -> Option<u16> {
        let close = loop {
            let frame = self.next_frame().await?;
            if frame.opcode == CLOSE {
                break frame;
            }
        };
        let ended = async { while let Ok(1..) = self.stream.read(&mut [0; 1024]).await {} };
        within("the connection ends after the Close", Duration::from_secs(5), ended).await;
        Some(close.code().unwrap_or(1005))
    }

    /// Ends with a reset, as a crashed client's kernel does.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// Server frames are short headers and never masked.
fn parse(buffer: &[u8]) -> Option<(Received, usize)> {
    let (&first, &second) = (buffer.first()?, buffer.get(1)?);
    assert_eq!(first & 0xF0, 0x80, "a whole frame without reserved bits, not {first:#x}");
    assert_eq!(second & 0x80, 0, "a server's frame is not masked");
    let (length, header) = match second {
        126 => (u16::from_be_bytes(buffer.get(2..4)?.try_into().unwrap()) as usize, 4),
        127 => (u64::from_be_bytes(buffer.get(2..10)?.try_into().unwrap()) as usize, 10),
        short => (short as usize, 2),
    };
    let payload = buffer.get(header..header + length)?.to_vec();
    Some((Received { opcode: first & 0x0F, payload }, header + length))
}
