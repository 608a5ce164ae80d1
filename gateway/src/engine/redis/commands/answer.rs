//! Reads what the commands and scripts answer.

use publisher::internals::Message;
use publisher::internals::resp::Frame;
use publisher::internals::resp::frame::text;

use crate::engine::{Kick, Kicked, Position, Reading};

/// A position, and the run id of the process that told it: none where the gateway made the position up.
pub struct Sighting {
    /// What was read.
    pub reading: Reading,
    /// By which process.
    pub run: Option<String>,
}

/// What was read of the kicks.
#[derive(Debug, Default)]
pub struct Kicks {
    /// When, in milliseconds of the server's clock.
    pub now: u64,
    /// Kicks that a gateway gave.
    pub kicks: Vec<Kick>,
    /// Entries that no gateway wrote: they name nobody, or a time that has yet to come.
    pub unusable: usize,
}

/// The parts of a list.
pub fn array(frame: Frame) -> Option<Vec<Frame>> {
    match frame {
        Frame::Array { data, .. } => Some(data),
        _ => None,
    }
}

/// `{epoch, seq, id, messages, run}`.
pub fn sighting(answer: Frame) -> Option<Sighting> {
    let [epoch, Frame::Number { data: seq, .. }, id, messages, run] = <[_; 5]>::try_from(array(answer)?).ok()? else {
        return None;
    };
    let id = text(&id).filter(|id| !id.is_empty()).map(str::parse).transpose().ok()?;
    let head = Position { epoch: text(&epoch)?.parse().ok()?, seq: seq.try_into().ok()?, id };
    let message = |frame| match frame {
        Frame::BlobString { data, .. } => Message::parse(data).ok(),
        _ => None,
    };
    // An entry that can't be read is a hole, which the room finds by the numbers.
    let events = array(messages)?.into_iter().filter_map(message).collect();
    Some(Sighting { reading: Reading { head, events }, run: Some(text(&run)?.to_owned()) })
}

/// `[whom, milliseconds]`.
pub fn kick(entry: Frame) -> Option<Kick> {
    let [who, Frame::Double { data: at, .. }] = <[_; 2]>::try_from(array(entry)?).ok()? else { return None };
    let is_moment = at >= 0.0 && at <= u64::MAX as f64;
    Some(Kick { who: Kicked::parse(text(&who)?)?, at: is_moment.then_some(at as u64)? })
}

/// `[seconds, microseconds]`.
pub fn millis(answer: Frame) -> Option<u64> {
    let [seconds, micros] = <[_; 2]>::try_from(array(answer)?).ok()?;
    let number = |frame| text(frame)?.parse::<u64>().ok();
    Some(number(&seconds)? * 1000 + number(&micros)? / 1000)
}
