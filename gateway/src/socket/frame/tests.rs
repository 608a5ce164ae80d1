//! The reader with tungstenite as the reference, the frames that must close a socket, and our own frames as a strict
//! client reads them.
#![allow(clippy::unwrap_used)]

use std::io::{self, Cursor, Read, Write};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocket};
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};

use super::*;

/// The default of `MAX_MESSAGE_BYTES`.
const MAX_MESSAGE: usize = 16_384;
const MASK: [u8; 4] = [0xA5, 0x00, 0xFF, 0x3C];

/// A connection on which everything has arrived already; what is answered is forgotten.
struct Arrived(Cursor<Vec<u8>>);

impl Read for Arrived {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Arrived {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What tungstenite makes of the bytes, to their end or a Close.
fn tungstenite_reads(role: Role, bytes: &[u8]) -> Result<Vec<Message>, Error> {
    let mut socket = WebSocket::from_raw_socket(Arrived(Cursor::new(bytes.to_vec())), role, None);
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => messages.push(message),
            Err(Error::ConnectionClosed | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return Ok(messages);
            }
            // How a client reports that it has answered our Close and waits for the end.
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(messages),
            Err(error) => return Err(error),
        }
    }
}

/// What a strict client makes of our bytes.
pub fn client_reads(bytes: &[u8]) -> Vec<Message> {
    tungstenite_reads(Role::Client, bytes).unwrap()
}

/// What a [`Reader`] made of some bytes; an error as its code and text.
#[derive(Debug, PartialEq)]
struct Outcome {
    incoming: Vec<Incoming>,
    cost: u32,
    end: Result<(), (u16, String)>,
}

/// Feeds chunk after chunk up to the first error, and checks at each step that the reader keeps no more than it may.
fn read<'a>(max_message: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    // A control frame may come while all of a message but its end is kept (§5.4).
    let most = max_message + MAX_HEADER.max(2 + 4 + MAX_CONTROL);
    let mut reader = Reader::new(max_message);
    let mut outcome = Chunk::default();
    for chunk in chunks {
        if let Err(reason) = reader.feed(&mut chunk.to_vec(), &mut outcome) {
            let end = Err((reason.code(), reason.to_string()));
            return Outcome { incoming: outcome.incoming, cost: outcome.cost, end };
        }
        let message = reader.message.as_ref().map_or(0, Vec::len);
        assert!(message <= max_message);
        assert!(message + reader.partial.len() <= most, "{message} + {} > {most}", reader.partial.len());
        assert!(reader.midway() || reader.partial.capacity() == 0, "memory is held between messages");
    }
    Outcome { incoming: outcome.incoming, cost: outcome.cost, end: Ok(()) }
}

fn cut<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect()
}

fn encode(mut frame: Frame, mask: [u8; 4]) -> Vec<u8> {
    frame.header_mut().mask = Some(mask);
    let mut bytes = Vec::new();
    frame.format(&mut bytes).unwrap();
    bytes
}

/// Of any payload: `Frame::close` would only take a right one.
fn control_frame(payload: Vec<u8>, opcode: OpCode) -> Frame {
    let mut frame = Frame::ping(payload);
    frame.header_mut().opcode = opcode;
    frame
}

fn control() -> impl Strategy<Value = Frame> {
    let opcode = prop_oneof![Just(OpCode::Control(Control::Ping)), Just(OpCode::Control(Control::Pong))];
    (opcode, vec(any::<u8>(), 0..=MAX_CONTROL)).prop_map(|(opcode, payload)| control_frame(payload, opcode))
}

/// Lengths around each form of the length, and the usual ones.
fn content() -> impl Strategy<Value = String> {
    let edges = prop_oneof![124..=128usize, 65_534..=65_537usize];
    prop_oneof![30 => "\\PC{0,40}", 1 => (edges, "[a-z]").prop_map(|(length, letter)| letter.repeat(length))]
}

