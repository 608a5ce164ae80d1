//! A frame, which is an answer or a push, and its parts.

pub use redis_protocol::resp3::types::BytesFrame as Frame;

/// The parts of a list.
pub fn array(frame: &Frame) -> Option<&[Frame]> {
    match frame {
        Frame::Array { data, .. } => Some(data),
        _ => None,
    }
}

/// The text of a frame that has one.
pub fn text(frame: &Frame) -> Option<&str> {
    match frame {
        Frame::BlobString { data, .. } | Frame::SimpleString { data, .. } | Frame::VerbatimString { data, .. } => {
            std::str::from_utf8(data).ok()
        }
        _ => None,
    }
}

/// An integer.
pub fn number(frame: &Frame) -> Option<i64> {
    match frame {
        Frame::Number { data, .. } => Some(*data),
        _ => None,
    }
}

/// What the server said when it refused.
pub fn refusal(frame: &Frame) -> Option<String> {
    match frame {
        Frame::SimpleError { data, .. } => Some(data.to_string()),
        Frame::BlobError { data, .. } => Some(String::from_utf8_lossy(data).into_owned()),
        _ => None,
    }
}

/// The value under a key of a map of texts.
pub fn value<'a>(frame: &'a Frame, key: &str) -> Option<&'a str> {
    match frame {
        Frame::Map { data, .. } => data.iter().find(|(known, _)| text(known) == Some(key)).and_then(|(_, v)| text(v)),
        _ => None,
    }
}

/// The value of a field in a text of lines `field:value`.
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
}
