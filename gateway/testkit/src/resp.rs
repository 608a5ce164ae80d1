//! The Redis protocol, both versions, as far as a test client and a frame-aware proxy need it.

/// One complete frame. Pushes, sets and maps are arrays here: the tests never care.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Nil,
    Text(String),
    Integer(i64),
    Error(String),
    Array(Vec<Reply>),
}

impl Reply {
    /// The first complete frame of `buffer` and its length, or `None` while bytes are missing.
    pub fn parse(buffer: &[u8]) -> Option<(Self, usize)> {
        let end = buffer.windows(2).position(|pair| pair == b"\r\n")?;
        let line = std::str::from_utf8(buffer.get(1..end).unwrap_or_default()).unwrap();
        let body = end + 2;
        let length = || line.parse::<i64>().unwrap();
        match buffer[0] {
            b'+' | b',' | b'(' | b'#' => Some((Self::Text(line.to_owned()), body)),
            b'-' => Some((Self::Error(line.to_owned()), body)),
            b':' => Some((Self::Integer(length()), body)),
            b'_' => Some((Self::Nil, body)),
            b'$' | b'=' | b'!' | b'*' if line.starts_with('-') => Some((Self::Nil, body)),
            kind @ (b'$' | b'=' | b'!') => {
                let text = buffer.get(body..body + length() as usize)?;
                buffer.get(body + text.len()..body + text.len() + 2)?;
                let text_lossy = String::from_utf8_lossy(text).into_owned();
                let reply = if kind == b'!' { Self::Error(text_lossy) } else { Self::Text(text_lossy) };
                Some((reply, body + text.len() + 2))
            }
            kind @ (b'*' | b'~' | b'>' | b'%') => {
                let count = length() * if kind == b'%' { 2 } else { 1 };
                let mut at = body;
                let mut items = Vec::new();
                for _ in 0..count {
                    let (item, taken) = Self::parse(buffer.get(at..)?)?;
                    items.push(item);
                    at += taken;
                }
                Some((Self::Array(items), at))
            }
            // An inline command: words, as a human types them.
            _ => {
                let words = std::str::from_utf8(&buffer[..end]).unwrap().split(' ');
                Some((Self::Array(words.map(|word| Self::Text(word.to_owned())).collect()), body))
            }
        }
    }

    /// A command as it goes to the server.
    pub fn command(words: &[&str]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
        }
        bytes
    }

    /// All strings in it, depth first.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Self::Text(text) | Self::Error(text) => vec![text],
            Self::Array(items) => items.iter().flat_map(Self::texts).collect(),
            Self::Nil | Self::Integer(_) => vec![],
        }
    }

    pub fn array(self) -> Vec<Reply> {
        match self {
            Self::Array(items) => items,
            other => panic!("expected an array, got {other:?}"),
        }
    }

    pub fn integer(&self) -> i64 {
        match self {
            Self::Integer(number) => *number,
            other => panic!("expected an integer, got {other:?}"),
        }
    }

    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            other => panic!("expected text, got {other:?}"),
        }
    }

    /// Whether this is the command `name`, whatever its case.
    pub fn is_command(&self, name: &str) -> bool {
        self.texts().first().is_some_and(|first| first.eq_ignore_ascii_case(name))
    }
}
