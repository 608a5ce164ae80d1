//! Reads the parts of Redis' answers.

use fred::types::Resp3Frame;

pub(super) fn array(frame: &Resp3Frame) -> Option<&[Resp3Frame]> {
    match frame {
        Resp3Frame::Array { data, .. } => Some(data),
        _ => None,
    }
}

pub(super) fn text(frame: &Resp3Frame) -> Option<&str> {
    match frame {
        Resp3Frame::BlobString { data, .. }
        | Resp3Frame::SimpleString { data, .. }
        | Resp3Frame::VerbatimString { data, .. } => std::str::from_utf8(data).ok(),
        _ => None,
    }
}

pub(super) fn number(frame: &Resp3Frame) -> Option<i64> {
    match frame {
        Resp3Frame::Number { data, .. } => Some(*data),
        _ => None,
    }
}

/// The value under a key of a map of texts.
pub(super) fn value<'a>(frame: &'a Resp3Frame, key: &str) -> Option<&'a str> {
    match frame {
        Resp3Frame::Map { data, .. } => {
            data.iter().find(|(known, _)| text(known) == Some(key)).and_then(|(_, v)| text(v))
        }
        _ => None,
    }
}

/// The value of a field in a text of lines `field:value`.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
}
