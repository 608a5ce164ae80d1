//! The frame reader: what it makes of a connection's bytes doesn't depend on how the network cuts them, and it holds no more than a
//! message. The input is the largest message, the size of the pieces, and then the bytes.
#![cfg_attr(fuzzing, no_main)]

use std::alloc::System;

use gateway::socket::frame::{Chunk, Incoming, Reader};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The longest payload of a control frame, which may come while a message is kept (RFC 6455 §5.5).
const MAX_CONTROL: usize = 125;
/// The longest header of a client's frame.
const MAX_HEADER: usize = 14;

/// All that a reader says of some bytes: messages, cost, whether it waits for more; or a reason to close, as its code and text.
#[derive(Debug, PartialEq)]
struct Reading {
    incoming: Vec<Incoming>,
    cost: u32,
    end: Result<bool, (u16, String)>,
}

fn read<'a>(max_message: usize, pieces: impl Iterator<Item = &'a mut [u8]>) -> Reading {
    let mut reader = Reader::new(max_message);
    let mut chunk = Chunk::default();
    let mut end = Ok(());
    for piece in pieces {
        end = reader.feed(piece, &mut chunk);
        if end.is_err() {
            break;
        }
    }
    let end = end.map(|()| reader.midway()).map_err(|reason| (reason.code(), reason.to_string()));
    Reading { incoming: chunk.incoming, cost: chunk.cost, end }
}

/// The most that a reader holds after any piece, in bytes of the heap.
fn most_held(max_message: usize, bytes: &mut [u8], piece: usize) -> usize {
    let before = Region::new(MEMORY);
    let mut reader = Reader::new(max_message);
    let mut most = 0;
    for piece in bytes.chunks_mut(piece) {
        if reader.feed(piece, &mut Chunk::default()).is_err() {
            break;
        }
        let change = before.change();
        most = most.max(change.bytes_allocated.saturating_sub(change.bytes_deallocated));
        assert!(reader.midway() || change.bytes_allocated == change.bytes_deallocated, "held between messages");
    }
    most
}

fn check(input: &[u8]) {
    let [max_message, piece, bytes @ ..] = input else { return };
    let (max_message, piece) = (usize::from(*max_message) + 1, usize::from(*piece) + 1);

    let whole = read(max_message, std::iter::once(&mut bytes.to_vec()[..]));
    let cut = read(max_message, bytes.to_vec().chunks_mut(piece));
    assert_eq!(cut, whole, "in pieces of {piece}");

    for incoming in &whole.incoming {
        match incoming {
            Incoming::Text(text) => assert!(text.len() <= max_message, "{} bytes of {max_message}", text.len()),
            Incoming::Ping(payload) => assert!(payload.len() <= MAX_CONTROL, "{} bytes", payload.len()),
            Incoming::Pong => {}
            Incoming::Close(code) => assert!(matches!(code, 1000..=1003 | 1005 | 1007..=1014 | 3000..=4999), "{code}"),
        }
    }
    if let Err((_, text)) = &whole.end {
        gateway_fuzz::assert_presentable(text);
    }

    // A message so far and the beginning of a frame; a vector that grows has up to twice what is in it.
    let limit = 2 * (max_message + MAX_HEADER + MAX_CONTROL.max(max_message) + piece);
    let held = most_held(max_message, &mut bytes.to_vec(), piece);
    assert!(held <= limit, "{held} bytes are held of at most {limit}");
}

gateway_fuzz::target!(check);