/// A text message cut anywhere, also inside characters and into nothing, with control frames in between.
fn message() -> impl Strategy<Value = Vec<Frame>> {
    (content(), vec((any::<Index>(), vec(control(), 0..3)), 0..5)).prop_map(|(text, breaks)| {
        let (cuts, controls): (Vec<_>, Vec<_>) = breaks.into_iter().unzip();
        let fragments = cut(text.as_bytes(), &cuts);
        let last = fragments.len() - 1;
        let mut controls = controls.into_iter();
        let frames = fragments.iter().enumerate().flat_map(|(index, fragment)| {
            let opcode = OpCode::Data(if index == 0 { Data::Text } else { Data::Continue });
            let data = Frame::message(fragment.to_vec(), opcode, index == last);
            std::iter::once(data).chain(controls.next().unwrap_or_default())
        });
        frames.collect()
    })
}

fn goodbye() -> impl Strategy<Value = Frame> {
    // Not 1014, which was registered after tungstenite's list was made.
    let code = prop_oneof![1000..=1003u16, 1007..=1013u16, 3000..=4999u16].prop_map(CloseCode::from);
    let frame = (code, "\\PC{0,30}").prop_map(|(code, reason)| CloseFrame { code, reason: reason.into() });
    prop::option::of(frame).prop_map(Frame::close)
}

/// Everything that a well-behaved client may send, masked at random.
fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let item = prop_oneof![3 => message(), 1 => control().prop_map(|frame| vec![frame])];
    let frames = (vec(item, 0..6), prop::option::of(goodbye()))
        .prop_map(|(items, goodbye)| items.into_iter().flatten().chain(goodbye).collect::<Vec<_>>());
    (frames, any::<[u8; 4]>()).prop_map(|(frames, seed)| {
        let masks = (0u8..).map(|turn| seed.map(|byte| byte.wrapping_mul(turn | 1).wrapping_add(turn)));
        frames.into_iter().zip(masks.cycle()).flat_map(|(frame, mask)| encode(frame, mask)).collect()
    })
}

/// Bytes that get past the first check more often than noise does.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let noise = vec(any::<u8>(), 0..400);
    let spoilt = (conversation(), vec((any::<Index>(), any::<u8>()), 1..4)).prop_map(|(mut bytes, changes)| {
        for (at, byte) in changes.into_iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    });
    let header = (prop::sample::select(vec![0x01, 0x00, 0x80, 0x81, 0x88, 0x89, 0x8A, 0x82, 0xC1]), any::<u8>());
    let odd = vec((header, vec(any::<u8>(), 0..140)), 1..8).prop_map(|frames| {
        let frame = |((first, second), rest): ((u8, u8), Vec<u8>)| [vec![first, second | 0x80], rest].concat();
        frames.into_iter().flat_map(frame).collect()
    });
    prop_oneof![1 => noise, 4 => spoilt, 4 => odd]
}

proptest! {
    #[test]
    fn what_a_client_sends_is_read_as_tungstenite_reads_it(bytes in conversation(), cuts in vec(any::<Index>(), 0..20)) {
        let expected: Vec<_> = tungstenite_reads(Role::Server, &bytes).unwrap().into_iter().map(|message| match message {
            Message::Text(text) => Incoming::Text(text.to_string()),
            Message::Ping(payload) => Incoming::Ping(payload.to_vec()),
            Message::Pong(_) => Incoming::Pong,
            Message::Close(frame) => Incoming::Close(frame.map_or(1005, |frame| frame.code.into())),
            other => panic!("no client sent {other:?}"),
        }).collect();
        let outcome = read(1 << 17, cut(&bytes, &cuts));
        prop_assert_eq!(outcome.end, Ok(()));
        prop_assert_eq!(outcome.incoming, expected);
    }

    #[test]
    fn hostile_bytes_neither_panic_nor_fill_memory_nor_depend_on_how_they_are_cut(
        bytes in hostile(), max_message in 1..300usize, cuts in vec(any::<Index>(), 0..20),
    ) {
        let whole = read(max_message, [&bytes[..]]);
        prop_assert_eq!(&read(max_message, cut(&bytes, &cuts)), &whole);
        // What comes byte by byte is put together again and again: enough of it to meet every header.
        let short = &bytes[..bytes.len().min(2000)];
        prop_assert_eq!(read(max_message, short.chunks(1)), read(max_message, [short]));
    }
}

