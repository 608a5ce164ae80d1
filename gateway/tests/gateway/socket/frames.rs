//! B01–B18: frames that RFC 6455 forbids or that someone sends to hurt, on a raw socket after the 101.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use crate::harness::raw::{BINARY, CLOSE, CONTINUATION, PING, PONG, RawFrame, RawSocket, TEXT};
use crate::harness::{Bystanders, Setup, Stack, hostile, http};

/// A socket of the tenant under attack, joined.
async fn attacker(stack: &Stack, bystanders: &Bystanders) -> RawSocket {
    RawSocket::joined(stack.addr(), &bystanders.token()).await
}

/// Each attack on a socket of its own, which must be closed with this code and counted under this reason.
async fn each_closes_with(code: u16, reason: &str, attacks: Vec<(String, Vec<RawFrame>)>) {
    let counted = format!("disconnects {reason}");
    hostile(Setup::new(), &[&counted], async |stack, bystanders| {
        let sockets = attacks.len() as u64;
        for (name, frames) in attacks {
            let mut socket = attacker(stack, bystanders).await;
            for frame in frames {
                socket.send(frame).await;
            }
            assert_eq!(socket.close_code().await, Some(code), "{name}");
        }
        assert_eq!(stack.refused(&[&counted]).await[&counted], sockets);
    })
    .await;
}

fn attack(name: impl Into<String>, frames: impl IntoIterator<Item = RawFrame>) -> (String, Vec<RawFrame>) {
    (name.into(), frames.into_iter().collect())
}

