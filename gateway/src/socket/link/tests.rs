//! The link on a real connection: order through congestion, and the bound.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods)] // A test notices how its tasks end.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;

/// Bytes that may wait, where a test is not about them.
const BYTES: u32 = 8 << 20;

/// A link with a small kernel buffer, and the client at its other end.
async fn pair(events: u32) -> (Arc<Link>, TcpStream) {
    pair_within(&Arc::new(QueueLimits::new(events, BYTES))).await
}

async fn pair_within(limits: &Arc<QueueLimits>) -> (Arc<Link>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let socket = socket2::SockRef::from(&server);
    socket.set_send_buffer_size(4096).unwrap();
    socket.set_nodelay(true).unwrap();
    server.writable().await.unwrap();
    (Arc::new(Link::new(SocketId(1), Dialect::Native, server, limits.clone())), client)
}

/// A frame that says its number, long enough for a few to fill the kernel.
fn frame(number: u32) -> Bytes {
    let mut frame = number.to_be_bytes().to_vec();
    frame.resize(1000, b'.');
    frame.into()
}

async fn next_number(client: &mut TcpStream) -> u32 {
    let mut frame = [0; 1000];
    timeout(Duration::from_secs(5), client.read_exact(&mut frame)).await.expect("a frame in time").unwrap();
    assert!(frame[4..].iter().all(|byte| *byte == b'.'), "a frame was torn");
    u32::from_be_bytes(*frame.first_chunk().unwrap())
}

/// Writes frames until the link is congested; returns how many there were.
fn congest(link: &Link) -> u32 {
    let mut written = 0;
    while !link.congested() {
        link.write(&frame(written), 1).unwrap();
        written += 1;
    }
    written
}

#[tokio::test]
async fn frames_arrive_whole_and_in_order_while_the_backlog_fills_and_drains() {
    let (link, mut client) = pair(10_000).await;
    const FRAMES: u32 = 5_000;
    let drainer = tokio::spawn({
        let link = link.clone();
        async move {
            loop {
                link.woken().await;
                while link.congested() {
                    link.writable().await.unwrap();
                    link.drain().unwrap();
                }
            }
        }
    });
    let writer = std::thread::spawn({
        let link = link.clone();
        move || (0..FRAMES).for_each(|number| link.write(&frame(number), 1).unwrap())
    });
    for number in 0..FRAMES {
        assert_eq!(next_number(&mut client).await, number);
    }
    writer.join().unwrap();
    drainer.abort();
}

#[tokio::test]
async fn the_backlog_takes_max_events_and_nothing_of_the_next() {
    let (link, mut client) = pair(3).await;
    let written = congest(&link);
    // The frame that did not fit is the first that waits.
    assert_eq!(link.write(&frame(written), 2), Ok(()));
    assert_eq!(link.write(&frame(u32::MAX), 1), Err(Overflow));
    let reader = tokio::spawn(async move {
        for number in 0..=written {
            assert_eq!(next_number(&mut client).await, number);
        }
        client
    });
    while link.congested() {
        link.writable().await.unwrap();
        link.drain().unwrap();
    }
    let mut client = reader.await.unwrap();
    assert_eq!(link.write(&frame(written + 1), 1), Ok(()), "there is room again");
    assert_eq!(next_number(&mut client).await, written + 1);
}

#[tokio::test]
async fn b61_the_backlog_takes_max_bytes_and_something_larger_only_alone() {
    let (link, mut client) = pair(10_000).await;
    let written = congest(&link);
    let rest = BYTES as usize - link.backlog().bytes as usize;
    link.write(&Bytes::from(vec![0; rest]), 1).unwrap();
    assert_eq!(link.write(&frame(1), 1), Err(Overflow), "not a byte more");
    let reader = tokio::spawn(async move {
        let mut all = vec![0; written as usize * 1000 + rest];
        client.read_exact(&mut all).await.unwrap();
        client
    });
    while link.congested() {
        link.writable().await.unwrap();
        link.drain().unwrap();
    }
    assert_eq!(link.backlog().bytes, 0, "what was sent counts no more");
    let _client = reader.await.unwrap();
    let huge = Bytes::from(vec![0; BYTES as usize + (16 << 20)]);
    assert_eq!(link.write(&huge, 1), Ok(()), "alone");
    assert!(link.congested());
    assert_eq!(link.write(&frame(1), 1), Err(Overflow));
}

