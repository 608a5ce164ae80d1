//! The server of a port: accepts connections, gives each a seat, and speaks HTTP/1.1 with it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use http::header::{CONNECTION, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use publisher::internals::LogThrottle;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tower_http::set_header::SetResponseHeaderLayer;
use tracing::{debug, warn};

use super::address::ClientAddress;
use super::heads::{Ambiguous, Heads};
use super::problem::Problem;
use super::seats::{Exchange, Seat, Seats};
use super::stream::WatchedStream;
use super::strict::strict;
use crate::config::{Proxies, Settings};
use crate::metrics::Metrics;
use crate::shutdown::spawn_brief;

/// A connection that had an answer stays open for this long, until the head of its next request is complete. Balancers close idle
/// connections after a minute at most; a server that closes first loses them a request now and then.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Requests of one connection; the last answer closes it.
const MAX_REQUESTS: usize = 1000;
/// The largest request head; a token of 15 KiB passes.
const MAX_HEAD_BYTES: usize = 48 * 1024;
/// Connections that the kernel holds until they are accepted: a restart's worth of dashboards.
const BACKLOG: i32 = 4096;
/// The kernel's send buffer of a socket. Fixed, since it would otherwise grow to megabytes for a client that reads slowly.
const SEND_BUFFER: usize = 64 * 1024;
/// Wait after a failed accept, for descriptors to be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits of a port's connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections that are not (yet) WebSockets.
    pub seats: usize,
    /// How long written bytes may stay unacknowledged before the kernel gives the connection up.
    pub user_timeout: Duration,
    /// Load balancers that are trusted to name a client's address.
    pub proxies: Proxies,
}

impl Limits {
    /// Those of the configuration, for a port with so many seats.
    pub fn of(settings: &Settings, seats: usize) -> Self {
        Self { seats, user_timeout: 2 * settings.limits.heartbeat, proxies: settings.proxies.clone() }
    }
}

/// Opens a port.
///
/// # Errors
/// When the address is taken or not ours.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Inherited by every accepted connection.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What every connection of a port needs.
#[derive(Clone)]
struct Port {
    router: Router,
    limits: Limits,
    metrics: Metrics,
}

/// Accepts connections for ever.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, metrics: Metrics) {
    let nosniff = SetResponseHeaderLayer::if_not_present(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let router = router.fallback(|| async { Problem::not_found() }).layer(middleware::from_fn(strict));
    let router = router.layer(nosniff).layer(middleware::from_fn_with_state(metrics.clone(), counted));
    let seats = Seats::new(limits.seats);
    let port = Port { router, limits, metrics };
    tokio::join!(accept(listener, port, &seats), seats.close_overdue());
}

async fn accept(listener: TcpListener, port: Port, seats: &Seats) {
    // Accepting may work in between, as descriptors come free one at a time: a failure is logged once a minute all the same.
    let mut throttle = LogThrottle::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                prepare(&stream, port.limits.user_timeout);
                let seat = seats.take(|| {
                    if let Some(closed) = throttle.count("seats") {
                        warn!(
                            closed,
                            seats = port.limits.seats,
                            "HTTP connections are short, the longest idle are closed"
                        );
                    }
                });
                let Some(seat) = seat.await else { return };
                spawn_brief(converse(stream, peer, port.clone(), seat));
            }
            Err(error) if is_of_the_connection(&error) => {
                debug!(%error, "a connection was gone before it was accepted")
            }
            Err(error) => {
                if throttle.is_due("accept") {
                    warn!(%error, "accepting connections fails, trying again until it works");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Speaks HTTP/1.1 with one client, until it leaves, becomes a WebSocket or loses its seat.
async fn converse(stream: TcpStream, peer: SocketAddr, port: Port, seat: Seat) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(KEEP_ALIVE).max_buf_size(MAX_HEAD_BYTES);
    let (heads, exchange) = (Heads::default(), seat.exchange.clone());
    let answering = Answering {
        ambiguous: heads.ambiguous(),
        router: TowerToHyperService::new(port.router),
        proxies: port.limits.proxies,
        peer,
        exchange: exchange.clone(),
        requests: AtomicUsize::new(0),
    };
    let service = service_fn(move |request| answering.answer(request));
    let stream = TokioIo::new(WatchedStream::new(stream, exchange.clone(), heads));
    let connection = pin!(http.serve_connection(stream, service).with_upgrades());
    let ended = tokio::select! {
        ended = connection => ended,
        () = exchange.closed() => {
            if !exchange.was_asked() {
                debug!("no request came in time");
                port.metrics.answered(StatusCode::REQUEST_TIMEOUT);
            }
            return;
        }
    };
    if let Err(error) = ended {
        // Scanners and broken clients: they are counted, and logged only for debugging.
        debug!(%error, "connection ended");
        if let Some(status) = never_a_request(&error) {
            port.metrics.answered(status);
        }
    }
}

/// A connection's requests.
struct Answering {
    router: TowerToHyperService<Router>,
    proxies: Proxies,
    peer: SocketAddr,
    ambiguous: Ambiguous,
    exchange: Arc<Exchange>,
    requests: AtomicUsize,
}

impl Answering {
    fn answer(
        &self,
        mut request: http::Request<Incoming>,
    ) -> impl Future<Output = Result<Response, Infallible>> + use<> {
        self.exchange.asked();
        let last = self.requests.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_REQUESTS;
        let client = ClientAddress::determine(&self.proxies, self.peer.ip(), request.headers());
        request.extensions_mut().insert(client);
        request.extensions_mut().insert(self.ambiguous.clone());
        let (answer, exchange) = (self.router.call(request), self.exchange.clone());
        async move {
            let mut answer = answer.await?;
            // An upgrade is the connection's last request anyway, and needs this header for itself.
            if last && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            exchange.answered();
            Ok(answer)
        }
    }
}

/// Whether a request says that its body is JSON.
pub fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// The status for what ended before it was a request; hyper answers some of it by itself.
fn never_a_request(error: &hyper::Error) -> Option<StatusCode> {
    match () {
        () if error.is_parse_too_large() => Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        () if error.is_parse() => Some(StatusCode::BAD_REQUEST),
        () => None,
    }
}

/// Ends a connection whose peer acknowledges nothing for so long.
#[cfg(target_os = "linux")]
fn end_when_silent(socket: &SockRef<'_>, silence: Duration) -> io::Result<()> {
    socket.set_tcp_user_timeout(Some(silence))
}

/// Without TCP_USER_TIMEOUT, probes find at least a peer that is gone while nothing is sent.
#[cfg(not(target_os = "linux"))]
fn end_when_silent(socket: &SockRef<'_>, silence: Duration) -> io::Result<()> {
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(silence).with_interval(silence))
}

fn prepare(stream: &TcpStream, user_timeout: Duration) {
    let socket = SockRef::from(stream);
    let set = socket.set_nodelay(true).and_then(|()| end_when_silent(&socket, user_timeout));
    if let Err(error) = set {
        debug!(%error, "socket options were refused");
    }
}

/// Errors of `accept` that concern the one connection, not the listener (`accept(2)`).
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

async fn counted(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    metrics.answered(response.status());
    response
}
