//! What a socket is told, before it is put on a wire.

use publisher::internals::Message;

use crate::socket::close::CloseReason;
use crate::socket::protocol::ServerMessage;

/// What a socket is told.
#[derive(Debug)]
pub enum Outgoing<'a> {
    /// Events, oldest first.
    Events(&'a [Message]),
    /// A message of the gateway's own.
    Message(&'a ServerMessage),
    /// What a dashboard starts from, and the events since.
    Start(&'a ServerMessage, &'a [Message]),
    /// The regular `heartbeat`, which the client has to answer.
    Heartbeat(&'a ServerMessage),
    /// The end of the socket.
    Farewell(&'a CloseReason),
}
