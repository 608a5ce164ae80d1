//! One socket's task: reads what the browser sends, watches its deadlines, and closes it.
//!
//! It sleeps while events are delivered: they are written by the room's shard (see [`crate::socket::link`]). It wakes for what the
//! browser sends, for a deadline, for a backlog that must be written, and when the room closes the socket.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use publisher::TenantId;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::allowance::Allowance;
use super::choice::Choice;
use super::closing;
use super::context::Context;
use super::deadlines::{Deadlines, Due, EXPIRY_WARNING, Presence, lifetime};
use super::slots::Slot;
use crate::engine::Position;
use crate::hub::{Departure, Join};
use crate::socket::close::{CloseReason, FullReason};
use crate::socket::dialect::Outgoing;
use crate::socket::frame::{self, Chunk, Incoming, Reader};
use crate::socket::link::{Link, OwnLink};
use crate::socket::protocol::{self, ClientMessage, JoinRequest, ServerMessage};
use crate::tokens::Claims;

/// Taken from the kernel at once, on the stack: no socket has a buffer of its own.
const READ_BYTES: usize = 4096;
/// Bad messages that end a socket.
const MAX_VIOLATIONS: u32 = 5;
/// How long a message may take from its first byte to its last.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A socket after its handshake.
pub struct Connection {
    context: Arc<Context>,
    link: OwnLink,
    slot: Slot,
    reader: Reader,
    allowance: Allowance,
    violations: u32,
    claims: Option<Claims>,
    /// The client's address.
    from: Option<IpAddr>,
    /// The room that writes to the link; `None` while this task does.
    room: Option<TenantId>,
    opened: Instant,
    deadlines: Deadlines,
}

impl Connection {
    /// A socket that has just been upgraded, with the claims of the handshake's token. Boxed, since every future that it is moved into
    /// would have space for it.
    pub fn new(
        context: Arc<Context>,
        link: Link,
        slot: Slot,
        claims: Option<Claims>,
        from: Option<IpAddr>,
    ) -> Box<Self> {
        let now = Instant::now();
        let deadlines = Deadlines::new(context.limits.join_timeout);
        let link = Arc::new(link);
        slot.attach(&link);
        let reader = Reader::new(context.limits.max_message_bytes);
        let mut connection = Box::new(Self {
            context,
            link: OwnLink(link),
            slot,
            reader,
            allowance: Allowance::new(now),
            violations: 0,
            claims: None,
            from,
            room: None,
            opened: now,
            deadlines,
        });
        connection.identify(claims);
        connection
    }

    /// Serves the socket, which has [begun](Self::begin), to its end.
    pub async fn run(mut self: Box<Self>, begun: Result<(), CloseReason>) {
        let reason = match begun {
            Ok(()) => self.serve().await,
            Err(reason) => reason,
        };
        debug!(reason = reason.label(), "socket closed");
        if matches!(reason, CloseReason::HeartbeatMissed) {
            self.context.metrics.heartbeat_timed_out();
        }
        self.context.metrics.disconnected(reason.label(), self.opened.elapsed());
        Box::pin(self.close(reason)).await;
    }

    /// Joins at once when the handshake names a room, then reads `early`, the bytes that came with the handshake.
    ///
    /// # Errors
    /// Why the socket must close.
    pub async fn begin(&mut self, choice: Choice, early: Bytes) -> Result<(), CloseReason> {
        let entered = self.enter_chosen(choice).await;
        entered.inspect_err(|reason| self.context.metrics.join_refused(reason.label()))?;
        let mut chunk = Chunk::default();
        let fed = self.reader.feed(&mut early.to_vec(), &mut chunk);
        Box::pin(self.hear(chunk, fed)).await
    }

    async fn enter_chosen(&mut self, choice: Choice) -> Result<(), CloseReason> {
        let Some(claims) = &self.claims else { return Ok(()) };
        let tenant = match (choice.tenant, &claims.tenants[..]) {
            (Some(tenant), _) if claims.grants(&tenant) => tenant,
            (Some(_), _) => return Err(CloseReason::WrongTenant),
            (None, [tenant]) => tenant.clone(),
            (None, several) => return self.say(&protocol::tenant_required(several)).await,
        };
        if self.context.access.is_revoked(&tenant, claims, self.from) {
            return Err(CloseReason::Kicked);
        }
        self.enter(tenant, choice.resume).await
    }

