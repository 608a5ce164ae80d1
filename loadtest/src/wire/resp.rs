//! A plain Redis connection (RESP2) for commands that a client library hides: kills, channel lists, a bare subscription.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};

/// A reply, RESP2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Array(Vec<Value>),
    Nil,
}

impl Value {
    /// The elements of an array; none for anything else.
    pub fn items(&self) -> &[Value] {
        match self {
            Self::Array(items) => items,
            _ => &[],
        }
    }

    /// The bytes of a bulk string; none for anything else.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bulk(bytes) => bytes,
            _ => &[],
        }
    }

    /// The first value in `bytes` and its length; `None` while the value is incomplete.
    fn parse(bytes: &[u8]) -> io::Result<Option<(Self, usize)>> {
        let Some(end) = memchr::memmem::find(bytes, b"\r\n") else { return Ok(None) };
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "Redis sent invalid RESP2");
        let line = str::from_utf8(&bytes[..end]).map_err(|_| malformed())?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(malformed)?;
        let number = || rest.parse::<i64>().map_err(|_| malformed());
        let after = end + 2;
        let value = match kind {
            "+" => Self::Simple(rest.to_owned()),
            "-" => Self::Error(rest.to_owned()),
            ":" => Self::Integer(number()?),
            "$" => {
                let Ok(length) = usize::try_from(number()?) else { return Ok(Some((Self::Nil, after))) };
                if bytes.len() < after + length + 2 {
                    return Ok(None);
                }
                return Ok(Some((Self::Bulk(bytes[after..after + length].to_vec()), after + length + 2)));
            }
            "*" => {
                let Ok(length) = usize::try_from(number()?) else { return Ok(Some((Self::Nil, after))) };
                let (mut items, mut used) = (Vec::new(), after);
                for _ in 0..length {
                    let Some((item, size)) = Self::parse(&bytes[used..])? else { return Ok(None) };
                    items.push(item);
                    used += size;
                }
                return Ok(Some((Self::Array(items), used)));
            }
            _ => return Err(malformed()),
        };
        Ok(Some((value, after)))
    }
}

/// One connection. Replies come in the order of the commands.
pub struct RedisConnection {
    stream: TcpStream,
    received: Vec<u8>,
    parsed: usize,
}

impl RedisConnection {
    /// Longest wait for a reply.
    const REPLY_LIMIT: Duration = Duration::from_secs(5);

    /// Connects to `redis://[[user]:password@]host[:port]`.
    pub fn open(url: &str) -> anyhow::Result<Self> {
        let rest = url.strip_prefix("redis://").context("only redis:// URLs are supported here")?;
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let host = rest.split('/').next().unwrap_or_default();
        let address = if host.contains(':') { host.to_owned() } else { format!("{host}:6379") };
        let stream = TcpStream::connect(&address).with_context(|| format!("Redis at {address}"))?;
        stream.set_read_timeout(Some(Self::REPLY_LIMIT))?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream, received: Vec::new(), parsed: 0 };
        if let Some((user, password)) = login.and_then(|login| login.split_once(':')) {
            let user = if user.is_empty() { "default" } else { user };
            connection.command(&["AUTH", user, password])?;
        }
        Ok(connection)
    }

    /// Sends one command and waits for its reply. An error reply is an error.
    pub fn command(&mut self, words: &[&str]) -> anyhow::Result<Value> {
        self.send(words)?;
        self.reply()
    }

    /// Sends a command without waiting for its [`reply`](Self::reply).
    pub fn send(&mut self, words: &[&str]) -> io::Result<()> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.stream.write_all(command.as_bytes())
    }

    /// The next reply. An error reply is an error.
    pub fn reply(&mut self) -> anyhow::Result<Value> {
        loop {
            match self.parsed()? {
                Some(Value::Error(error)) => bail!("Redis refused: {error}"),
                Some(value) => return Ok(value),
                None => self.receive()?,
            }
        }
    }

    /// The next complete value among the received bytes.
    pub fn parsed(&mut self) -> io::Result<Option<Value>> {
        let Some((value, used)) = Value::parse(&self.received[self.parsed..])? else {
            self.received.drain(..self.parsed);
            self.parsed = 0;
            return Ok(None);
        };
        self.parsed += used;
        Ok(Some(value))
    }

    /// Reads once.
    pub fn receive(&mut self) -> io::Result<()> {
        let held = self.received.len();
        self.received.resize(held + 64 * 1024, 0);
        let read = self.stream.read(&mut self.received[held..]);
        self.received.truncate(held + read.as_ref().map_or(0, |&size| size));
        if read? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "Redis closed the connection"));
        }
        Ok(())
    }

    /// The socket, to wait for its readability together with others.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_reply_is_read_only_when_it_is_complete() {
        let raw = b"*4\r\n$7\r\nmessage\r\n:-1\r\n$-1\r\n*1\r\n+OK\r\n";
        let (value, used) = Value::parse(raw).unwrap().unwrap();
        assert_eq!(used, raw.len());
        let inner = Value::Array(vec![Value::Simple("OK".into())]);
        assert_eq!(value, Value::Array(vec![Value::Bulk(b"message".to_vec()), Value::Integer(-1), Value::Nil, inner]));
        for cut in 0..raw.len() {
            assert_eq!(Value::parse(&raw[..cut]).unwrap(), None);
        }
    }
}
