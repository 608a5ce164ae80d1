//! Seats after any history of joins and leaves, against a plain vector of the members.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::socket::SocketId;
use crate::socket::dialect::Outgoing;
use crate::socket::link::QueueLimits;
use crate::socket::protocol;

/// Sockets that keep up, and behind them those whose backlog is full.
const PROMPT: usize = 4;
const ALL: usize = 7;

#[derive(Debug, Clone)]
enum Op {
    Seat(usize),
    Remove(usize),
    /// Those whose bit is set.
    Extract(u8),
    /// To every member: slow ones are out.
    Send,
    /// To the members that keep up: none is out.
    SendToPrompt,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..ALL).prop_map(Op::Seat),
        3 => (0..ALL).prop_map(Op::Remove),
        1 => any::<u8>().prop_map(Op::Extract),
        1 => Just(Op::Send),
        1 => Just(Op::SendToPrompt),
    ]
}

/// A link with room for one waiting event, and the client, which never reads.
async fn pair(id: usize) -> (Arc<Link>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    server.writable().await.unwrap();
    (Arc::new(Link::new(SocketId(id as u64), Dialect::Native, server, Arc::new(QueueLimits::new(1, 1 << 20)))), client)
}

fn member(link: &Arc<Link>) -> Member {
    Member { link: link.clone(), subject: None, issued_at: 0, lacks: Parts::NONE }
}

/// The members' ids, sorted: the order in which they leave is of no importance.
fn ids<'a>(members: impl IntoIterator<Item = &'a Member>) -> Vec<usize> {
    let ids: BTreeSet<_> = members.into_iter().map(|member| member.link.id.0 as usize).collect();
    ids.into_iter().collect()
}

/// Carries the history out on the audience and on the model, and compares them at each step.
fn follow(links: &[Arc<Link>], history: &[Op]) {
    let heartbeat = protocol::heartbeat(None);
    let mut audience = Audience::default();
    let mut model: Vec<usize> = Vec::new();
    for op in history {
        let leaves = |id: &usize| match op {
            Op::Seat(_) | Op::SendToPrompt => false,
            Op::Remove(gone) => id == gone,
            Op::Extract(bits) => bits >> id & 1 == 1,
            Op::Send => *id >= PROMPT,
        };
        let mut expected: Vec<_> = model.extract_if(.., |id| leaves(id)).collect();
        expected.sort_unstable();
        let left = match op {
            // A room seats a socket once.
            Op::Seat(id) if model.contains(id) => vec![],
            Op::Seat(id) => {
                audience.seat(member(&links[*id]));
                model.push(*id);
                vec![]
            }
            Op::Remove(id) => audience.remove(&links[*id]).into_iter().collect(),
            Op::Extract(bits) => audience.extract(|member| bits >> member.link.id.0 & 1 == 1),
            Op::Send => audience.send(&mut Frames::of(Outgoing::Message(&heartbeat)), 1),
            Op::SendToPrompt => audience.send_to_prompt(&mut Frames::of(Outgoing::Message(&heartbeat))),
        };
        assert_eq!(ids(&left), expected, "the members that left by {op:?}");
        assert_eq!(left.len(), expected.len(), "a member leaves once");

        assert_eq!(audience.len(), model.len());
        for (seat, member) in audience.members().enumerate() {
            assert_eq!(member.link.seat.load(Ordering::Relaxed), seat, "{:?} does not know its seat", member.link.id);
        }
        for (id, link) in links.iter().enumerate() {
            assert_eq!(audience.contains(link), model.contains(&id), "socket {id} after {op:?}");
        }
    }
}

#[tokio::test]
async fn each_member_knows_its_seat_after_any_history() {
    let mut sockets = Vec::new();
    for id in 0..ALL {
        sockets.push(pair(id).await);
    }
    let links: Vec<_> = sockets.iter().map(|(link, _)| link.clone()).collect();
    let filler = Bytes::from(vec![0; 64 * 1024]);
    for link in &links[PROMPT..] {
        while link.write(&filler, 1).is_ok() {}
    }
    // Between histories the links keep the seats that they had: an old seat must never be believed.
    let mut runner = TestRunner::new(Config { source_file: Some(file!()), ..Config::default() });
    let followed = runner.run(&vec(op(), 0..40), |history| {
        follow(&links, &history);
        Ok(())
    });
    followed.unwrap();
    assert!(links[..PROMPT].iter().all(|link| !link.congested()), "the test filled a socket that keeps up");
}

