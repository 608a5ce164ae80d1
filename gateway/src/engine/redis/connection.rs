//! The subscriber's connection to one server: made again whenever it ends, with each answer given to its order.
//!
//! Redis sends pushes and answers as one stream, in the order in which it carried things out. So an order is a few commands and a
//! PING: what Redis sends before the PONG belongs to the order, and was received before it is answered. Nothing is lost on the way
//! from the socket to the rooms: while they are busy the socket isn't read, and TCP makes Redis wait.

mod order;

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use publisher::TenantId;
use publisher::internals::resp::frame::{field, refusal, text};
use publisher::internals::resp::{self, ConnectionError, Frame, Target};
use publisher::internals::{MalformedMessage, Message, Names};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use order::Order;
pub use order::{Kind, Orders, Unanswered};

/// Dialling, the greeting and each answer must come within this time, unless other bytes do.
const LIMIT: Duration = Duration::from_secs(1);
/// No answer may take longer, whatever else comes.
const LONGEST: Duration = Duration::from_secs(10);
/// The delay before the first attempt to connect again is drawn up to this; each later limit is twice as long.
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
/// The longest of these limits.
const RECONNECT_LONGEST: Duration = Duration::from_secs(1);
/// A connection that lasted for longer was not ended at once: the next attempt comes soon again.
const LASTED: Duration = Duration::from_millis(250);
/// The connection's name in CLIENT LIST.
const NAME: &str = "dashboard-subscriber";

/// The connection and what is under way on it.
pub struct Connection {
    target: Target,
    names: Names,
    state: State,
    /// The limit of the next delay.
    delay: Duration,
}

enum State {
    /// Dials, perhaps after a pause.
    Dialling(BoxFuture<'static, Result<(resp::Connection, String), ConnectionError>>),
    Open(Box<Open>),
}

struct Open {
    connection: resp::Connection,
    orders: mpsc::UnboundedReceiver<Order>,
    running: Option<Running>,
    /// When bytes last came.
    heard: Instant,
    since: Instant,
}

/// An order that was sent.
struct Running {
    order: Order,
    /// What its PONG repeats.
    token: String,
    sent: Instant,
}

/// What happened.
pub enum Incoming {
    /// A new connection, with no subscriptions.
    Connected(Orders),
    /// The connection ended, or a new one could not be made.
    Broken(ConnectionError),
    /// The server sent something.
    Received(Received),
}

/// All that one read of the socket brought. The orders that it answers are answered when this is dropped: by then, the messages
/// before the answers must have been handed on.
#[derive(Default)]
pub struct Received {
    /// Messages on tenants' channels, in their order.
    pub messages: Vec<(TenantId, Message)>,
    /// Other things on those channels. The room notices what they were, if anything: by the numbers, or at the next comparison.
    pub malformed: Vec<(TenantId, MalformedMessage)>,
    /// How often gateways were told to read the kicks.
    pub kicks: usize,
    /// Pushes of any kind on our channels: each proves delivery.
    pub pushes: usize,
    /// Tenants whose subscriptions the server has ended by itself: their slots are on another.
    pub ended: Vec<TenantId>,
    answered: Vec<Order>,
}

impl Drop for Received {
    fn drop(&mut self) {
        self.answered.drain(..).for_each(Order::finish);
    }
}

impl Connection {
    /// Starts to connect; goes on for ever while it is polled.
    pub fn open(target: Target, names: Names) -> Self {
        let state = State::Dialling(dial(target.clone(), Duration::ZERO).boxed());
        Self { target, names, state, delay: RECONNECT_FIRST }
    }

    /// The next thing that happens. Cancel-safe.
    pub async fn next(&mut self) -> Incoming {
        let error = match &mut self.state {
            State::Dialling(dialling) => match dialling.await {
                Ok((connection, run)) => {
                    let (orders, queue) = Orders::new(run);
                    self.state = State::Open(Box::new(Open::new(connection, queue)));
                    return Incoming::Connected(orders);
                }
                Err(error) => error,
            },
            State::Open(open) => match open.receive(&self.names).await {
                Ok(received) => return Incoming::Received(received),
                Err(error) => {
                    if open.since.elapsed() > LASTED {
                        self.delay = RECONNECT_FIRST;
                    }
                    error
                }
            },
        };
        self.dial_again();
        Incoming::Broken(error)
    }

    /// Drops the connection, if there is one, and makes a new one.
    pub fn reconnect(&mut self) {
        if matches!(self.state, State::Open(_)) {
            self.dial_again();
        }
    }

