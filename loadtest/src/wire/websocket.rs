//! The part of RFC 6455 that a load generator and a bare server need: one handshake, small frames, no extensions.

/// The nonce of RFC 6455's own example. A random nonce would gain nothing here, and a constant saves the SHA-1 at both
/// ends.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer that belongs to [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// A frame that a gateway may send.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// One whole message: the gateway never fragments.
    Text(&'a [u8]),
    /// To be answered with [`pong`].
    Ping(&'a [u8]),
    Pong,
    /// The peer closes, with this code (1005 when it gave none).
    Close(u16),
}

/// A frame that the gateway must not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// The first frame in `bytes` and its length; `None` while the frame is incomplete.
pub fn first_frame(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Broken> {
    let &[head, length, ..] = bytes else { return Ok(None) };
    if head & 0x70 != 0 {
        return Err(Broken("reserved bit set"));
    }
    if length & MASKED != 0 {
        return Err(Broken("masked by the server"));
    }
    let (start, length) = match length {
        126 => match bytes.get(2..4) {
            Some(extended) => (4, usize::from(u16::from_be_bytes([extended[0], extended[1]]))),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10).and_then(|extended| extended.try_into().ok()) {
            Some(extended) => {
                (10, usize::try_from(u64::from_be_bytes(extended)).map_err(|_| Broken("impossible length"))?)
            }
            None => return Ok(None),
        },
        short => (2, usize::from(short)),
    };
    let end = length.checked_add(start).ok_or(Broken("impossible length"))?;
    let Some(payload) = bytes.get(start..end) else { return Ok(None) };
    if head & FIN == 0 || head & 0xF == CONTINUATION {
        return Err(Broken("a message in more than one frame"));
    }
    let frame = match head & 0xF {
        TEXT => Frame::Text(payload),
        PING => Frame::Ping(payload),
        PONG => Frame::Pong,
        CLOSE => Frame::Close(payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code))),
        _ => return Err(Broken("unexpected opcode")),
    };
    Ok(Some((frame, end)))
}

/// A client's text message.
pub fn text(payload: &[u8]) -> Vec<u8> {
    client_frame(TEXT, payload)
}

/// A client's answer to a ping.
pub fn pong(payload: &[u8]) -> Vec<u8> {
    client_frame(PONG, payload)
}

/// A client's close frame.
pub fn close(code: u16) -> Vec<u8> {
    client_frame(CLOSE, &code.to_be_bytes())
}

fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    // Masking protects proxies from hostile scripts. There is no script here, so a constant is enough. It is not zero:
    // a server that forgets to unmask must fail.
    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.push(FIN | opcode);
    push_length(&mut frame, payload.len(), MASKED);
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A server's text message, which replaces the contents of `frame`.
pub fn server_text(payload: &[u8], frame: &mut Vec<u8>) {
    frame.clear();
    frame.push(FIN | TEXT);
    push_length(frame, payload.len(), 0);
    frame.extend_from_slice(payload);
}

fn push_length(frame: &mut Vec<u8>, length: usize, masked: u8) {
    match length {
        0..=125 => frame.push(masked | length as u8),
        126..=0xFFFF => {
            frame.push(masked | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        _ => {
            frame.push(masked | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_frame_is_read_back_at_every_length_and_waits_for_its_last_byte() {
        for length in [0, 1, 125, 126, 300, 0xFFFF, 0x10000] {
            let payload = vec![b'x'; length];
            let mut frame = Vec::new();
            server_text(&payload, &mut frame);
            let size = frame.len();
            for cut in [0, 1, 2, 3, size - 1] {
                assert_eq!(first_frame(&frame[..cut.min(size - 1)]), Ok(None));
            }
            frame.extend(b"next");
            assert_eq!(first_frame(&frame), Ok(Some((Frame::Text(&payload), size))));
        }
    }

    #[test]
    fn a_close_carries_its_code() {
        assert_eq!(first_frame(&[0x88, 2, 0x11, 0x31]), Ok(Some((Frame::Close(4401), 4))));
        assert_eq!(first_frame(&[0x88, 0]), Ok(Some((Frame::Close(1005), 2))));
    }

    #[test]
    fn a_frame_that_the_gateway_must_not_send_is_an_error() {
        assert!(first_frame(&[0x01, 1, b'x']).is_err(), "fragment");
        assert!(first_frame(&[0x81, 0x81, 0, 0, 0, 0, b'x']).is_err(), "masked");
        assert!(first_frame(&[0xC1, 1, b'x']).is_err(), "compressed");
        assert!(first_frame(&[0x82, 1, b'x']).is_err(), "binary");
    }

    #[test]
    fn a_client_masks() {
        let frame = text(b"hello");
        assert_eq!(frame[..2], [0x81, 0x85]);
        let unmasked: Vec<u8> = frame[6..].iter().zip(frame[2..6].iter().cycle()).map(|(b, m)| b ^ m).collect();
        assert_eq!(unmasked, b"hello");
    }
}