#[tokio::test]
async fn a_seat_in_another_room_is_no_seat_here() {
    let (acorn, _acorn_client) = pair(1).await;
    let (hazel, _hazel_client) = pair(2).await;
    let (mut here, mut there) = (Audience::default(), Audience::default());
    here.seat(member(&acorn));
    there.seat(member(&hazel));
    // Both have number 0.
    assert!(!here.contains(&hazel) && here.remove(&hazel).is_none());
    assert_eq!((here.len(), there.len()), (1, 1));
    assert!(there.remove(&hazel).is_some() && there.remove(&hazel).is_none());
}

#[tokio::test]
async fn a_snapshot_goes_to_the_members_that_lack_what_it_has() {
    let metrics = Parts { metrics: true, payments: false };
    let payments = Parts { metrics: false, payments: true };
    let (part, all) = (protocol::heartbeat(None), protocol::left(&"acorn".parse().unwrap()));
    let (part, all) = (Outgoing::Message(&part), Outgoing::Message(&all));
    let (part_bytes, all_bytes) = (Dialect::Native.encode(&part), Dialect::Native.encode(&all));
    let mut part = Frames::of(part);
    let mut audience = Audience::default();
    let mut clients = Vec::new();
    for (id, lacks) in [Parts::NONE, metrics, payments, Parts::ALL].into_iter().enumerate() {
        let (link, client) = pair(id).await;
        audience.seat(Member { lacks, ..member(&link) });
        clients.push((client, link));
    }
    assert_eq!(audience.lacking(), Parts::ALL);
    for _ in 0..2 {
        // The second time no member lacks the part.
        assert!(audience.complete(&mut part, payments).is_empty());
        assert_eq!(audience.lacking(), payments);
    }
    assert!(audience.send(&mut Frames::of(all), 1).is_empty());
    for ((client, _), has_part) in clients.iter_mut().zip([false, true, false, true]) {
        let expected = if has_part { [&part_bytes[..], &all_bytes].concat() } else { all_bytes.to_vec() };
        let mut read = vec![0; expected.len()];
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(read, expected);
    }
    audience.all_lack(metrics);
    assert_eq!(audience.lacking(), metrics);

    // A member that reads too slowly is out.
    let (slow, _client) = pair(9).await;
    let filler = Bytes::from(vec![0; 64 * 1024]);
    while slow.write(&filler, 1).is_ok() {}
    audience.seat(Member { lacks: Parts::ALL, ..member(&slow) });
    assert_eq!(ids(&audience.complete(&mut part, payments)), [9]);
    assert_eq!(audience.len(), 4);
}

#[tokio::test]
async fn a_message_for_one_member_reaches_that_one() {
    let mut audience = Audience::default();
    let (acorn, mut acorn_client) = pair(1).await;
    let (hazel, mut hazel_client) = pair(2).await;
    let (absent, _client) = pair(3).await;
    audience.seat(member(&acorn));
    audience.seat(member(&hazel));
    assert_eq!(audience.member(&hazel).map(|member| member.link.id), Some(hazel.id));
    assert!(audience.member(&absent).is_none());
    assert_eq!(audience.tell(&absent, &Bytes::from_static(b"lost")), None);
    assert_eq!(audience.tell(&hazel, &Bytes::from_static(b"one,")), Some(Ok(())));
    let heartbeat = protocol::heartbeat(None);
    let all = Dialect::Native.encode(&Outgoing::Message(&heartbeat));
    audience.send(&mut Frames::of(Outgoing::Message(&heartbeat)), 1);
    let mut read = vec![0; 4 + all.len()];
    hazel_client.read_exact(&mut read).await.unwrap();
    assert_eq!(read, [b"one,", &all[..]].concat());
    read.truncate(all.len());
    acorn_client.read_exact(&mut read).await.unwrap();
    assert_eq!(read, all);
}

#[test]
fn a_member_costs_what_it_must_and_no_more() {
    // For every idle socket, and again for the room that a growing vector keeps.
    assert!(size_of::<Member>() <= 40, "{} bytes", size_of::<Member>());
}