    /// Full jitter: gateways that lost the same server don't come back at the same moments.
    fn dial_again(&mut self) {
        let pause = rand::random_range(Duration::ZERO..=self.delay);
        self.delay = (self.delay * 2).min(RECONNECT_LONGEST);
        self.state = State::Dialling(dial(self.target.clone(), pause).boxed());
    }
}

/// Connects after a pause; the connection, and the run id of the process at its end.
async fn dial(target: Target, pause: Duration) -> Result<(resp::Connection, String), ConnectionError> {
    tokio::time::sleep(pause).await;
    let mut connection = resp::Connection::open(&target, NAME, LIMIT).await?;
    connection.send(&["INFO", "server"]);
    let info = tokio::time::timeout(LIMIT, connection.frame()).await.map_err(|_| ConnectionError::Silent(LIMIT))??;
    match (refusal(&info), text(&info).and_then(|info| field(info, "run_id"))) {
        (Some(why), _) => Err(ConnectionError::Refused(why)),
        (None, run) => Ok((connection, run.unwrap_or_default().to_owned())),
    }
}

impl Open {
    fn new(connection: resp::Connection, orders: mpsc::UnboundedReceiver<Order>) -> Self {
        let now = Instant::now();
        Self { connection, orders, running: None, heard: now, since: now }
    }

    /// Carries out orders until the server has sent something, and takes in all of that.
    async fn receive(&mut self, names: &Names) -> Result<Received, ConnectionError> {
        // Under a steady stream the socket always has something, and the orders must not wait for a pause.
        if self.running.is_none()
            && let Ok(order) = self.orders.try_recv()
        {
            self.begin(order);
        }
        loop {
            let deadline = self.running.as_ref().map(|running| {
                let silent = self.heard.max(running.sent) + LIMIT;
                silent.min(running.sent + LONGEST)
            });
            tokio::select! {
                // What was received counts before it is said that nothing was.
                biased;
                read = self.connection.read() => {
                    read?;
                    break;
                }
                Some(order) = self.orders.recv(), if self.running.is_none() => self.begin(order),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Err(ConnectionError::Silent(LIMIT));
                }
            }
        }
        self.heard = Instant::now();
        let mut received = Received::default();
        while let Some(frame) = self.connection.decode()? {
            self.take(frame, names, &mut received)?;
        }
        Ok(received)
    }

    fn begin(&mut self, order: Order) {
        order.commands.iter().for_each(|command| self.connection.send(command));
        let token = format!("order-{:016x}", rand::random::<u64>());
        self.connection.send(&["PING", &token]);
        self.running = Some(Running { order, token, sent: Instant::now() });
    }

    fn take(&mut self, frame: Frame, names: &Names, received: &mut Received) -> Result<(), ConnectionError> {
        match frame {
            Frame::Push { data, .. } => self.take_push(data, names, received),
            answer => {
                let running = self.running.take_if(|running| text(&answer) == Some(&running.token));
                match (running, &mut self.running) {
                    (Some(Running { order, .. }), _) => received.answered.push(order),
                    (None, Some(running)) => running.order.answer.frames.push(answer),
                    (None, None) => return Err(ConnectionError::Unasked),
                }
            }
        }
        Ok(())
    }

    fn take_push(&mut self, data: Vec<Frame>, names: &Names, received: &mut Received) {
        let mut parts = data.into_iter();
        let (Some(kind), Some(channel), Some(payload)) = (parts.next(), parts.next(), parts.next()) else { return };
        let (Some(kind), Some(channel)) = (text(&kind), text(&channel)) else { return };
        match kind {
            "message" | "smessage" => {
                received.pushes += 1;
                let Frame::BlobString { data: payload, .. } = payload else { return };
                match names.tenant_of_channel(channel) {
                    Some(tenant) => match Message::parse(payload) {
                        Ok(message) => received.messages.push((tenant, message)),
                        Err(error) => received.malformed.push((tenant, error)),
                    },
                    // Pub/sub knows no database number, so only what is in our own database counts.
                    None if *channel == *names.control() => received.kicks += 1,
                    None => {}
                }
            }
            "subscribe" | "ssubscribe" => {
                if let Some(running) = &mut self.running {
                    running.order.answer.confirmed.insert(channel.to_owned());
                }
            }
            "unsubscribe" | "sunsubscribe" => {
                let is_ordered = self.running.as_ref().is_some_and(|running| running.order.ending.contains(channel));
                if let (false, Some(tenant)) = (is_ordered, names.tenant_of_channel(channel)) {
                    received.ended.push(tenant);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
