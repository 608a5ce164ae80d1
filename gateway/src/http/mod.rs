//! HTTP on both ports: the accept loop, the public face and the internal one.

pub mod bearer;
pub mod internal;
pub mod problem;
pub mod public;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, interval_at};
use tracing::{debug, warn};

use crate::metrics::Metrics;
use crate::shutdown::spawn_brief;
use problem::Problem;

/// The head of a connection's first request must be complete within this, or the connection is cut: slow-loris.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that had an answer stays open for this long, until the head of its next request is complete. Balancers close idle
/// connections after a minute at most; a server that closes first loses them a request now and then.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// The largest request head; a token of 15 KiB passes.
const MAX_HEAD_BYTES: usize = 48 * 1024;
/// Connections that the kernel holds until they are accepted: a restart's worth of dashboards.
const BACKLOG: i32 = 4096;
/// The kernel's send buffer of a socket. Fixed, since it would otherwise grow to megabytes for a client that reads slowly.
const SEND_BUFFER: usize = 64 * 1024;
/// Wait after a failed accept, for descriptors to be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A cause that stays is logged this often.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// Limits of a port's connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections that are not (yet) WebSockets.
    pub requests: usize,
    /// How long written bytes may stay unacknowledged before the kernel gives the connection up.
    pub user_timeout: Duration,
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

/// Accepts connections for ever.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, metrics: Metrics) {
    let router = router.layer(middleware::from_fn(strict)).fallback(|| async { Problem::not_found() });
    let router = router.layer(middleware::from_fn_with_state(metrics.clone(), counted));
    let requests = Arc::new(Semaphore::new(limits.requests));
    let mut complained: Option<Instant> = None;
    loop {
        // One permit a connection, taken before it is accepted: what is beyond waits in the kernel, and costs us nothing.
        let Ok(permit) = requests.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                prepare(&stream, limits.user_timeout);
                spawn_brief(converse(stream, router.clone(), metrics.clone(), permit));
            }
            Err(error) if is_of_the_connection(&error) => {
                debug!(%error, "a connection was gone before it was accepted")
            }
            Err(error) => {
                // Descriptors that come free one at a time make it work in between.
                if complained.is_none_or(|at| at.elapsed() >= LOG_AGAIN) {
                    complained = Some(Instant::now());
                    warn!(%error, "accepting connections fails, trying again until it works");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// How far a connection is: it has yet to ask, is being answered, or was answered.
const NEW: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;

/// Speaks HTTP/1.1 with one client, until it leaves or becomes a WebSocket.
async fn converse(stream: TcpStream, router: Router, metrics: Metrics, permit: OwnedSemaphorePermit) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(KEEP_ALIVE).max_buf_size(MAX_HEAD_BYTES);
    let phase = Arc::new(AtomicU8::new(NEW));
    let (router, moves) = (TowerToHyperService::new(router), phase.clone());
    let service = service_fn(move |request| {
        moves.store(BUSY, Ordering::Relaxed);
        let (answer, moves) = (router.call(request), moves.clone());
        async move {
            let answer = answer.await;
            moves.store(IDLE, Ordering::Relaxed);
            answer
        }
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let mut tick = interval_at(Instant::now() + HEADER_TIMEOUT, HEADER_TIMEOUT);
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            _ = tick.tick() => match phase.load(Ordering::Relaxed) {
                NEW => {
                    debug!("no request came in time");
                    return metrics.answered(StatusCode::REQUEST_TIMEOUT);
                }
                // Idle connections must not keep new ones out.
                IDLE if permit.semaphore().available_permits() == 0 => connection.as_mut().graceful_shutdown(),
                _ => {}
            },
        }
    };
    if let Err(error) = ended {
        // Scanners and broken clients: counted, and otherwise of no interest to anybody but who looks for it.
        debug!(%error, "connection ended");
        if let Some(status) = never_a_request(&error) {
            metrics.answered(status);
        }
    }
}

/// The status for what ended before it was a request; hyper answers some of it by itself.
fn never_a_request(error: &hyper::Error) -> Option<StatusCode> {
    match () {
        () if error.is_parse_too_large() => Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        () if error.is_parse() => Some(StatusCode::BAD_REQUEST),
        () => None,
    }
}

fn prepare(stream: &TcpStream, user_timeout: Duration) {
    let socket = SockRef::from(stream);
    let set = socket.set_nodelay(true).and_then(|()| socket.set_tcp_user_timeout(Some(user_timeout)));
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

/// Refuses what a load balancer and a server could understand differently (request smuggling), and tokens in the URL.
async fn strict(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let refuse = |detail| Problem::bad_request("bad_request", detail).with_header(CONNECTION, "close").into_response();
    match headers.get_all(HOST).into_iter().count() {
        1 => {}
        // HTTP/1.0 has no Host; simple health checks speak it.
        0 if request.version() == Version::HTTP_10 => {}
        _ => return refuse("Host must be sent once"),
    }
    if request.uri().authority().is_some() {
        return refuse("the request target must be a path");
    }
    if headers.contains_key(CONTENT_LENGTH) && headers.contains_key(TRANSFER_ENCODING) {
        return refuse("Content-Length and Transfer-Encoding exclude each other");
    }
    let body =
        headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    if request.method() == Method::GET && body {
        return refuse("a GET has no body");
    }
    if request.uri().query().is_some_and(bearer::in_query) {
        return refuse("a token must not be in the URL: use Authorization: Bearer");
    }
    next.run(request).await
}
