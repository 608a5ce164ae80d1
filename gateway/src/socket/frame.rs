//! WebSocket frames of a server without extensions: RFC 6455 §5.

use bytes::{BufMut, Bytes, BytesMut};

use super::close::CloseReason;

const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// The most that a control frame carries (§5.5).
const MAX_CONTROL: usize = 125;
/// The longest header of a client's frame: two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;

/// One text message as one frame, ready for any number of sockets: a server's frames aren't masked (§5.1).
pub fn text(payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(payload.len() + MAX_HEADER);
    put(&mut frame, TEXT, payload);
    frame.freeze()
}

/// Several text messages as frames back to back, to go out in one write.
pub fn texts<'a>(payloads: impl Iterator<Item = &'a [u8]> + Clone) -> Bytes {
    let length = payloads.clone().map(|payload| payload.len() + MAX_HEADER).sum();
    let mut frames = BytesMut::with_capacity(length);
    payloads.for_each(|payload| put(&mut frames, TEXT, payload));
    frames.freeze()
}

/// A text message followed by a Ping: what a heartbeat is made of.
pub fn text_and_ping(payload: &[u8]) -> Bytes {
    let mut frames = BytesMut::with_capacity(payload.len() + 2 * MAX_HEADER);
    put(&mut frames, TEXT, payload);
    put(&mut frames, PING, &[]);
    frames.freeze()
}

/// The answer to a Ping.
pub fn pong(payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(payload.len() + 2);
    put(&mut frame, PONG, payload);
    frame.freeze()
}

/// A Close with a code and a short reason, which is cut to what fits.
pub fn close(code: u16, reason: &str) -> Bytes {
    let mut end = reason.len().min(MAX_CONTROL - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    let mut frame = BytesMut::with_capacity(payload.len() + 2);
    put(&mut frame, CLOSE, &payload);
    frame.freeze()
}

/// The answer to a Close without a code.
pub fn empty_close() -> Bytes {
    Bytes::from_static(&[0x80 | CLOSE, 0])
}

fn put(frame: &mut BytesMut, opcode: u8, payload: &[u8]) {
    frame.put_u8(0x80 | opcode);
    match payload.len() {
        length @ 0..=125 => frame.put_u8(length as u8),
        length @ 126..=0xFFFF => {
            frame.put_u8(126);
            frame.put_u16(length as u16);
        }
        length => {
            frame.put_u8(127);
            frame.put_u64(length as u64);
        }
    }
    frame.put_slice(payload);
}

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A complete text message.
    Text(String),
    /// To be answered with the same payload.
    Ping(Vec<u8>),
    /// A sign of life.
    Pong,
    /// The client closes; 1005 when it gave no code.
    Close(u16),
}

/// Puts a client's messages together from what the network brings. Holds no memory between messages.
#[derive(Debug)]
pub struct Reader {
    max_message: usize,
    /// The beginning of a frame of which the rest has yet to come.
    partial: Vec<u8>,
    /// The fragments of a message so far.
    message: Option<Vec<u8>>,
}

/// The result of reading one chunk.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Complete messages and control frames, in order.
    pub incoming: Vec<Incoming>,
    /// What the chunk costs the client of its allowance: messages, control frames, and fragments without content.
    pub cost: u32,
}

impl Reader {
    /// Accepts messages of up to `max_message` bytes.
    pub fn new(max_message: usize) -> Self {
        Self { max_message, partial: Vec::new(), message: None }
    }

    /// Whether a message or a frame has begun that isn't complete.
    pub fn midway(&self) -> bool {
        !self.partial.is_empty() || self.message.is_some()
    }

    /// Takes the next bytes of the connection; they are unmasked in place.
    ///
    /// # Errors
    /// The reason to close: what came before it in `chunk` is still good.
    pub fn feed(&mut self, bytes: &mut [u8], chunk: &mut Chunk) -> Result<(), CloseReason> {
        if self.partial.is_empty() {
            let used = self.frames(bytes, chunk)?;
            self.partial.extend_from_slice(&bytes[used..]);
        } else {
            let mut partial = std::mem::take(&mut self.partial);
            partial.extend_from_slice(bytes);
            let used = self.frames(&mut partial, chunk)?;
            if used < partial.len() {
                partial.drain(..used);
                self.partial = partial;
            }
        }
        Ok(())
    }

