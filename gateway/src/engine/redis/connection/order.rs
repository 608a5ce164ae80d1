//! Orders: what the subscriber's connection is asked to do, one after the other.

use std::collections::HashSet;
use std::sync::Arc;

use publisher::internals::resp::Frame;
use publisher::internals::resp::frame::refusal;
use tokio::sync::{mpsc, oneshot};

/// Channels of one order: so that a subscription to many tenants is no single long silence.
const BATCH: usize = 512;

/// The connection ended before it answered, or its answer doesn't fit the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the subscriber's connection did not answer")]
pub struct Unanswered;

/// How tenants' channels are subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SUBSCRIBE.
    Plain,
    /// SSUBSCRIBE, on a Cluster.
    Sharded,
}

/// A channel that the server doesn't take a subscription to, and what it said.
pub type Refusal = (String, String);

/// Gives orders to one connection. They fail from the moment that it ends: its successor has orders of its own.
#[derive(Clone)]
pub struct Orders {
    queue: mpsc::UnboundedSender<Order>,
    /// The run id of the server's process.
    pub run: Arc<str>,
}

/// Commands, and what the server said to them.
pub(super) struct Order {
    pub commands: Vec<Vec<String>>,
    /// The channels that the commands unsubscribe from.
    pub ending: HashSet<String>,
    pub answer: Answer,
    done: oneshot::Sender<Answer>,
}

/// What the server said to an order.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The channels that are subscribed to.
    pub confirmed: HashSet<String>,
    /// Everything but confirmations, in its order.
    pub frames: Vec<Frame>,
}

impl Order {
    pub fn finish(self) {
        // The round that ordered it may be gone.
        let _ = self.done.send(self.answer);
    }
}

impl Orders {
    pub(super) fn new(run: String) -> (Self, mpsc::UnboundedReceiver<Order>) {
        let (queue, orders) = mpsc::unbounded_channel();
        (Self { queue, run: run.into() }, orders)
    }

    async fn order(&self, commands: Vec<Vec<String>>, ending: &[String]) -> Result<Answer, Unanswered> {
        let (done, answer) = oneshot::channel();
        let ending = ending.iter().cloned().collect();
        let order = Order { commands, ending, answer: Answer::default(), done };
        self.queue.send(order).map_err(|_| Unanswered)?;
        answer.await.map_err(|_| Unanswered)
    }

    /// Runs one command.
    pub async fn ask(&self, words: &[&str]) -> Result<Frame, Unanswered> {
        let command = words.iter().map(ToString::to_string).collect();
        let answer = self.order(vec![command], &[]).await?;
        answer.frames.into_iter().next().ok_or(Unanswered)
    }

    /// Returns when everything that the server had sent before was received.
    pub async fn barrier(&self) -> Result<(), Unanswered> {
        self.order(Vec::new(), &[]).await.map(drop)
    }

    /// Subscribes; returns the channels that the server refuses. The others hold.
    pub async fn subscribe(&self, kind: Kind, channels: &[String]) -> Result<Vec<Refusal>, Unanswered> {
        let mut refused = Vec::new();
        for batch in channels.chunks(BATCH) {
            match kind {
                // A channel that the user has no right to makes the server refuse the whole command.
                Kind::Plain if self.subscribe_together(batch).await? => {}
                Kind::Plain => self.subscribe_each("SUBSCRIBE", batch, &mut refused).await?,
                // The channels of one command must be of one slot.
                Kind::Sharded => self.subscribe_each("SSUBSCRIBE", batch, &mut refused).await?,
            }
        }
        Ok(refused)
    }

    /// One command for all; whether the server took it.
    async fn subscribe_together(&self, batch: &[String]) -> Result<bool, Unanswered> {
        let answer = self.order(vec![command("SUBSCRIBE", batch)], &[]).await?;
        let is_whole = batch.iter().all(|channel| answer.confirmed.contains(channel));
        if !is_whole && answer.frames.is_empty() { Err(Unanswered) } else { Ok(is_whole) }
    }

    /// A command for each; each is confirmed or refused, in their order.
    async fn subscribe_each(&self, verb: &str, batch: &[String], refused: &mut Vec<Refusal>) -> Result<(), Unanswered> {
        let answer = self.order(batch.chunks(1).map(|channel| command(verb, channel)).collect(), &[]).await?;
        let unconfirmed: Vec<_> = batch.iter().filter(|channel| !answer.confirmed.contains(*channel)).collect();
        if unconfirmed.len() != answer.frames.len() {
            return Err(Unanswered);
        }
        for (channel, frame) in unconfirmed.into_iter().zip(&answer.frames) {
            refused.push((channel.clone(), refusal(frame).ok_or(Unanswered)?));
        }
        Ok(())
    }

    /// Unsubscribes. A refusal means that the server has ended the subscription already.
    pub async fn unsubscribe(&self, kind: Kind, channels: &[String]) -> Result<(), Unanswered> {
        for batch in channels.chunks(BATCH) {
            let commands = match kind {
                Kind::Plain => vec![command("UNSUBSCRIBE", batch)],
                Kind::Sharded => batch.chunks(1).map(|channel| command("SUNSUBSCRIBE", channel)).collect(),
            };
            self.order(commands, batch).await?;
        }
        Ok(())
    }
}

fn command(verb: &str, channels: &[String]) -> Vec<String> {
    [verb.to_owned()].into_iter().chain(channels.iter().cloned()).collect()
}
