//! A dashboard's socket: a real WebSocket client with a real token.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message as Frame};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::ledger::{Cursor, Entry, Ledger, Message};
use super::wait::{PATIENCE, within};

/// How a browser, or anything else, brings its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bring {
    Header,
    Subprotocol,
    Join,
}

impl Bring {
    pub const ALL: [Self; 3] = [Self::Header, Self::Subprotocol, Self::Join];
}

/// What comes next on the socket.
#[derive(Debug)]
pub enum Incoming {
    Message(Message),
    Closed(Option<u16>),
}

pub struct Dashboard {
    socket: WebSocketStream<TcpStream>,
    ledger: Ledger,
}

impl Dashboard {
    /// A socket that has shown no token yet.
    pub async fn open(addr: SocketAddr) -> Self {
        Self::connect(addr, &[]).await.unwrap_or_else(|error| panic!("the handshake failed: {error}")).0
    }

    /// A handshake with these headers on top; its answer too, for tests about the handshake.
    pub async fn connect(
        addr: SocketAddr,
        headers: &[(&'static str, &str)],
    ) -> Result<(Self, Response<Option<Vec<u8>>>), tungstenite::Error> {
        Self::connect_over(TcpStream::connect(addr).await?, headers).await
    }

    /// The same over a connection that the caller has prepared.
    pub async fn connect_over(
        stream: TcpStream,
        headers: &[(&'static str, &str)],
    ) -> Result<(Self, Response<Option<Vec<u8>>>), tungstenite::Error> {
        within("the handshake's answer", PATIENCE, Self::upgrade(stream, headers)).await
    }

    /// Without a limit: for followers, whose policy has one.
    pub async fn upgrade(
        stream: TcpStream,
        headers: &[(&'static str, &str)],
    ) -> Result<(Self, Response<Option<Vec<u8>>>), tungstenite::Error> {
        stream.set_nodelay(true)?;
        let mut request: Request<()> = format!("ws://{}/dashboard", stream.peer_addr()?).into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().expect("a header value"));
        }
        let (socket, response) = client_async(request, stream).await?;
        Ok((Self { socket, ledger: Ledger::default() }, response))
    }

    /// Opens a socket and brings `token` in the given way, without waiting for what comes of it.
    pub async fn bring(addr: SocketAddr, way: Bring, tenant: &str, token: &str) -> Self {
        let connected = match way {
            Bring::Header => Self::connect(addr, &[("authorization", &format!("Bearer {token}"))]).await,
            Bring::Subprotocol => {
                let offer = format!("crechebooks.dashboard.v1, bearer.{token}");
                Self::connect(addr, &[("sec-websocket-protocol", &offer)]).await
            }
            Bring::Join => Self::connect(addr, &[]).await,
        };
        let (mut dashboard, _) = connected.unwrap_or_else(|error| panic!("{way:?}: {error}"));
        if way == Bring::Join {
            dashboard.send_join(tenant, Some(token), None).await;
        }
        dashboard
    }

    /// Opens a socket and joins with a join message.
    pub async fn joined(addr: SocketAddr, tenant: &str, token: &str) -> Self {
        let mut dashboard = Self::open(addr).await;
        dashboard.join(tenant, token).await;
        dashboard
    }

    pub async fn send_text(&mut self, text: &str) {
        self.send(Frame::text(text)).await;
    }

    pub async fn send_json(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    /// A send that meets a closed socket is no failure: the close code will be read.
    pub async fn send(&mut self, frame: Frame) {
        let _ = within("the gateway reads", PATIENCE, self.socket.send(frame)).await;
    }

    pub async fn send_join(&mut self, tenant: &str, token: Option<&str>, resume: Option<&Cursor>) {
        let mut data = json!({ "tenantId": tenant });
        if let Some(token) = token {
            data["token"] = json!(token);
        }
        if let Some(cursor) = resume {
            data["lastSeq"] = json!(cursor.seq);
            data["epoch"] = json!(cursor.epoch);
        }
        self.send_json(json!({ "event": "join", "data": data })).await;
    }

    /// Joins, and returns the `joined` message.
    pub async fn join(&mut self, tenant: &str, token: &str) -> Message {
        self.send_join(tenant, Some(token), None).await;
        self.expect_joined(tenant).await
    }

    /// Joins where the cursor left off, and returns the `joined` message.
    pub async fn resume(&mut self, tenant: &str, token: &str, cursor: &Cursor) -> Message {
        self.send_join(tenant, Some(token), Some(cursor)).await;
        self.expect_joined(tenant).await
    }

    pub async fn expect_joined(&mut self, tenant: &str) -> Message {
        // A token near its end is announced at once, before the room has answered.
        let joined = self.first("joined", |message| !matches!(&*message.kind, "heartbeat" | "token_expiring")).await;
        assert_eq!(joined.kind, "joined", "{}", joined.raw);
        assert_eq!(joined.data["tenantId"], tenant);
        joined
    }

    pub async fn leave(&mut self) {
        self.send_json(json!({ "event": "leave" })).await;
        self.until("left").await;
    }

    /// Whatever comes next; the ledger has it too.
    pub async fn next(&mut self) -> Incoming {
        within("anything from the gateway", PATIENCE * 2, self.next_unbounded()).await
    }

    /// Without a limit: for followers, whose test sets one. Safe to cancel.
    pub async fn next_unbounded(&mut self) -> Incoming {
        loop {
            match self.socket.next().await {
                Some(Ok(Frame::Text(text))) => {
                    let message = Message::parse(&text);
                    self.ledger.record_message(&message);
                    return Incoming::Message(message);
                }
                Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => {}
                Some(Ok(Frame::Close(frame))) => return self.closed(frame.map(|frame| frame.code.into())),
                Some(Ok(other)) => panic!("the gateway sent {other:?}"),
                Some(Err(_)) | None => return self.closed(None),
            }
        }
    }

    fn closed(&mut self, code: Option<u16>) -> Incoming {
        self.ledger.record(Entry::Closed(code));
        Incoming::Closed(code)
    }

    /// The next message, whatever it is.
    pub async fn next_answer(&mut self) -> Message {
        self.first("an answer", |_| true).await
    }

    /// The next message that is no heartbeat.
    pub async fn next_message(&mut self) -> Message {
        self.first("a message", |message| message.kind != "heartbeat").await
    }

    /// Skips what doesn't match; heartbeats go on for ever, so the wait has an end of its own.
    async fn first(&mut self, what: &str, wanted: impl Fn(&Message) -> bool) -> Message {
        let begun = Instant::now();
        loop {
            match self.next().await {
                Incoming::Message(message) if wanted(&message) => return message,
                Incoming::Message(_) if begun.elapsed() < PATIENCE * 2 => {}
                Incoming::Message(_) => panic!("{what} never came; saw {}", self.ledger),
                Incoming::Closed(code) => panic!("closed with {code:?} before {what}; saw {}", self.ledger),
            }
        }
    }

    /// The next message, heartbeats aside, which must be of this type.
    pub async fn expect(&mut self, kind: &str) -> Message {
        let message = self.next_message().await;
        assert_eq!(message.kind, kind, "{}", message.raw);
        message
    }

    /// The next dashboard event, which nothing but heartbeats may precede.
    pub async fn next_event(&mut self) -> Message {
        let message = self.next_message().await;
        assert!(message.is_event(), "{}", message.raw);
        message
    }

    /// The next dashboard event, whatever comes before it.
    pub async fn until_event(&mut self) -> Message {
        self.first("an event", Message::is_event).await
    }

    /// Skips whatever comes before the next message of this type.
    pub async fn until(&mut self, kind: &str) -> Message {
        self.first(kind, |message| message.kind == kind).await
    }

    /// Proves that everything sent so far has been handled, and that the socket lives.
    pub async fn ping(&mut self) -> Message {
        self.send_json(json!({ "event": "ping" })).await;
        self.until("heartbeat").await
    }

    /// The code the gateway closes with, whatever it says before.
    pub async fn close_code(&mut self) -> u16 {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE * 2 {
            if let Incoming::Closed(code) = self.next().await {
                return code.unwrap_or_else(|| panic!("closed without a code; saw {}", self.ledger));
            }
        }
        panic!("never closed; saw {}", self.ledger)
    }

    /// An `error` with this code comes next.
    pub async fn expect_error(&mut self, code: &str) -> Message {
        let error = self.expect("error").await;
        assert_eq!(error.data["code"], code, "{}", error.raw);
        error
    }

    /// An `error`, then a close with this code, and nothing between.
    pub async fn expect_refusal(&mut self, code: u16) -> Message {
        let error = self.expect("error").await;
        match self.next().await {
            Incoming::Closed(got) => assert_eq!(got, Some(code), "after {}", error.raw),
            Incoming::Message(message) => panic!("after {}: {}", error.raw, message.raw),
        }
        error
    }

    /// True while no message but heartbeats comes for this long.
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.next_message()).await.is_err()
    }

    /// Goes on with the ledger of an earlier socket, as a page does that reconnects.
    pub fn continuing(mut self, ledger: Ledger) -> Self {
        self.ledger = ledger;
        self
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What it has seen since this was last taken.
    pub fn take_ledger(&mut self) -> Ledger {
        self.ledger.take()
    }

    pub fn cursor(&self) -> Cursor {
        self.ledger.cursor().expect("the dashboard is in a room")
    }

    /// Goes as a crash does: the gateway reads `ECONNRESET`.
    pub fn reset(self) {
        let _ = self.socket.get_ref().set_zero_linger();
    }

    /// Goes as a browser tab does: a Close, and its echo.
    pub async fn close(mut self) -> Ledger {
        let frame = CloseFrame { code: 1000.into(), reason: "".into() };
        let _ = self.socket.close(Some(frame)).await;
        let drained = async { while let Some(Ok(_)) = self.socket.next().await {} };
        let _ = tokio::time::timeout(Duration::from_secs(2), drained).await;
        self.ledger
    }
}