fn data(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let opcode = match opcode {
        0 => Data::Continue,
        TEXT => Data::Text,
        _ => Data::Binary,
    };
    encode(Frame::message(payload.to_vec(), OpCode::Data(opcode), fin), MASK)
}

fn closing(payload: &[u8]) -> Vec<u8> {
    encode(control_frame(payload.to_vec(), OpCode::Control(Control::Close)), MASK)
}

/// A header that no encoder writes, with a mask of zeros and no payload.
fn header(first: u8, length: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | length[0]], &length[1..], &[0; 4]].concat()
}

fn long(length: u64) -> Vec<u8> {
    [&[127][..], &length.to_be_bytes()].concat()
}

/// Each is refused with the code, whole and byte by byte, and what was sent before it still counts.
fn each_closes(code: u16, attacks: impl IntoIterator<Item = (String, Vec<u8>)>) {
    for (name, attack) in attacks {
        let bytes = [data(true, TEXT, b"before"), attack].concat();
        let whole = read(MAX_MESSAGE, [&bytes[..]]);
        assert_eq!(whole.end.as_ref().map_err(|(code, _)| *code), Err(code), "{name}");
        assert_eq!(whole.incoming[0], Incoming::Text("before".into()), "{name}");
        assert!(!whole.incoming[1..].iter().any(|incoming| matches!(incoming, Incoming::Text(_))), "{name}");
        if bytes.len() < 1000 {
            assert_eq!(read(MAX_MESSAGE, bytes.chunks(1)), whole, "{name}");
        }
    }
}

fn named<const N: usize>(attacks: [(&str, Vec<u8>); N]) -> [(String, Vec<u8>); N] {
    attacks.map(|(name, bytes)| (name.to_owned(), bytes))
}

#[test]
fn b01_unmasked() {
    each_closes(1002, named([("text", text(b"hi").to_vec()), ("ping", vec![0x89, 0]), ("close", vec![0x88, 0])]));
}

#[test]
fn b02_reserved_bits() {
    each_closes(1002, (1..8u8).map(|bits| (format!("bits {bits:03b}"), header(0x81 | bits << 4, &[0]))));
    each_closes(1002, (1..8u8).map(|bits| (format!("ping {bits:03b}"), header(0x89 | bits << 4, &[0]))));
}

#[test]
fn b03_reserved_opcodes() {
    each_closes(1002, (3..=7).chain(11..=15u8).map(|opcode| (format!("{opcode}"), header(0x80 | opcode, &[0]))));
}

#[test]
fn b04_fragmented_control_frames() {
    each_closes(1002, [CLOSE, PING, PONG].map(|opcode| (format!("{opcode}"), header(opcode, &[0]))));
}

#[test]
fn b05_long_control_frames() {
    for opcode in [CLOSE, PING, PONG] {
        let lengths = [vec![126, 0, 126], vec![126, 0, 5], long(126), long(5), long(1 << 63)];
        each_closes(1002, lengths.map(|length| (format!("{opcode} {length:?}"), header(0x80 | opcode, &length))));
    }
    let longest = encode(Frame::ping(vec![7; MAX_CONTROL]), MASK);
    assert_eq!(read(MAX_MESSAGE, [&longest[..]]).incoming, [Incoming::Ping(vec![7; MAX_CONTROL])]);
}