/// A right message of exactly this many bytes; unknown fields are ignored, so it is answered with a heartbeat.
fn ping_of(bytes: usize) -> String {
    let frame = r#"{"event":"ping","pad":""}"#;
    format!(r#"{{"event":"ping","pad":"{}"}}"#, "x".repeat(bytes - frame.len()))
}

const PING_MESSAGE: &str = r#"{"event":"ping"}"#;

#[tokio::test]
async fn b01_unmasked_frame_is_1002() {
    let attacks = [RawFrame::text(PING_MESSAGE), RawFrame::new(PING, ""), RawFrame::close(1000, b"")];
    each_closes_with(1002, "framing", attacks.map(|frame| attack(format!("{frame:?}"), [frame.unmasked()])).into())
        .await;
}

#[tokio::test]
async fn b02_reserved_bits_are_1002() {
    let mut attacks = Vec::new();
    for rsv in 1..=7 {
        attacks.push(attack(format!("text with rsv {rsv}"), [RawFrame::text(PING_MESSAGE).with_rsv(rsv)]));
    }
    attacks.push(attack("ping with rsv1", [RawFrame::new(PING, "x").with_rsv(4)]));
    attacks.push(attack("close with rsv3", [RawFrame::close(1000, b"").with_rsv(1)]));
    each_closes_with(1002, "framing", attacks).await;
}

#[tokio::test]
async fn b03_reserved_opcodes_are_1002() {
    let opcodes = (3..=7).chain(11..=15);
    each_closes_with(
        1002,
        "framing",
        opcodes.map(|opcode| attack(format!("opcode {opcode}"), [RawFrame::new(opcode, "x")])).collect(),
    )
    .await;
}

#[tokio::test]
async fn b04_fragmented_control_frame_is_1002() {
    let opcodes = [CLOSE, PING, PONG];
    each_closes_with(
        1002,
        "framing",
        opcodes.map(|opcode| attack(format!("opcode {opcode}"), [RawFrame::new(opcode, "").unfinished()])).into(),
    )
    .await;
}

#[tokio::test]
async fn b05_control_payload_over_125_is_1002() {
    let mut attacks = Vec::new();
    for opcode in [CLOSE, PING, PONG] {
        attacks.push(attack(format!("126 bytes on {opcode}"), [RawFrame::new(opcode, vec![b'x'; 126])]));
        attacks.push(attack(format!("a 64-bit length on {opcode}"), [RawFrame::new(opcode, "").declaring(126)]));
    }
    each_closes_with(1002, "framing", attacks).await;
}

#[tokio::test]
async fn b06_misplaced_continuation_is_1002() {
    let begun = || RawFrame::text(r#"{"event":"#).unfinished();
    let attacks = vec![
        attack("a last continuation of nothing", [RawFrame::new(CONTINUATION, "x")]),
        attack("a continuation of nothing", [RawFrame::new(CONTINUATION, "x").unfinished()]),
        attack("text inside a message", [begun(), RawFrame::text(PING_MESSAGE)]),
        attack("text to be continued inside a message", [begun(), begun()]),
        attack("binary inside a message", [begun(), RawFrame::new(BINARY, "x")]),
        attack(
            "a continuation after the end",
            [begun(), RawFrame::new(CONTINUATION, r#""ping"}"#), RawFrame::new(CONTINUATION, "x")],
        ),
    ];
    each_closes_with(1002, "framing", attacks).await;
}

#[tokio::test]
async fn b07_ping_between_fragments_byte_by_byte_is_answered() {
    hostile(Setup::new(), &[], async |stack, bystanders| {
        let frames = [
            RawFrame::text(r#"{"event""#).unfinished(),
            RawFrame::new(PING, "still there?"),
            RawFrame::new(CONTINUATION, r#":"pi"#).unfinished(),
            RawFrame::new(CONTINUATION, "").unfinished(),
            RawFrame::new(CONTINUATION, r#"ng"}"#),
        ];
        for by_byte in [false, true] {
            let mut socket = attacker(stack, bystanders).await;
            let bytes: Vec<u8> = frames.iter().flat_map(RawFrame::encode).collect();
            for chunk in bytes.chunks(if by_byte { 1 } else { bytes.len() }) {
                assert!(socket.send_bytes(chunk).await);
                tokio::task::yield_now().await;
            }
            assert_eq!(socket.expect_frame(PONG).await.payload, b"still there?");
            socket.expect_message("heartbeat").await;
            socket.send(RawFrame::close(1000, b"")).await;
            assert_eq!(socket.close_code().await, Some(1000));
        }
    })
    .await;
}

#[tokio::test]
async fn b08_absurd_length_is_refused_at_the_header() {
    hostile(Setup::new(), &["disconnects binary", "disconnects too_big"], async |stack, bystanders| {
        let before = stack.gateway().resident_kib();
        for opcode in [TEXT, BINARY] {
            for length in [1 << 30, 16_385, 1 << 62] {
                let mut socket = attacker(stack, bystanders).await;
                socket.send(RawFrame::new(opcode, "").declaring(length)).await;
                let code = socket.close_code().await;
                assert!(matches!(code, Some(1009 | 1003)), "{length} bytes of {opcode} declared: {code:?}");
            }
        }
        for length in [1 << 63, u64::MAX] {
            let mut socket = attacker(stack, bystanders).await;
            socket.send(RawFrame::new(TEXT, "").declaring(length)).await;
            // RFC 6455 5.2: the most significant bit must be 0, so this is broken framing as much as too big.
            let code = socket.close_code().await;
            assert!(matches!(code, Some(1002 | 1009)), "{length} bytes declared: {code:?}");
        }
        let mut socket = attacker(stack, bystanders).await;
        socket.send(RawFrame::text(&"x".repeat(16_000)).unfinished()).await;
        socket.send(RawFrame::new(CONTINUATION, "").declaring(400)).await;
        assert_eq!(socket.close_code().await, Some(1009), "the message as a whole is too big");
        let grown = stack.gateway().resident_kib().saturating_sub(before);
        assert!(grown < 4096, "memory grew by {grown} KiB");
    })
    .await;
}

#[tokio::test]
async fn b09_message_limit_is_exact() {
    const LIMIT: usize = 16_384;
    hostile(Setup::new(), &["disconnects too_big"], async |stack, bystanders| {
        let fragments = |text: &str| {
            let (head, tail) = text.split_at(10_000);
            [RawFrame::text(head).unfinished(), RawFrame::new(CONTINUATION, tail)]
        };
        let mut socket = attacker(stack, bystanders).await;
        socket.send(RawFrame::text(&ping_of(LIMIT))).await;
        socket.expect_message("heartbeat").await;
        for frame in fragments(&ping_of(LIMIT)) {
            socket.send(frame).await;
        }
        socket.expect_message("heartbeat").await;
        socket.send(RawFrame::text(&ping_of(LIMIT + 1))).await;
        assert_eq!(socket.close_code().await, Some(1009));

        let mut socket = attacker(stack, bystanders).await;
        for frame in fragments(&ping_of(LIMIT + 1)) {
            socket.send(frame).await;
        }
        assert_eq!(socket.close_code().await, Some(1009));
    })
    .await;
}

/// Sends `frame` as fast as the gateway takes it, until it closes; at most `limit` of them.
async fn flood(socket: &mut RawSocket, frame: RawFrame, limit: usize) -> Option<u16> {
    let burst = frame.encode().repeat(50);
    for _ in 0..limit / 50 {
        if !socket.send_bytes(&burst).await {
            break;
        }
        socket.take_in();
    }
    socket.close_code().await
}

#[tokio::test]
async fn b10_endless_empty_fragments_are_4429() {
    hostile(Setup::new(), &["disconnects too_many_messages"], async |stack, bystanders| {
        let mut socket = attacker(stack, bystanders).await;
        socket.send(RawFrame::text("").unfinished()).await;
        let code = flood(&mut socket, RawFrame::new(CONTINUATION, "").unfinished(), 5_000).await;
        assert_eq!(code, Some(4429));
    })
    .await;
}

#[tokio::test]
async fn b11_invalid_utf8_is_1007() {
    let sequences: [(&str, &[u8]); 6] = [
        ("0xFF", &[0xFF]),
        ("a surrogate", &[0xED, 0xA0, 0x80]),
        ("an overlong NUL", &[0xC0, 0x80]),
        ("beyond U+10FFFF", &[0xF4, 0x90, 0x80, 0x80]),
        ("a lone continuation", b"{\"event\":\"\x80\"}"),
        ("cut short", &[0xE2, 0x82]),
    ];
    let mut attacks: Vec<_> =
        sequences.iter().map(|(name, bytes)| attack(*name, [RawFrame::new(TEXT, *bytes)])).collect();
    // A whole character split across fragments is right; the wrong byte comes after it.
    attacks.push(attack(
        "across fragments",
        [RawFrame::new(TEXT, [0xE2]).unfinished(), RawFrame::new(CONTINUATION, [0x82, 0xAC, 0xFF])],
    ));
    each_closes_with(1007, "not_utf8", attacks).await;
}

#[tokio::test]
async fn b11_character_split_across_fragments_is_accepted() {
    hostile(Setup::new(), &[], async |stack, bystanders| {
        let mut socket = attacker(stack, bystanders).await;
        let message = "{\"event\":\"ping\",\"note\":\"€\"}".as_bytes();
        let inside_the_euro = message.iter().position(|byte| *byte == 0xE2).unwrap() + 1;
        socket.send(RawFrame::new(TEXT, &message[..inside_the_euro]).unfinished()).await;
        socket.send(RawFrame::new(CONTINUATION, &message[inside_the_euro..])).await;
        socket.expect_message("heartbeat").await;
    })
    .await;
}

#[tokio::test]
async fn b12_binary_frame_is_1003() {
    let attacks = vec![
        attack("valid JSON", [RawFrame::new(BINARY, PING_MESSAGE)]),
        attack("nothing", [RawFrame::new(BINARY, "")]),
        attack("a fragment", [RawFrame::new(BINARY, "x").unfinished()]),
    ];
    each_closes_with(1003, "binary", attacks).await;
}

#[tokio::test]
async fn b13_malformed_close_is_1002_or_1007() {
    let mut attacks = vec![
        attack("one byte", [RawFrame::new(CLOSE, [3])]),
        attack("a reason of 124 bytes", [RawFrame::close(1000, &[b'x'; 124])]),
    ];
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 65_535] {
        attacks.push(attack(format!("code {code}"), [RawFrame::close(code, b"")]));
    }
    each_closes_with(1002, "framing", attacks).await;
    each_closes_with(1007, "not_utf8", vec![attack("a reason that is no UTF-8", [RawFrame::close(1000, &[0xFF])])])
        .await;
}

#[tokio::test]
async fn b14_close_is_echoed_and_what_follows_is_ignored() {
    hostile(Setup::new(), &[], async |stack, bystanders| {
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
            let mut socket = attacker(stack, bystanders).await;
            socket.send(RawFrame::close(code, b"done")).await;
            let echoed = socket.close_code().await;
            assert!(echoed == Some(code) || echoed == Some(1000), "{code} was answered with {echoed:?}");
        }
        let mut empty = attacker(stack, bystanders).await;
        empty.send(RawFrame::new(CLOSE, "")).await;
        // 1005 means that there was no code; as a code it must not be on the wire (RFC 6455 §7.4.1).
        assert_eq!(empty.expect_frame(CLOSE).await.payload, b"");

        let mut twice = attacker(stack, bystanders).await;
        let after: Vec<u8> = [
            RawFrame::close(1000, b""),
            RawFrame::text(PING_MESSAGE),
            RawFrame::close(1001, b""),
            RawFrame::new(BINARY, "x"),
        ]
        .iter()
        .flat_map(RawFrame::encode)
        .collect();
        twice.send_bytes(&after).await;
        let first = twice.next_frame().await.expect("the Close is answered");
        assert_eq!((first.opcode, first.code()), (CLOSE, Some(1000)));
        assert_eq!(twice.next_frame().await, None, "nothing follows a Close");
    })
    .await;
}

#[tokio::test]
async fn b15_pings_within_the_limit_are_answered() {
    hostile(Setup::new(), &[], async |stack, bystanders| {
        let mut socket = attacker(stack, bystanders).await;
        let pings: Vec<u8> = (0..100).flat_map(|n: u8| RawFrame::new(PING, [n]).encode()).collect();
        socket.send_bytes(&pings).await;
        // RFC 6455 5.5.3: only the most recent ping needs its pong.
        while socket.expect_frame(PONG).await.payload != [99] {}
        for _ in 0..5 {
            socket.send(RawFrame::new(PONG, "nobody asked")).await;
        }
        socket.send(RawFrame::text(PING_MESSAGE)).await;
        socket.expect_message("heartbeat").await;
    })
    .await;
}

#[tokio::test]
async fn b15_control_frame_floods_are_4429() {
    hostile(Setup::new(), &["disconnects too_many_messages"], async |stack, bystanders| {
        for frame in [RawFrame::new(PING, "x"), RawFrame::new(PONG, "x"), RawFrame::new(PING, [b'x'; 125])] {
            let mut socket = attacker(stack, bystanders).await;
            assert_eq!(flood(&mut socket, frame.clone(), 10_000).await, Some(4429), "{frame:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn b16_message_flood_is_4429() {
    let setup = Setup::new();
    let mut stack = setup.lease().await;
    let mut bystanders = Bystanders::join(&stack).await;
    let mut floods = Vec::new();
    for _ in 0..4 {
        let mut socket = attacker(&stack, &bystanders).await;
        floods.push(tokio::spawn(async move { flood(&mut socket, RawFrame::text(PING_MESSAGE), 50_000).await }));
    }
    // In the middle of it, an event must still be on time.
    let begun = Instant::now();
    bystanders.receive(&mut stack).await;
    assert!(begun.elapsed() < Duration::from_millis(500), "the bystanders waited {:?}", begun.elapsed());
    for flood in floods {
        assert_eq!(flood.await.unwrap(), Some(4429));
    }
    bystanders.unharmed(&mut stack).await;
    bystanders.leave().await;
    stack.refused(&["disconnects too_many_messages"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b17_garbage_on_the_port_is_refused_quietly() {
    hostile(Setup::new(), &["http_requests 400"], async |stack, _| {
        let lines_before = stack.gateway().log().lines().len();
        let hello = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[0xAA; 200]].concat();
        let random: Vec<u8> = (0..512_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for bytes in [
            hello.as_slice(),
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b"\x00\x00\x00\x00",
            &random,
            b"GET\r\n\r\n",
            b"\r\n\r\n\r\n\r\n",
        ] {
            for _ in 0..10 {
                let mut socket = RawSocket::connect(stack.addr()).await;
                socket.send_bytes(bytes).await;
                let _ = socket.stream.shutdown().await;
                let mut answer = Vec::new();
                let _ = tokio::io::AsyncReadExt::read_to_end(&mut socket.stream, &mut answer).await;
                let text = String::from_utf8_lossy(&answer);
                assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{bytes:?} was answered {text}");
            }
        }
        let lines = stack.gateway().log().lines().len() - lines_before;
        assert!(lines <= 5, "60 bad connections made {lines} lines of log");
        http::get(stack.gateway().internal, "/healthz").await.expect(200);
    })
    .await;
}

#[tokio::test]
async fn b18_sender_that_ignores_our_close_is_cut_off() {
    hostile(Setup::new(), &["disconnects binary"], async |stack, bystanders| {
        let mut socket = attacker(stack, bystanders).await;
        socket.send(RawFrame::new(BINARY, "x")).await;
        let close = loop {
            let frame = socket.next_frame().await.expect("a Close comes");
            if frame.opcode == CLOSE {
                break frame;
            }
        };
        assert_eq!(close.code(), Some(1003));
        let begun = Instant::now();
        let junk = RawFrame::new(BINARY, vec![0; 16_000]).encode();
        // Not cut at the first byte (that could destroy the Close on its way), but soon.
        while socket.send_bytes(&junk).await {
            assert!(begun.elapsed() < Duration::from_secs(3), "the gateway keeps reading after its Close");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
