//! Finds request heads that give the length of the body twice: Content-Length and Transfer-Encoding (RFC 9112 §6.1). hyper uses the
//! latter and removes the former, so only the bytes still show it; a proxy that uses the former sees another request (smuggling).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CONTENT_LENGTH: &[u8] = b"content-length:";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding:";

/// Reads the bytes of a connection, in portions of any size.
#[derive(Default)]
pub struct Heads {
    /// The beginning of the present line, in lower case.
    line: [u8; TRANSFER_ENCODING.len()],
    length: usize,
    content_length: bool,
    transfer_encoding: bool,
    ambiguous: Arc<AtomicBool>,
}

/// Whether a connection has sent such a head.
#[derive(Clone, Default)]
pub struct Ambiguous(Arc<AtomicBool>);

impl Ambiguous {
    /// Whether it has.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Heads {
    /// What these heads will have been found to be.
    pub fn ambiguous(&self) -> Ambiguous {
        Ambiguous(self.ambiguous.clone())
    }

    /// Takes in the next bytes. Bodies are read like heads: the two names at the beginning of lines without an empty line in between
    /// are in no body of ours.
    pub fn read(&mut self, bytes: &[u8]) {
        for portion in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match portion {
                [text @ .., b'\n'] => (text, true),
                text => (text, false),
            };
            for byte in text.iter().take(self.line.len() - self.length.min(self.line.len())) {
                self.line[self.length] = byte.to_ascii_lowercase();
                self.length += 1;
            }
            if ends {
                self.line_ends();
            }
        }
    }

    fn line_ends(&mut self) {
        let line = &self.line[..self.length];
        if line.is_empty() || line == b"\r" {
            (self.content_length, self.transfer_encoding) = (false, false);
        }
        self.content_length |= line.starts_with(CONTENT_LENGTH);
        self.transfer_encoding |= line.starts_with(TRANSFER_ENCODING);
        if self.content_length && self.transfer_encoding {
            self.ambiguous.store(true, Ordering::Relaxed);
        }
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\ncontent-LENGTH: 5\r\n\r\n";

    #[test]
    fn b76_both_lengths_are_found_in_whatever_portions_they_come() {
        for size in 1..BOTH.len() {
            let mut heads = Heads::default();
            BOTH.as_bytes().chunks(size).for_each(|portion| heads.read(portion));
            assert!(heads.ambiguous().get(), "portions of {size}");
        }
    }

    #[test]
    fn b76_one_length_a_request_is_fine() {
        let mut heads = Heads::default();
        for request in [
            "POST / HTTP/1.1\r\nContent-Length: 26\r\n\r\n{\"Transfer-Encoding: \":\"no\"}",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX-Content-Length: 5\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\nContent-Length: 0\n\n",
        ] {
            heads.read(request.as_bytes());
        }
        assert!(!heads.ambiguous().get());
    }
}