#[test]
fn b06_frames_out_of_turn() {
    let begun = || data(false, TEXT, b"a");
    let attacks = [
        ("a continuation of nothing", data(false, 0, b"x")),
        ("a last continuation of nothing", data(true, 0, b"x")),
        ("a text inside a text", [begun(), data(true, TEXT, b"b")].concat()),
        ("a text begins inside a text", [begun(), data(false, TEXT, b"b")].concat()),
        ("binary inside a text", [begun(), data(true, BINARY, b"b")].concat()),
        ("after a ping too", [begun(), encode(Frame::ping("p"), MASK), data(true, TEXT, b"b")].concat()),
    ];
    each_closes(1002, named(attacks));

    let outcome = read(MAX_MESSAGE, [&[begun(), data(true, 0, b"b"), data(true, 0, b"c")].concat()[..]]);
    assert_eq!(outcome.incoming, [Incoming::Text("ab".into())]);
    assert_eq!(outcome.end.unwrap_err().0, 1002);
}

#[test]
fn b07_ping_between_fragments_byte_by_byte() {
    let bytes = [data(false, TEXT, b"a\xC3"), encode(Frame::ping("p"), MASK), data(true, 0, b"\xA9b")].concat();
    let outcome = read(MAX_MESSAGE, bytes.chunks(1));
    assert_eq!(outcome.end, Ok(()));
    assert_eq!(outcome.incoming, [Incoming::Ping(b"p".to_vec()), Incoming::Text("aéb".into())]);
}

#[test]
fn b08_declared_length_is_judged_before_a_byte_follows() {
    for length in [MAX_MESSAGE as u64 + 1, 1 << 30, 1 << 63, u64::MAX] {
        for opcode in [0x80 | TEXT, TEXT] {
            // Not even the mask has come.
            let head = [&[opcode, 0xFF][..], &length.to_be_bytes()].concat();
            each_closes(1009, [(format!("{length}"), head)]);
        }
    }
    each_closes(1009, named([("16 bits", [&[0x81, 0xFE][..], &(MAX_MESSAGE as u16 + 1).to_be_bytes()].concat())]));
}

#[test]
fn b09_largest_message() {
    let content = "x".repeat(MAX_MESSAGE);
    let whole = data(true, TEXT, content.as_bytes());
    let half = &content.as_bytes()[..MAX_MESSAGE / 2];
    let halves = [data(false, TEXT, half), data(true, 0, half)].concat();
    for bytes in [&whole, &halves] {
        let outcome = read(MAX_MESSAGE, bytes.chunks(4096));
        assert_eq!((outcome.incoming, outcome.end), (vec![Incoming::Text(content.clone())], Ok(())));
    }
    let too_big = [
        ("whole", data(true, TEXT, &[b'x'; MAX_MESSAGE + 1])),
        ("in two", [data(false, TEXT, half), data(true, 0, &[half, b"x"].concat())].concat()),
        ("in three", [data(false, TEXT, half), data(false, 0, half), data(true, 0, b"x")].concat()),
    ];
    each_closes(1009, named(too_big));
}

#[test]
fn b10_empty_fragments_cost_and_keep_nothing() {
    let bytes = [data(false, TEXT, b""), data(false, 0, b"").repeat(999)].concat();
    let outcome = read(16, bytes.chunks(100));
    assert_eq!(outcome, Outcome { incoming: vec![], cost: 1000, end: Ok(()) });
}

#[test]
fn messages_and_control_frames_cost_one_each_and_fragments_nothing() {
    let close = closing(&1000u16.to_be_bytes());
    let control = [encode(Frame::ping("p"), MASK), encode(Frame::pong("p"), MASK), close].concat();
    let bytes = [data(false, TEXT, b"a"), data(false, 0, b"b"), data(true, 0, b""), data(true, TEXT, b""), control];
    assert_eq!(read(MAX_MESSAGE, [&bytes.concat()[..]]).cost, 5);
}

