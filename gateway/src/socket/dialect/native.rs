//! The dialect of the gateway's own client: each message is a text frame of a WebSocket.

use bytes::Bytes;
use publisher::internals::Message;

use super::outgoing::Outgoing;
use crate::socket::close::CloseReason;
use crate::socket::{frame, protocol};

pub(super) fn encode(outgoing: &Outgoing<'_>) -> Bytes {
    match *outgoing {
        Outgoing::Events([event]) => frame::text(&event.json),
        Outgoing::Events(events) => texts(events),
        Outgoing::Message(message) | Outgoing::Start(message, []) => frame::text(&message.json),
        Outgoing::Start(message, replay) => [frame::text(&message.json), texts(replay)].concat().into(),
        // Browsers can't see a Ping, and answer it by themselves.
        Outgoing::Heartbeat(message) => frame::text_and_ping(&message.json),
        Outgoing::Farewell(reason) => farewell(reason),
    }
}

fn texts(events: &[Message]) -> Bytes {
    frame::texts(events.iter().map(|event| &*event.json))
}

fn farewell(reason: &CloseReason) -> Bytes {
    let close = match reason {
        // 1005 says that there was no code, and must not be sent as one (RFC 6455 §7.4.1).
        CloseReason::Client(1005) => frame::empty_close(),
        _ => frame::close(reason.code(), &reason.to_string()),
    };
    match protocol::explanation(reason) {
        Some(error) => [frame::text(&error.json), close].concat().into(),
        None => close,
    }
}
