//! The moments at which a connection has to act by itself.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::context::Context;
use crate::shutdown::Turn;
use crate::socket::close::CloseReason;
use crate::tokens::{Claims, LEEWAY};

/// How long before its end a token is announced to expire; one that lives no longer than this, at half of its time.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(60);

pub struct Deadlines {
    pub presence: Presence,
    /// When the token ends.
    pub expires: Option<Instant>,
    /// When the client is told that the token ends; `None` once it was told.
    pub warn: Option<Instant>,
    /// Until when a message that has begun must be complete.
    pub complete_by: Option<Instant>,
    /// The turn in the drain's timetable.
    pub drained: Option<Box<Turn>>,
}

/// Whether the socket is in a room, and what is expected of the client.
pub enum Presence {
    /// In no room: a join, until then.
    Outside(Instant),
    /// In a room: a sign of life now and then, the last of which was heard at this moment.
    InRoom(Instant),
}

/// What is due.
pub enum Due {
    Nothing,
    Warn,
    Close(CloseReason),
}

impl Deadlines {
    /// Those of a socket that has just been opened.
    pub fn new(join_timeout: Duration) -> Self {
        let presence = Presence::Outside(Instant::now() + join_timeout);
        Self { presence, expires: None, warn: None, complete_by: None, drained: None }
    }

    /// The client has given a sign of life.
    pub fn heard(&mut self) {
        if let Presence::InRoom(heard) = &mut self.presence {
            *heard = Instant::now();
        }
    }

    /// Sets the deadlines of a token.
    pub fn set_token(&mut self, claims: Option<&Claims>) {
        let (now, life) = (Instant::now(), claims.map(lifetime));
        self.expires = life.map(|life| now + life);
        self.warn = life.map(|life| now + life.checked_sub(EXPIRY_WARNING).unwrap_or(life / 2));
    }

    /// The next moment to ask [`due`](Self::due).
    pub fn next(&self, context: &Context) -> Instant {
        let heartbeat = context.limits.heartbeat;
        let expected = match self.presence {
            Presence::Outside(join_by) => join_by,
            Presence::InRoom(heard) => heard + 2 * heartbeat,
        };
        let drained = self.drained.as_ref().map(|turn| turn.at);
        [self.warn, self.expires, self.complete_by, drained].into_iter().flatten().fold(expected, Instant::min)
    }

    pub fn due(&mut self, context: &Context) -> Due {
        let now = Instant::now();
        let past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(turn) = self.drained.as_ref().filter(|turn| turn.at <= now) {
            return Due::Close(CloseReason::Restart { retry_in_ms: turn.retry_in_ms });
        }
        if past(self.expires) {
            return Due::Close(CloseReason::TokenExpired);
        }
        if let Presence::Outside(join_by) = self.presence
            && join_by <= now
        {
            return Due::Close(CloseReason::JoinTimeout(context.limits.join_timeout.as_secs()));
        }
        if past(self.complete_by) {
            return Due::Close(CloseReason::Framing("a message was not completed in time"));
        }
        let heartbeat = context.limits.heartbeat;
        if let Presence::InRoom(heard) = &mut self.presence
            && now.saturating_duration_since(*heard) >= 2 * heartbeat
        {
            // When the gateway was held up, its Ping was late too: the client gets half an interval to answer it.
            let excused = context.clock.stall_ended().and_then(|at| at.checked_sub(heartbeat * 3 / 2));
            match excused.filter(|at| at > heard) {
                Some(at) => *heard = at,
                None => return Due::Close(CloseReason::HeartbeatMissed),
            }
        }
        if past(self.warn) { Due::Warn } else { Due::Nothing }
    }
}

/// How long a socket may live on a token. A distant end is cut to the longest timer and looked at again.
pub fn lifetime(claims: &Claims) -> Duration {
    let left = claims.remaining();
    // The token was accepted after its end, within the leeway for clocks that differ: it is good for the rest of the leeway.
    if left.is_zero() {
        (claims.expires_at + LEEWAY).duration_since(SystemTime::now()).unwrap_or_default()
    } else {
        left
    }
}
