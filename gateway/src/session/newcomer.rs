//! A client whose handshake is accepted: it gets a slot, and once its connection is upgraded, a task that serves it.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::choice::Choice;
use super::connection::Connection;
use super::context::Context;
use super::slots::Slot;
use crate::socket::close::{CloseReason, FullReason};
use crate::socket::dialect::Dialect;
use crate::socket::link::Link;
use crate::tokens::Claims;

/// All sockets of the gateway are taken.
#[derive(Debug)]
pub struct Full;

pub struct Newcomer {
    /// Given back when the upgrade fails.
    slot: Slot,
    /// What the token says, or why it is refused. The client is told on the socket, since browsers can't read the status of a
    /// failed handshake.
    claims: Result<Option<Claims>, CloseReason>,
    choice: Choice,
    from: Option<IpAddr>,
}

impl Newcomer {
    /// Takes a slot for a client that sends this token, if any. A refused token takes a slot too: its refusal needs a socket.
    ///
    /// # Errors
    /// [`Full`].
    pub async fn admit(
        context: &Context,
        token: Option<&str>,
        choice: Choice,
        from: Option<IpAddr>,
    ) -> Result<Self, Full> {
        let refusal = match token {
            None => None,
            Some(token) => match context.access.verify(token, from).await {
                Err(error) => Some(error.into()),
                Ok(claims) => match context.slots.take(context.slots.user(&claims, token)) {
                    Ok(slot) => return Ok(Self { slot, claims: Ok(Some(claims)), choice, from }),
                    Err(FullReason::Gateway) => return Err(Full),
                    Err(reason) => Some(CloseReason::Full(reason)),
                },
            },
        };
        let slot = context.slots.take_unverified().ok_or(Full)?;
        Ok(Self { slot, claims: refusal.map_or(Ok(None), Err), choice, from })
    }

    /// Serves the socket in a task of its own, once `upgraded` gives the connection and the bytes that came after its handshake.
    pub fn serve(
        self,
        context: Arc<Context>,
        dialect: Dialect,
        upgraded: impl Future<Output = Option<(TcpStream, Bytes)>> + Send + 'static,
    ) {
        let shutdown = context.shutdown.clone();
        // Boxed while it lasts: a task keeps the memory of its largest moment for as long as it lives.
        let opening = Box::pin(async move {
            let (stream, early) = upgraded.await?;
            Some(self.open(context, dialect, stream, early).await)
        });
        shutdown.spawn_socket(async move {
            if let Some((connection, begun)) = opening.await {
                connection.run(begun).await;
            }
        });
    }

    async fn open(
        self,
        context: Arc<Context>,
        dialect: Dialect,
        stream: TcpStream,
        early: Bytes,
    ) -> (Box<Connection>, Result<(), CloseReason>) {
        let link = Link::new(context.sockets.next(), dialect, stream, context.queues.clone());
        let (claims, refusal) = match self.claims {
            _ if !context.limits.realtime => (None, Some(CloseReason::Disabled)),
            Ok(claims) => (claims, None),
            Err(reason) => (None, Some(reason)),
        };
        let mut connection = Connection::new(context, link, self.slot, claims, self.from);
        let begun = match refusal {
            Some(reason) => Err(reason),
            None => connection.begin(self.choice, early).await,
        };
        (connection, begun)
    }
}