    /// Takes whole frames from the front; returns how many bytes they were.
    fn frames(&mut self, bytes: &mut [u8], chunk: &mut Chunk) -> Result<usize, CloseReason> {
        let mut used = 0;
        while let Some(header) = self.header(&bytes[used..])? {
            let start = used + header.length;
            let Some(payload) = bytes.get_mut(start..start + header.payload) else { break };
            unmask(payload, header.mask);
            used = start + header.payload;
            self.frame(&header, payload, chunk)?;
        }
        Ok(used)
    }

    /// Reads and judges a header as soon as it is there, before a byte of its payload is kept.
    fn header(&self, bytes: &[u8]) -> Result<Option<Header>, CloseReason> {
        let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
        let opcode = first & 0x0F;
        let fin = first & 0x80 != 0;
        let control = opcode & 0x8 != 0;
        if first & 0x70 != 0 {
            return Err(CloseReason::Framing("reserved bits are set"));
        }
        if !matches!(opcode, 0 | TEXT | BINARY | CLOSE | PING | PONG) {
            return Err(CloseReason::Framing("reserved opcode"));
        }
        if second & 0x80 == 0 {
            return Err(CloseReason::Framing("a client's frame is not masked"));
        }
        let (extended, short) = match second & 0x7F {
            126 => (2, false),
            127 => (8, false),
            _ => (0, true),
        };
        if control && !fin {
            return Err(CloseReason::Framing("a control frame is fragmented"));
        }
        if control && !short {
            return Err(CloseReason::Framing("a control frame is too long"));
        }
        match (opcode, self.message.is_some()) {
            (BINARY, false) => return Err(CloseReason::Binary),
            (0, false) => return Err(CloseReason::Framing("nothing to continue")),
            (TEXT | BINARY, true) => return Err(CloseReason::Framing("a message begins inside another")),
            _ => {}
        }

        let Some(length_bytes) = rest.get(..extended) else { return Ok(None) };
        let payload = match extended {
            0 => u64::from(second & 0x7F),
            _ => length_bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        let so_far = self.message.as_ref().map_or(0, Vec::len);
        let payload = usize::try_from(payload).unwrap_or(usize::MAX);
        if !control && payload > self.max_message - so_far {
            return Err(CloseReason::TooBig(self.max_message));
        }
        if matches!((extended, payload), (2, ..=125) | (8, ..=0xFFFF)) {
            return Err(CloseReason::Framing("a length is not in its shortest form"));
        }
        let Some(mask) = rest[extended..].first_chunk::<4>() else { return Ok(None) };
        Ok(Some(Header { fin, opcode, payload, mask: *mask, length: 2 + extended + 4 }))
    }

    fn frame(&mut self, header: &Header, payload: &[u8], chunk: &mut Chunk) -> Result<(), CloseReason> {
        match header.opcode {
            PING => chunk.incoming.push(Incoming::Ping(payload.to_vec())),
            PONG => chunk.incoming.push(Incoming::Pong),
            CLOSE => chunk.incoming.push(Incoming::Close(close_code(payload)?)),
            _ => {
                let mut message = self.message.take().unwrap_or_default();
                message.extend_from_slice(payload);
                if header.fin {
                    let text = String::from_utf8(message).map_err(|_| CloseReason::NotUtf8)?;
                    chunk.incoming.push(Incoming::Text(text));
                } else {
                    self.message = Some(message);
                    chunk.cost += u32::from(payload.is_empty());
                    return Ok(());
                }
            }
        }
        chunk.cost += 1;
        Ok(())
    }
}

struct Header {
    fin: bool,
    opcode: u8,
    payload: usize,
    mask: [u8; 4],
    length: usize,
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

/// The code of a Close frame (§5.5.1, §7.4).
fn close_code(payload: &[u8]) -> Result<u16, CloseReason> {
    let (code, reason) = match payload {
        [] => return Ok(1005),
        [_] => return Err(CloseReason::Framing("a close frame of one byte")),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(CloseReason::Framing("a close code that must not be sent"));
    }
    std::str::from_utf8(reason).map_err(|_| CloseReason::NotUtf8)?;
    Ok(code)
}

#[cfg(test)]
pub(super) mod tests;