    async fn serve(&mut self) -> CloseReason {
        loop {
            let context = &self.context;
            tokio::select! {
                biased;
                () = self.link.woken() => {}
                () = context.shutdown.draining(), if self.deadlines.drained.is_none() => {
                    self.deadlines.drained = Some(Box::new(context.shutdown.turn()));
                }
                () = context.shutdown.hurried() => return CloseReason::GoingAway,
                ready = self.link.ready() => if ready.is_err() { return CloseReason::Lost },
                () = sleep_until(self.deadlines.next(context)) => {}
            }
            match self.step().await {
                Ok(()) => {}
                Err(reason) => return reason,
            }
        }
    }

    /// Does whatever there is to do.
    async fn step(&mut self) -> Result<(), CloseReason> {
        self.check_closed()?;
        self.link.drain().map_err(|_| CloseReason::Lost)?;
        self.read().await?;
        match self.deadlines.due(&self.context) {
            Due::Nothing => Ok(()),
            // A timer can't be set for years: this may be the end of the timer and not of the token.
            Due::Close(CloseReason::TokenExpired)
                if self.claims.as_ref().is_some_and(|claims| !claims.remaining().is_zero()) =>
            {
                self.deadlines.expires = self.claims.as_ref().map(|claims| Instant::now() + lifetime(claims));
                Ok(())
            }
            Due::Warn if self.claims.as_ref().is_some_and(|claims| claims.remaining() > EXPIRY_WARNING) => {
                self.deadlines.set_token(self.claims.as_ref());
                Ok(())
            }
            Due::Warn => {
                let left =
                    self.deadlines.expires.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
                self.deadlines.warn = None;
                let expiring = protocol::token_expiring(left.as_secs_f64().ceil() as u64);
                Box::pin(self.say(&expiring)).await
            }
            Due::Close(reason) => Err(reason),
        }
    }

    async fn read(&mut self) -> Result<(), CloseReason> {
        let mut chunk = Chunk::default();
        let fed = match self.receive(&mut chunk) {
            Ok(fed) => fed,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(_) => return Err(CloseReason::Lost),
        };
        // Boxed while it lasts: a silent socket should not keep the memory that a message needs.
        Box::pin(self.hear(chunk, fed)).await
    }

    /// Reads into the stack; kept apart so that the buffer is no part of the task.
    fn receive(&mut self, chunk: &mut Chunk) -> std::io::Result<Result<(), CloseReason>> {
        let mut buffer = [0; READ_BYTES];
        let read = self.link.read(&mut buffer)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.deadlines.heard();
        Ok(self.reader.feed(&mut buffer[..read], chunk))
    }

    /// Acts on what the browser sent; `fed` says how reading it ended.
    async fn hear(&mut self, chunk: Chunk, fed: Result<(), CloseReason>) -> Result<(), CloseReason> {
        self.deadlines.complete_by = self
            .reader
            .midway()
            .then(|| self.deadlines.complete_by.unwrap_or_else(|| Instant::now() + MESSAGE_TIMEOUT));
        if !self.allowance.spend(chunk.cost, Instant::now()) {
            return Err(CloseReason::TooManyMessages);
        }
        // Many pings that came together are answered with one pong, for the last of them (RFC 6455 §5.5.3).
        let last_ping = chunk.incoming.iter().rposition(|incoming| matches!(incoming, Incoming::Ping(_)));
        for (index, incoming) in chunk.incoming.into_iter().enumerate() {
            match incoming {
                Incoming::Text(text) => self.message(&text).await?,
                Incoming::Ping(payload) if Some(index) == last_ping => self.send(frame::pong(&payload)).await?,
                Incoming::Ping(_) | Incoming::Pong => {}
                Incoming::Close(code) => return Err(CloseReason::Client(code)),
            }
        }
        fed
    }

    async fn message(&mut self, text: &str) -> Result<(), CloseReason> {
        match self.link.dialect.parse(text) {
            Ok(ClientMessage::Join(request)) => self.join(request).await,
            Ok(ClientMessage::Leave) => {
                self.demand_reader()?;
                if self.exit(Departure::Announced).await {
                    self.deadlines.presence = Presence::Outside(Instant::now() + self.context.limits.join_timeout);
                }
                Ok(())
            }
            Ok(ClientMessage::Ping) => match &self.room {
                Some(tenant) => {
                    self.context.hub.beat(tenant, &self.link).await;
                    Ok(())
                }
                None => self.say(&protocol::heartbeat(None)).await,
            },
            Err(bad) => {
                self.violations += 1;
                self.context.metrics.message_refused(bad.code());
                self.say(&protocol::refused(&bad)).await?;
                if self.violations < MAX_VIOLATIONS { Ok(()) } else { Err(CloseReason::BadMessages) }
            }
        }
    }

    /// Joins, renews or switches.
    async fn join(&mut self, request: JoinRequest) -> Result<(), CloseReason> {
        let result = self.try_join(request).await;
        if let Err(reason) = &result {
            self.context.metrics.join_refused(reason.label());
        }
        result
    }