#[test]
fn b11_not_utf8() {
    let bad: [&[u8]; 7] =
        [b"\xFF", b"\xED\xA0\x80", b"\xC0\x80", b"\xF4\x90\x80\x80", b"\xF8\x88\x80\x80\x80", b"ok\x80", b"cut\xC3"];
    each_closes(1007, bad.map(|bytes| (format!("{bytes:?}"), data(true, TEXT, bytes))));
    let split = |bytes: &[u8]| [data(false, TEXT, &bytes[..1]), data(true, 0, &bytes[1..])].concat();
    each_closes(1007, bad.map(|bytes| (format!("{bytes:?} split"), split(bytes))));
}

#[test]
fn b12_binary() {
    each_closes(1003, named([("whole", data(true, BINARY, b"x")), ("in parts", data(false, BINARY, b"x"))]));
}

#[test]
fn b13_malformed_close() {
    let with_reason = |code: u16, reason: &[u8]| [&code.to_be_bytes()[..], reason].concat();
    each_closes(1002, named([("one byte", closing(&[3]))]));
    let codes = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2000, 2999, 5000, 65_535];
    each_closes(1002, codes.map(|code| (format!("{code}"), closing(&with_reason(code, b"why")))));
    each_closes(1002, named([("a reason of 124 bytes", closing(&with_reason(1000, &[b'x'; 124])))]));
    each_closes(1007, named([("a reason that is no UTF-8", closing(&with_reason(1000, b"\xFF")))]));
}

#[test]
fn b14_close_codes_that_may_be_sent() {
    for code in (1000..=1003).chain(1007..=1014).chain([3000, 3999, 4000, 4999]) {
        let bytes = closing(&[&u16::to_be_bytes(code)[..], &[b'x'; 123]].concat());
        assert_eq!(read(MAX_MESSAGE, [&bytes[..]]).incoming, [Incoming::Close(code)]);
    }
    assert_eq!(read(MAX_MESSAGE, [&closing(b"")[..]]).incoming, [Incoming::Close(1005)]);
}

#[test]
fn lengths_must_be_in_their_shortest_form() {
    each_closes(1002, [0u8, 5, 125].map(|length| (format!("{length} in 16 bits"), header(0x81, &[126, 0, length]))));
    each_closes(
        1002,
        [0, 125, 126, 16_384].map(|length| (format!("{length} in 64 bits"), header(0x81, &long(length)))),
    );
    assert_eq!(read(1 << 17, [&header(0x81, &long(0xFFFF))[..]]).end.unwrap_err().0, 1002);
    assert_eq!(read(1 << 17, [&header(0x81, &long(0x1_0000))[..]]).end, Ok(()));
}

#[test]
fn our_frames_are_what_a_client_reads() {
    for length in [0, 1, 125, 126, 127, 65_535, 65_536] {
        let content = "x".repeat(length);
        assert_eq!(client_reads(&text(content.as_bytes())), [Message::text(content.clone())]);
        let ping = Message::Ping(tokio_tungstenite::tungstenite::Bytes::new());
        assert_eq!(client_reads(&text_and_ping(content.as_bytes())), [Message::text(content), ping]);
    }
    let three = ["", "é", &"y".repeat(300)];
    let frames = texts(three.iter().map(|text| text.as_bytes()));
    assert_eq!(client_reads(&frames), three.map(Message::text));
    assert!(texts(std::iter::empty()).is_empty());
    for payload in [&b""[..], &[0xFF; MAX_CONTROL]] {
        assert_eq!(client_reads(&pong(payload)), [Message::Pong(payload.to_vec().into())]);
    }
}

#[test]
fn a_long_reason_to_close_is_cut_between_characters() {
    let longest = "x".repeat(123);
    let umlauts = "ü".repeat(100);
    for (reason, read) in [("", ""), ("why", "why"), (&longest, &longest), (&umlauts, &umlauts[..122])] {
        let frame = CloseFrame { code: CloseCode::from(4401), reason: read.into() };
        assert_eq!(client_reads(&close(4401, reason)), [Message::Close(Some(frame))]);
    }
}