#[tokio::test]
async fn b61_large_answers_of_all_sockets_together_are_bounded() {
    let limits = Arc::new(QueueLimits::new(1000, 1 << 20));
    let large = Bytes::from(vec![0; 8 << 20]);
    let mut sockets = Vec::new();
    let refused = loop {
        let (link, client) = pair_within(&limits).await;
        match link.write(&large, 500) {
            Ok(()) => sockets.push((link, client)),
            Err(Overflow) => break link,
        }
    };
    // The kernel has taken the beginning of each.
    assert_eq!(sockets.len(), MAX_LARGE_BYTES / large.len());
    assert_eq!(refused.write(&frame(1), 1), Ok(()), "what is small still goes out");

    drop(sockets.pop());
    let (link, mut client) = pair_within(&limits).await;
    assert_eq!(link.write(&large, 500), Ok(()), "a socket that ends gives its bytes back");
    let read = tokio::spawn(async move { client.read_exact(&mut vec![0; 8 << 20]).await.map(drop) });
    while link.congested() {
        link.writable().await.unwrap();
        link.drain().unwrap();
    }
    read.await.unwrap().unwrap();
    let (last, _client) = pair_within(&limits).await;
    assert_eq!(last.write(&large, 500), Ok(()), "so does one whose client has read");
}

#[tokio::test]
async fn b61_an_answer_is_owed_until_it_is_sent_whole() {
    let (link, mut client) = pair(10).await;
    link.note_answer();
    assert!(!link.owes_answer(), "it was sent at once");
    let written = congest(&link);
    assert!(!link.owes_answer(), "events are no answer");
    link.write(&frame(written), 1).unwrap();
    link.note_answer();
    link.write(&frame(written + 1), 1).unwrap();
    assert!(link.owes_answer());
    let reader = tokio::spawn(async move {
        for number in 0..=written + 1 {
            assert_eq!(next_number(&mut client).await, number);
        }
        client
    });
    while link.congested() {
        link.writable().await.unwrap();
        link.drain().unwrap();
    }
    let _client = reader.await.unwrap();
    congest(&link);
    assert!(!link.owes_answer(), "it was read");
}

#[tokio::test]
async fn a_slow_client_gets_the_rest_of_its_frame_and_the_last_word() {
    let (link, mut client) = pair(5).await;
    let written = congest(&link);
    link.write(&frame(1_000_001), 1).unwrap();
    link.forget_unsent();
    link.write_last(frame(1_000_002));
    let reader = tokio::spawn(async move {
        for number in 0..written {
            assert_eq!(next_number(&mut client).await, number);
        }
        assert_eq!(next_number(&mut client).await, 1_000_002, "what was not begun is left out");
    });
    while link.congested() {
        link.writable().await.unwrap();
        link.drain().unwrap();
    }
    reader.await.unwrap();
}

#[tokio::test]
async fn a_close_reason_wakes_the_task_and_is_given_once() {
    let (link, _client) = pair(5).await;
    link.close_with(CloseReason::Kicked);
    timeout(Duration::from_secs(5), link.woken()).await.expect("woken");
    assert!(matches!(link.close_reason(), Some(CloseReason::Kicked)));
    assert!(link.close_reason().is_none());
}

#[tokio::test]
async fn f60_the_panic_of_a_sockets_task_ends_its_connection() {
    let (link, mut client) = pair(10).await;
    let end = OwnLink(link.clone());
    let task = tokio::spawn(async move {
        let _end = end;
        panic!("on purpose");
    });
    assert!(task.await.is_err());
    // The room still holds the link.
    let read = timeout(Duration::from_secs(60), client.read(&mut [0; 1])).await.expect("an end");
    assert_eq!(read.unwrap(), 0);
    drop(link);
}
