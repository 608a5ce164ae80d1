//! Events as a chain: which message follows which.

use publisher::internals::Message;

use crate::engine::Position;

/// Messages held while an answer is under way. Beyond it the newest are dropped, and another read finds them in the log.
/// Small in unit tests, so that the random histories run past it.
pub(super) const MAX_HELD: usize = if cfg!(test) { 3 } else { 1024 };

/// The position that a message leads to.
pub fn position_of(message: &Message) -> Position {
    Position { epoch: message.epoch.clone(), seq: message.seq, id: Some(message.id.clone()) }
}

/// Whether the message is the one after `head`: the next number, of the same epoch, linked to the same event.
pub(super) fn follows(head: &Position, message: &Message) -> bool {
    message.epoch == head.epoch && message.seq == head.seq + 1 && (head.id.is_none() || message.previous == head.id)
}

/// The events that lead from `from` to `to` without a gap, out of the log and of what was delivered while it was read.
pub(super) fn bridge(from: &Position, to: &Position, log: Vec<Message>, since: Vec<Message>) -> Option<Vec<Message>> {
    if from.epoch != to.epoch {
        return None;
    }
    let mut at = from.clone();
    let mut events = Vec::new();
    for message in log.into_iter().chain(since) {
        if message.epoch == at.epoch && message.seq <= at.seq || message.seq > to.seq {
            continue;
        }
        if !follows(&at, &message) {
            return None;
        }
        at = position_of(&message);
        events.push(message);
    }
    (at.seq == to.seq && (to.id.is_none() || at.id == to.id)).then_some(events)
}

/// Keeps a message for later; false when there is no space for it.
pub(super) fn hold(held: &mut Vec<Message>, message: Message) -> bool {
    let fits = held.len() < MAX_HELD;
    if fits {
        held.push(message);
    }
    fits
}
