//! Why a socket closes: a variant for each reason, with its close code.

use crate::tokens::TokenError;

/// Why the gateway closes a socket.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CloseReason {
    /// The browser closed first, with this code.
    #[error("closed by the client")]
    Client(u16),
    /// The transport broke: nothing can be sent any more.
    #[error("the connection broke")]
    Lost,
    /// The gateway leaves at once.
    #[error("the gateway is going away")]
    GoingAway,
    /// RFC 6455 was violated.
    #[error("broken framing: {0}")]
    Framing(&'static str),
    /// A binary frame.
    #[error("only text frames are understood")]
    Binary,
    /// A text message or a close reason that isn't UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// A message beyond `MAX_MESSAGE_BYTES`.
    #[error("a message is larger than {0} bytes")]
    TooBig(usize),
    /// The gateway restarts; the client returns after this many milliseconds.
    #[error("the gateway restarts")]
    Restart {
        /// This client's own moment to come back.
        retry_in_ms: u64,
    },
    /// No slot is left.
    #[error("{0}")]
    Full(FullReason),
    /// The issuer of tokens was away when the gateway started, and its keys have not come yet.
    #[error("tokens can't be checked yet")]
    NoKeys,
    /// Too many messages that make no sense.
    #[error("too many bad messages")]
    BadMessages,
    /// The token is missing or bad.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// The token has reached its end.
    #[error("the token has expired")]
    TokenExpired,
    /// An operator closed the sockets of this tenant or user.
    #[error("disconnected by an operator")]
    Kicked,
    /// The token's tenant claim can't be used.
    #[error("the token names no tenant that can be used")]
    UnusableClaim,
    /// The token is good, for other tenants. The text is the same whether the tenant exists or not.
    #[error("the token does not name this tenant")]
    WrongTenant,
    /// No join came in time.
    #[error("no join within {0} s")]
    JoinTimeout(u64),
    /// The client showed no sign of life for two heartbeats.
    #[error("no answer to heartbeats")]
    HeartbeatMissed,
    /// The client reads more slowly than its centre's events come.
    #[error("the socket fell too many events behind; resume to catch up")]
    SlowConsumer,
    /// More messages than a dashboard sends.
    #[error("too many messages")]
    TooManyMessages,
    /// `REALTIME_DASHBOARD` is off.
    #[error("real-time updates are off")]
    Disabled,
}

/// Which limit is reached.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum FullReason {
    /// `MAX_CONNECTIONS`.
    #[error("this gateway is full")]
    Gateway,
    /// `MAX_CONNECTIONS_PER_TENANT`.
    #[error("this tenant has too many dashboards open")]
    Tenant,
    /// `MAX_CONNECTIONS_PER_USER`.
    #[error("this user has too many dashboards open")]
    User,
    /// The join's turn did not come in time.
    #[error("too many dashboards join at once")]
    Joins,
}

impl CloseReason {
    /// The WebSocket close code.
    pub fn code(&self) -> u16 {
        match self {
            Self::Client(code) => *code,
            Self::Lost => 1006,
            Self::GoingAway => 1001,
            Self::Framing(_) => 1002,
            Self::Binary => 1003,
            Self::NotUtf8 => 1007,
            Self::TooBig(_) => 1009,
            Self::Restart { .. } => 1012,
            Self::Full(_) | Self::NoKeys => 1013,
            Self::BadMessages => 4400,
            Self::Unauthorized(_) | Self::TokenExpired | Self::Kicked => 4401,
            Self::UnusableClaim | Self::WrongTenant => 4403,
            Self::JoinTimeout(_) => 4408,
            Self::HeartbeatMissed => 4409,
            Self::SlowConsumer => 4413,
            Self::TooManyMessages => 4429,
            Self::Disabled => 4503,
        }
    }

    /// The fixed word for metrics, logs and the `error` message.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Client(_) => "client",
            Self::Lost => "lost",
            Self::GoingAway => "going_away",
            Self::Framing(_) => "framing",
            Self::Binary => "binary",
            Self::NotUtf8 => "not_utf8",
            Self::TooBig(_) => "too_big",
            Self::Restart { .. } => "restart",
            Self::Full(_) => "full",
            Self::NoKeys => "keys",
            Self::BadMessages => "bad_message",
            Self::Unauthorized(_) => "unauthorized",
            Self::TokenExpired => "token_expired",
            Self::Kicked => "kicked",
            Self::UnusableClaim => "unusable_claim",
            Self::WrongTenant => "wrong_tenant",
            Self::JoinTimeout(_) => "join_timeout",
            Self::HeartbeatMissed => "heartbeat_missed",
            Self::SlowConsumer => "slow_consumer",
            Self::TooManyMessages => "too_many_messages",
            Self::Disabled => "disabled",
        }
    }

    /// How long the client should wait before it returns, where the gateway paces the return.
    pub fn retry_in_ms(&self) -> Option<u64> {
        match self {
            Self::Restart { retry_in_ms } => Some(*retry_in_ms),
            Self::Full(_) | Self::NoKeys => Some(rand::random_range(1_000..5_000)),
            _ => None,
        }
    }

    /// Whether events that still wait for the socket must not be sent any more, or will never be read.
    pub fn abandons_backlog(&self) -> bool {
        matches!(
            self,
            Self::SlowConsumer | Self::HeartbeatMissed | Self::TokenExpired | Self::Kicked | Self::Unauthorized(_)
        )
    }

    /// Whether an `error` message comes before the Close. Not when the peer is unreachable, closed first, or was already told why.
    pub fn explains(&self) -> bool {
        !matches!(self, Self::Client(_) | Self::Lost | Self::HeartbeatMissed | Self::SlowConsumer | Self::Disabled)
    }
}

impl From<TokenError> for CloseReason {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Expired => Self::TokenExpired,
            TokenError::Invalid(_) => Self::Unauthorized("the token is not valid"),
            TokenError::UnusableTenantClaim(..) => Self::UnusableClaim,
            TokenError::NoKeys => Self::NoKeys,
        }
    }
}

#[cfg(test)]
mod tests;
