//! Dialects: how a socket is told something on its wire, and how its messages are read.
//!
//! Rooms and their streams know no dialect. They say [`Outgoing`]; it is encoded once for each dialect that a listener speaks. A further
//! dialect is a variant of [`Dialect`] with a module like [`native`], and a way to open its sockets.

mod native;
mod outgoing;

use bytes::Bytes;

use super::protocol::{BadMessage, ClientMessage};
pub use outgoing::Outgoing;

/// The dialect of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// JSON messages in text frames of a WebSocket.
    Native,
}

impl Dialect {
    /// Every dialect, at the index that is its number.
    pub const ALL: [Self; 1] = [Self::Native];

    /// The bytes that go to the socket.
    pub fn encode(self, outgoing: &Outgoing<'_>) -> Bytes {
        match self {
            Self::Native => native::encode(outgoing),
        }
    }

    /// Parses a message of the client.
    ///
    /// # Errors
    /// [`BadMessage`] names the field and the rule.
    pub fn parse(self, text: &str) -> Result<ClientMessage, BadMessage> {
        match self {
            Self::Native => ClientMessage::parse(text),
        }
    }
}

/// Something to tell many sockets, encoded when the first socket of a dialect gets it.
#[derive(Debug)]
pub struct Frames<'a> {
    outgoing: Outgoing<'a>,
    encoded: [Option<Bytes>; Dialect::ALL.len()],
}

impl<'a> Frames<'a> {
    pub fn of(outgoing: Outgoing<'a>) -> Self {
        Self { outgoing, encoded: [const { None }; Dialect::ALL.len()] }
    }

    pub fn in_dialect(&mut self, dialect: Dialect) -> &Bytes {
        let Self { outgoing, encoded } = self;
        encoded[dialect as usize].get_or_insert_with(|| dialect.encode(outgoing))
    }
}
