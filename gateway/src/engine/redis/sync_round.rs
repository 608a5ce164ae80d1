//! A round: everything that one server is asked at once, and what it answered.
//!
//! Subscriptions go out on the subscriber's connection, questions on the command connection. The round ends with a barrier on the
//! subscriber's: what was published before a position was read has been received by then.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use publisher::TenantId;
use publisher::internals::redis::Failure;
use publisher::internals::resp::frame::{field, refusal, text};
use tokio::sync::oneshot;

use super::commands::{Commands, Kicks, Sighting};
use super::connection::{Kind, Orders, Unanswered};
use super::settings::Settings;
use crate::engine::{Known, Position, Reading, Ticket};

/// Questions asked at once, at the most.
const WIDTH: usize = 32;
/// Questions asked before it is known how large the answers are.
const FIRST_WIDTH: usize = 2;
/// Bytes of answers that may be on their way at once. More would take longer than a command may.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// A position that is asked for.
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
    /// Another caller's.
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

    async fn ask(&self, commands: &Commands, refused: &HashMap<TenantId, String>) -> Result<Sighting, Failure> {
        if let Some(why) = refused.get(self.tenant()) {
            // An answer would be taken for one that the subscription covers.
            return Err(Failure::Refused(why.clone()));
        }
        match self {
            Self::Room { tenant, after: Some(after), .. } => match commands.position(tenant, Some(after)).await {
                // Where the head can be read and the log can't, the log is one hole, which the room finds by the numbers.
                Err(Failure::Refused(_)) => commands.position(tenant, None).await,
                answer => answer,
            },
            Self::Room { tenant, after: None, .. } | Self::Head { tenant, .. } => commands.position(tenant, None).await,
        }
    }

    /// Whether this room asks.
    pub fn is_of_room(&self, room: &TenantId) -> bool {
        matches!(self, Self::Room { tenant, .. } if tenant == room)
    }

    /// Whether the caller has given up.
    pub fn is_moot(&self) -> bool {
        matches!(self, Self::Head { reply, .. } if reply.is_closed())
    }
}

/// How much of the subscriptions a round is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The connection is new: everything is subscribed to.
    Everything,
    /// What has changed.
    Changes,
}

/// Which kicks a round reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KicksRead {
    /// They are on another server.
    Nothing,
    /// Those since this time of the server's clock, in milliseconds.
    Since(u64),
    /// All of them.
    Everything,
}

/// Whether a server takes events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It holds tenants.
    Holds,
    /// It was left, and is listened to for as long as it is a master: a replica delivers what its master publishes.
    Left,
}

/// What one round does.
pub struct SyncRound {
    /// How much of the subscriptions it is about.
    pub scope: Scope,
    /// Of the server.
    pub standing: Standing,
    /// The channels of this gateway itself.
    pub own: Vec<String>,
    /// Tenants to subscribe to.
    pub subscribe: Vec<TenantId>,
    /// Tenants to unsubscribe from.
    pub unsubscribe: Vec<TenantId>,
    /// What is asked.
    pub questions: Vec<Question>,
    /// Which kicks are read.
    pub kicks: KicksRead,
}

/// What it brought.
#[derive(Default)]
pub struct Synced {
    /// Tenants that the server does not take a subscription to, and what it said. The others' subscriptions hold.
    pub refused: HashMap<TenantId, String>,
    /// For each question an answer or a refusal, up to the first that failed.
    pub readings: Vec<Result<Reading, String>>,
    /// The kicks, if they were asked for; or what the server said when it refused to tell them.
    pub kicks: Option<Result<Kicks, String>>,
    /// Why the questions after these answers have none.
    pub failure: Option<Failure>,
}

/// Why a round proved nothing.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The subscriber's connection ended, or answered as it must not.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    /// The server takes no subscription to this gateway's own channels.
    #[error("Redis refused: {0}")]
    Refused(String),
    /// The server was left and is a replica now: no publisher can write there, and its messages are copies.
    #[error("the server is no master any more")]
    Demoted,
    /// The two connections lead to different processes: the address leads elsewhere since one of them was made.
    #[error("the connections lead to two different servers")]
    Split,
}

