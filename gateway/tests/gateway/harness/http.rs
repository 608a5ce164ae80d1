//! HTTP by hand: the tests send what no client library would.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PUBLISH_API_KEY;

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    /// From the head of an answer, without the empty line.
    pub fn parse_head(head: &str) -> Self {
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap();
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(':'));
        Self {
            status: status.unwrap_or_else(|| panic!("no status in {status_line:?}")),
            headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect(),
            body: String::new(),
        }
    }

    /// The value of a header that must not come twice.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "header {name} came twice");
        value
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Asserts the status, and that an error is a problem+json whose own status agrees.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        if status >= 400 {
            assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
            assert_eq!(self.json()["status"], status, "{self:?}");
        }
        self
    }

    /// The problem's machine-readable code.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_else(|| panic!("no code in {self:?}")).to_owned()
    }
}

/// Sends `bytes` and reads until the server closes. `None`: it closed, or reset, without an answer.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> Option<Response> {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        // A server that has seen enough answers and resets while we still write: the answer is what counts.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            answer.extend_from_slice(&chunk[..read]);
            if complete(&answer, bytes.starts_with(b"HEAD")) {
                break;
            }
        }
        answer
    };
    let answer = super::wait::within("an HTTP answer", Duration::from_secs(15), exchange).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut response = Response::parse_head(head);
    response.body = match response.header("transfer-encoding") {
        Some("chunked") => dechunk(body),
        _ => body.to_owned(),
    };
    Some(response)
}

/// Whether the answer is whole although the server keeps the connection open.
fn complete(answer: &[u8], head_only: bool) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let response = Response::parse_head(head);
    head_only
        || match (response.header("content-length"), response.header("transfer-encoding")) {
            (Some(length), _) => body.len() >= length.parse().unwrap(),
            (None, Some("chunked")) => body.ends_with("0\r\n\r\n"),
            (None, _) => response.status == 101,
        }
}

fn dechunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

pub async fn get(addr: SocketAddr, path: &str) -> Response {
    get_with(addr, path, &[]).await
}

pub async fn get_with(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Response {
    request(addr, "GET", path, headers, "").await
}

pub async fn request(addr: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body);
    raw(addr, text.as_bytes()).await.unwrap_or_else(|| panic!("{method} {path} was not answered"))
}

/// A POST as billing code in another language makes it: the right key, JSON.
pub async fn post(addr: SocketAddr, path: &str, body: &str) -> Response {
    let authorization = format!("Bearer {PUBLISH_API_KEY}");
    let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
    request(addr, "POST", path, &headers, body).await
}
