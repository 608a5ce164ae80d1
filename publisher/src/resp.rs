//! Our own connection to Redis: RESP3 over TCP or TLS, one ordered stream of pushes and answers.
//!
//! Subscriptions need it, because the client library hides what the server says about them. It decodes with the crate that the
//! library decodes with, so both speak of the same [`Frame`].

pub mod frame;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use fred::{
    rustls::pki_types::ServerName,
    types::config::{Config, TlsConnector},
};
use redis_protocol::{error::RedisProtocolError, resp3::decode::complete::decode_bytes_mut};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_util::io::{poll_read_buf, poll_write_buf};

use crate::{tcp, topology::Server};
pub use frame::Frame;

/// Room for one read. Frames share this memory for as long as they are held, so it is no more than a few dozen messages need.
const READ_BUFFER: usize = 16 * 1024;
/// With less room than this left, the next read gets new memory.
const LEAST_ROOM: usize = 4 * 1024;

/// How to reach one server: its address, who connects, and whether through TLS.
#[derive(Clone)]
pub struct Target {
    pub(crate) server: Server,
    /// The user, the password and TLS, as the client library reads them from a URL.
    pub(crate) config: Config,
}

/// One connection, open and greeted.
pub struct Connection {
    stream: Box<dyn Stream>,
    received: BytesMut,
    unsent: BytesMut,
    flush: Flush,
}

/// Whether bytes may wait inside of the stream: TLS has a buffer of its own.
#[derive(PartialEq)]
enum Flush {
    Due,
    Done,
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The operating system's, or TLS'.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server's name can't be on a certificate.
    #[error("the server's name can't be used for TLS")]
    Name,
    /// The server ended the connection.
    #[error("connection closed by Redis")]
    Closed,
    /// What the server said when it refused.
    #[error("{0}")]
    Refused(String),
    /// Nothing came in time.
    #[error("no answer from Redis within {0:?}")]
    Silent(Duration),
    /// The server answered although nothing was asked.
    #[error("an answer to nothing")]
    Unasked,
    /// The bytes are not RESP3.
    #[error("not Redis' protocol: {0}")]
    Protocol(#[from] RedisProtocolError),
}

impl ConnectionError {
    /// Whether no process listens at the server's address.
    pub fn is_vacant(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

impl Target {
    /// Opens the way there, without a word on it. The kernel ends it when what was sent isn't acknowledged for `silence`.
    async fn dial(&self, silence: Duration) -> Result<Box<dyn Stream>, ConnectionError> {
        let stream = TcpStream::connect(self.server.to_string()).await?;
        tcp::set_up(&stream, silence)?;
        let Some(tls) = &self.config.tls else { return Ok(Box::new(stream)) };
        let TlsConnector::Rustls(connector) = &tls.connector;
        // An address of IPv6 has brackets in a URL, and none on a certificate.
        let host = self.server.host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|_| ConnectionError::Name)?;
        Ok(Box::new(connector.connect(name, stream).await?))
    }

    /// The greeting: RESP3, who connects, and the connection's name in CLIENT LIST.
    fn hello(&self, name: &str) -> Vec<String> {
        let mut words = vec!["HELLO".to_owned(), "3".to_owned()];
        if let Some(password) = &self.config.password {
            let user = self.config.username.as_deref().unwrap_or("default");
            words.extend(["AUTH".to_owned(), user.to_owned(), password.clone()]);
        }
        words.extend(["SETNAME".to_owned(), name.to_owned()]);
        words
    }
}

impl Connection {
    /// Connects, and greets; each must be done within `limit`.
    ///
    /// # Errors
    /// Why the server can't be talked to.
    pub async fn open(target: &Target, name: &str, limit: Duration) -> Result<Self, ConnectionError> {
        let silent = |_| ConnectionError::Silent(limit);
        let stream = timeout(limit, target.dial(2 * limit)).await.map_err(silent)??;
        let mut connection = Self { stream, received: BytesMut::new(), unsent: BytesMut::new(), flush: Flush::Done };
        connection.send(&target.hello(name));
        let greeting = timeout(limit, connection.frame()).await.map_err(silent)??;
        match frame::refusal(&greeting) {
            Some(why) => Err(ConnectionError::Refused(why)),
            None => Ok(connection),
        }
    }

    /// Puts a command behind those that are on their way; it goes out with the next [`read`](Self::read).
    pub fn send<W: AsRef<[u8]>>(&mut self, words: &[W]) {
        encode(words, &mut self.unsent);
    }

    /// Sends what waits, and returns when more was received. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn read(&mut self) -> Result<(), ConnectionError> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let mut stream = Pin::new(&mut *self.stream);
        while !self.unsent.is_empty() {
            match poll_write_buf(stream.as_mut(), context, &mut self.unsent)? {
                Poll::Ready(0) => return Poll::Ready(Err(ConnectionError::Closed)),
                Poll::Ready(_) => self.flush = Flush::Due,
                Poll::Pending => break,
            }
        }
        if self.flush == Flush::Due && stream.as_mut().poll_flush(context)?.is_ready() {
            self.flush = Flush::Done;
        }
        if self.received.capacity() - self.received.len() < LEAST_ROOM {
            self.received.reserve(READ_BUFFER);
        }
        poll_read_buf(stream, context, &mut self.received).map(|read| match read? {
            0 => Err(ConnectionError::Closed),
            _ => Ok(()),
        })
    }

    /// The next whole frame of what was received.
    ///
    /// # Errors
    /// When the bytes are not RESP3.
    pub fn decode(&mut self) -> Result<Option<Frame>, ConnectionError> {
        if self.received.is_empty() {
            return Ok(None);
        }
        Ok(decode_bytes_mut(&mut self.received)?.map(|(frame, ..)| frame))
    }

    /// Waits for the next frame, whatever it is. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn frame(&mut self) -> Result<Frame, ConnectionError> {
        loop {
            if let Some(frame) = self.decode()? {
                return Ok(frame);
            }
            self.read().await?;
        }
    }
}

/// A command is an array of texts.
fn encode<W: AsRef<[u8]>>(words: &[W], out: &mut BytesMut) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        let word = word.as_ref();
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests;