    async fn try_join(&mut self, request: JoinRequest) -> Result<(), CloseReason> {
        self.demand_reader()?;
        let tenant = TenantId::try_from(request.tenant).ok();
        let renewal = tenant.is_some() && tenant == self.room;
        let claims = match &request.token {
            Some(token) => self.context.access.verify(token, self.from).await?,
            None => self.claims.clone().ok_or(CloseReason::Unauthorized("join needs a token"))?,
        };
        let subject = self.claims.as_ref().map(|claims| &claims.subject);
        if renewal && subject.is_some_and(|subject| *subject != claims.subject) {
            return Err(CloseReason::Unauthorized("the token is another user's"));
        }
        let Some(tenant) = tenant.filter(|tenant| claims.grants(tenant)) else {
            return Err(CloseReason::WrongTenant);
        };
        if self.context.access.is_revoked(&tenant, &claims, self.from) {
            return Err(CloseReason::Kicked);
        }
        let issued_at = claims.issued_at;
        if let Some(token) = &request.token {
            let user = self.context.slots.user(&claims, token);
            self.slot.verify(user).map_err(CloseReason::Full)?;
            self.identify(Some(claims));
        }
        if renewal {
            self.context.hub.renewed(&tenant, &self.link, issued_at).await;
        } else {
            self.exit(Departure::Announced).await;
            // The old room may have closed the link while the join was on its way here: the new room must not get it.
            self.check_closed()?;
            self.enter(tenant, request.resume).await?;
        }
        Ok(())
    }

    /// A client that asks for another answer must have read the last one.
    fn demand_reader(&self) -> Result<(), CloseReason> {
        if self.link.owes_answer() { Err(CloseReason::SlowConsumer) } else { Ok(()) }
    }

    /// Whether the room has closed the socket.
    fn check_closed(&self) -> Result<(), CloseReason> {
        self.link.close_reason().map_or(Ok(()), Err)
    }

    /// Takes over the claims of a token. A token with the same end as the last one sets no deadline: the client was told of that end already,
    /// or will be. A client that answers `token_expiring` with the same token would otherwise be told again at once.
    fn identify(&mut self, claims: Option<Claims>) {
        let end = |claims: &Option<Claims>| claims.as_ref().map(|claims| claims.expires_at);
        if end(&claims) != end(&self.claims) {
            self.deadlines.set_token(claims.as_ref());
        }
        self.claims = claims;
    }

    /// Joins a room when it is its turn; the room writes to the link from then on.
    async fn enter(&mut self, tenant: TenantId, resume: Option<Position>) -> Result<(), CloseReason> {
        let permit = tokio::select! {
            biased;
            permit = self.context.hub.turn() => permit.ok_or(CloseReason::Full(FullReason::Joins))?,
            // The drain closes the socket soon.
            () = self.context.shutdown.draining() => return Ok(()),
        };
        // The room's Pings start the clock.
        self.deadlines.presence = Presence::InRoom(Instant::now());
        let (subject, issued_at) =
            self.claims.as_ref().map_or((None, 0), |claims| (claims.subject.clone(), claims.issued_at));
        let join = Join { link: self.link.clone(), subject, issued_at, resume, permit };
        self.room = Some(tenant.clone());
        self.context.hub.join(&tenant, join).await;
        Ok(())
    }

    /// Leaves the room, if in one; from then on this task writes to the link.
    async fn exit(&mut self, departure: Departure) -> bool {
        let Some(tenant) = self.room.take() else { return false };
        self.context.hub.leave(&tenant, &self.link, departure).await;
        true
    }

    async fn say(&self, message: &ServerMessage) -> Result<(), CloseReason> {
        self.send(self.link.dialect.encode(&Outgoing::Message(message))).await
    }

    /// Sends frames through the writer of the link: the room, while the socket is in one.
    async fn send(&self, frames: Bytes) -> Result<(), CloseReason> {
        match &self.room {
            Some(tenant) => self.context.hub.tell(tenant, &self.link, frames).await,
            None => self.link.write(&frames, 1).map_err(|_| CloseReason::SlowConsumer)?,
        }
        Ok(())
    }

    /// Leaves the room and closes the socket.
    async fn close(mut self: Box<Self>, reason: CloseReason) {
        self.exit(Departure::Silent).await;
        let Self { link, slot, .. } = *self;
        closing::close(&link, slot, &reason).await;
    }
}

/// Every idle socket has one; the allocator adds 8 bytes and rounds up to 16.
const _: () = assert!(size_of::<Connection>() <= 312);
