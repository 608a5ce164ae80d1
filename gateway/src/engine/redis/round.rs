//! A round: all that is asked of one server at once, and what it answered.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::{StreamExt, stream};
use publisher::TenantId;
use tokio::sync::oneshot;

use super::wire::{Kicks, Subscriptions, Wire, WireError};
use crate::engine::{Known, Position, Reading, Ticket};

/// A position that somebody wants to know.
pub enum Question {
    /// A room's; with `after` for what the log holds after it, without for the room's subscription.
    Room {
        /// Whose room.
        tenant: TenantId,
        /// Names the answer.
        ticket: Ticket,
        /// Where the log is read from.
        after: Option<Known>,
    },
    /// Somebody else's.
    Head {
        /// Whose stream.
        tenant: TenantId,
        /// Where the answer goes.
        reply: oneshot::Sender<Position>,
    },
}

impl Question {
    /// Whose stream it is about.
    pub fn tenant(&self) -> &TenantId {
        match self {
            Self::Room { tenant, .. } | Self::Head { tenant, .. } => tenant,
        }
    }

    async fn ask(&self, wire: &Wire, refused: &HashMap<TenantId, String>) -> Result<Reading, WireError> {
        if let Some(why) = refused.get(self.tenant()) {
            // An answer would be taken for one that the subscription covers.
            return Err(WireError::Refused(why.clone()));
        }
        match self {
            Self::Room { tenant, after: Some(after), .. } => match wire.position(tenant, Some(after)).await {
                // Where the head can be read and the log can't, the log is one hole, which the room finds by the numbers.
                Err(WireError::Refused(_)) => wire.position(tenant, None).await,
                answer => answer,
            },
            Self::Room { tenant, after: None, .. } => wire.position(tenant, None).await,
            Self::Head { tenant, .. } => wire.position(tenant, None).await,
        }
    }

    /// Whether a room asks, this one.
    pub fn is_of_room(&self, room: &TenantId) -> bool {
        matches!(self, Self::Room { tenant, .. } if tenant == room)
    }

    /// Whether who asked has given up.
    pub fn is_moot(&self) -> bool {
        matches!(self, Self::Head { reply, .. } if reply.is_closed())
    }
}

/// What one round does.
pub struct Round {
    /// Subscribes to everything anew.
    pub full: bool,
    /// The server was left, and is only listened to while it is a master.
    pub left: bool,
    /// Tenants to subscribe to.
    pub subscribe: Vec<TenantId>,
    /// Tenants to unsubscribe from.
    pub unsubscribe: Vec<TenantId>,
    /// How many tenants must be subscribed to after it, unless the server refuses some.
    pub tenants: usize,
    /// What rooms ask.
    pub questions: Vec<Question>,
    /// Questions asked at once.
    pub width: usize,
    /// Since when kicks are to be read, by the server's clock, where this server has them; 0 for all of them.
    pub kicks_since: Option<u64>,
}

/// What it brought: for each question an answer or the reason why there is none, up to where the connection broke.
pub struct Answers {
    /// Tenants that the server does not have, and what it said.
    pub refused: HashMap<TenantId, String>,
    /// In the order of the questions.
    pub readings: Vec<Result<Reading, WireError>>,
    /// The kicks, if they were asked for; or what the server said when it refused to tell them.
    pub kicks: Option<Result<Kicks, String>>,
}

impl Answers {
    /// The bytes of the largest.
    pub fn largest(&self) -> usize {
        let sizes = self.readings.iter().flatten().map(|reading| reading.events.iter().map(|it| it.json.len()).sum());
        sizes.max().unwrap_or(0)
    }

    /// Whether the connection broke between the answers.
    pub fn cut_short(&self) -> bool {
        self.readings.iter().any(|reading| matches!(reading, Err(WireError::Connection(_))))
    }
}

/// Why a round proved nothing.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// The server didn't answer, or not to what was asked.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The server was left and is a replica now: no publisher can write there, and its messages are copies.
    #[error("the server is no master any more")]
    Demoted,
    /// It lost a subscription, or kept one.
    #[error("the server holds {found:?} instead of {expected:?}")]
    Mismatch {
        /// What the server says.
        found: Subscriptions,
        /// What was asked for.
        expected: Subscriptions,
    },
}

/// A round under way.
pub type Running = Pin<Box<dyn Future<Output = (Round, Result<Answers, RoundError>)> + Send>>;

impl Round {
    /// Starts it.
    pub fn run(self, wire: Arc<Wire>) -> Running {
        Box::pin(async move {
            let result = self.attempt(&wire).await;
            (self, result)
        })
    }

    async fn attempt(&self, wire: &Wire) -> Result<Answers, RoundError> {
        // Before anything is subscribed to: a replica delivers what its master publishes.
        if self.left && !wire.is_master().await? {
            return Err(RoundError::Demoted);
        }
        if self.full {
            wire.subscribe_own().await?;
        }
        let refused: HashMap<_, _> = wire.subscribe(&self.subscribe).await?.into_iter().collect();
        wire.unsubscribe(&self.unsubscribe).await?;
        let (found, expected) = (wire.subscriptions().await?, wire.expected(self.tenants - refused.len()));
        if found != expected {
            return Err(RoundError::Mismatch { found, expected });
        }
        let kicks = match self.kicks_since {
            Some(last) => match wire.kicks_since(last).await {
                // The kicks' trouble is not the tenants'.
                Err(WireError::Refused(why)) => Some(Err(why)),
                kicks => Some(Ok(kicks?)),
            },
            None => None,
        };
        let asked: Vec<_> = self.questions.iter().map(|question| question.ask(wire, &refused)).collect();
        let mut asked = stream::iter(asked).buffered(self.width);
        let mut readings = Vec::with_capacity(self.questions.len());
        while let Some(reading) = asked.next().await {
            let broken = matches!(reading, Err(WireError::Connection(_)));
            readings.push(reading);
            if broken {
                break;
            }
        }
        drop(asked);
        Ok(Answers { refused, readings, kicks })
    }
}