/// A round under way.
pub type Running = Pin<Box<dyn Future<Output = (SyncRound, Result<Synced, SyncError>)> + Send>>;

impl SyncRound {
    /// Starts it.
    pub fn run(self, orders: Orders, commands: Arc<Commands>, settings: Settings) -> Running {
        Box::pin(async move {
            let result = self.attempt(&orders, &commands, &settings).await;
            (self, result)
        })
    }

    async fn attempt(&self, orders: &Orders, commands: &Commands, settings: &Settings) -> Result<Synced, SyncError> {
        if self.standing == Standing::Left && !is_master(orders).await? {
            return Err(SyncError::Demoted);
        }
        let mut synced = Synced { refused: self.sync_subscriptions(orders, settings).await?, ..Synced::default() };
        // Even where nothing is asked: delivery can't be vouched for where a room that misses an event could not read the log.
        synced.failure = (!commands.is_up()).then_some(Failure::NotSent);
        if synced.failure.is_none() {
            // The kicks first: a socket whose token is revoked must not be answered.
            self.read_kicks(commands, &mut synced).await;
        }
        if synced.failure.is_none() {
            self.read_positions(commands, &orders.run, &mut synced).await?;
        }
        orders.barrier().await?;
        Ok(synced)
    }

    /// Subscribes and unsubscribes; returns the tenants that the server refuses.
    async fn sync_subscriptions(
        &self,
        orders: &Orders,
        settings: &Settings,
    ) -> Result<HashMap<TenantId, String>, SyncError> {
        if self.scope == Scope::Everything
            && let Some((_, why)) = orders.subscribe(Kind::Plain, &self.own).await?.pop()
        {
            return Err(SyncError::Refused(why));
        }
        let channels =
            |tenants: &[TenantId]| -> Vec<_> { tenants.iter().map(|tenant| settings.names.events(tenant)).collect() };
        let refused = orders.subscribe(settings.kind, &channels(&self.subscribe)).await?;
        orders.unsubscribe(settings.kind, &channels(&self.unsubscribe)).await?;
        let tenant_of = |(channel, why): (String, String)| Some((settings.names.tenant_of_channel(&channel)?, why));
        Ok(refused.into_iter().filter_map(tenant_of).collect())
    }

    async fn read_kicks(&self, commands: &Commands, synced: &mut Synced) {
        let since = match self.kicks {
            KicksRead::Nothing => return,
            KicksRead::Since(last) => last,
            KicksRead::Everything => 0,
        };
        match commands.kicks_since(since).await {
            Ok(kicks) => synced.kicks = Some(Ok(kicks)),
            // The kicks' trouble is not the tenants'.
            Err(Failure::Refused(why)) => synced.kicks = Some(Err(why)),
            Err(failure) => synced.failure = Some(failure),
        }
    }

    async fn read_positions(&self, commands: &Commands, run: &str, synced: &mut Synced) -> Result<(), SyncError> {
        let (mut questions, mut asked) = (self.questions.iter(), FuturesOrdered::new());
        let mut width = FIRST_WIDTH;
        loop {
            let more = questions.by_ref().take(width.saturating_sub(asked.len()));
            asked.extend(more.map(|question| question.ask(commands, &synced.refused)));
            let Some(answer) = asked.next().await else { break };
            let answer = match answer {
                Ok(Sighting { run: Some(of), .. }) if of != run => return Err(SyncError::Split),
                Ok(Sighting { reading, .. }) => Ok(reading),
                Err(Failure::Refused(why)) => Err(why),
                Err(failure) => {
                    synced.failure = Some(failure);
                    break;
                }
            };
            let bytes: usize = answer.iter().flat_map(|reading| &reading.events).map(|event| event.json.len()).sum();
            width = (2 * width).min(WIDTH).min(MAX_BYTES / bytes.max(1)).max(1);
            synced.readings.push(answer);
        }
        Ok(())
    }
}

/// Whether the server says that it is a master.
async fn is_master(orders: &Orders) -> Result<bool, Unanswered> {
    let info = orders.ask(&["INFO", "replication"]).await?;
    if refusal(&info).is_some() {
        return Err(Unanswered);
    }
    Ok(text(&info).and_then(|info| field(info, "role")) == Some("master"))
}

#[cfg(test)]
mod tests;
