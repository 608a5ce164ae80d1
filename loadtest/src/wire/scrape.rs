//! Reads a gateway's metrics from its internal port.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context;

/// One answer of `/metrics`.
pub struct Scrape(String);

impl Scrape {
    /// Scrapes `host:port`.
    pub fn of(internal: &str) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(internal).with_context(|| format!("the internal port at {internal}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {internal}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("reading the metrics")?;
        anyhow::ensure!(answer.starts_with("HTTP/1.1 200 "), "{internal} does not answer /metrics with 200");
        Ok(Self(answer))
    }

    /// The value of a metric without labels.
    pub fn value(&self, name: &str) -> anyhow::Result<f64> {
        let value = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse().ok()).with_context(|| format!("the gateway has no metric {name}"))
    }
}
