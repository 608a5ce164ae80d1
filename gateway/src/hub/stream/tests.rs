//! What a stream does in a few named cases.
#![allow(clippy::unwrap_used)]

use publisher::internals::MessageType;
use publisher::{DashboardEventType, EventId};

use super::chain::{MAX_HELD, bridge};
use super::histories::{Op, World};
use super::*;
use crate::engine::Known;

const PUBLISH: Op = Op::Publish { lost: false };
const PUBLISH_LOST: Op = Op::Publish { lost: true };

/// A stream with one member, at position 0 of an empty log.
fn joined(start: Start) -> World {
    let mut world = World::new(start);
    world.join(None);
    world.drain();
    assert_eq!(world.positions(), [0]);
    world
}

/// The same after some events.
fn joined_at(events: u64) -> World {
    let mut world = joined(Start::Position);
    for _ in 0..events {
        world.run(PUBLISH);
    }
    world.drain();
    assert_eq!(world.positions(), [events]);
    world
}

fn event(seq: u64) -> Message {
    let id = |seq: u64| -> EventId { format!("id{seq}").parse().unwrap() };
    Message {
        epoch: "e0".parse().unwrap(),
        seq,
        id: id(seq),
        previous: (seq > 1).then(|| id(seq - 1)),
        event_type: MessageType::Known(DashboardEventType::PaymentReceived),
        published_micros: 0,
        json: "{}".into(),
    }
}

fn at(seq: u64) -> Position {
    position_of(&event(seq))
}

#[test]
fn a_join_is_not_answered_before_the_subscription() {
    let mut world = World::new(Start::Position);
    world.join(None);
    assert!(world.positions().is_empty());
    world.execute();
    assert!(world.positions().is_empty(), "the answer is still on its way");
    world.arrive(false);
    assert_eq!(world.positions(), [0]);
}

#[test]
fn what_was_published_between_subscription_and_reading_is_counted_once() {
    let mut world = World::new(Start::Position);
    world.join(None);
    world.subscribed = true;
    world.run(PUBLISH);
    world.execute();
    world.run(PUBLISH);
    world.drain();
    assert_eq!(world.positions(), [2]);
    assert_eq!((world.filled, world.resyncs), (0, 0));
    world.settle();
}

#[test]
fn what_came_while_a_gap_was_read_is_delivered_with_it() {
    let mut world = joined(Start::Position);
    world.run(PUBLISH_LOST);
    world.run(PUBLISH);
    world.arrive(false);
    // The log is read with two events in it, and a third overtakes the answer.
    world.execute();
    world.run(PUBLISH);
    world.arrive(true);
    assert_eq!(world.positions(), [0], "nothing is delivered past a gap");
    world.arrive(false);
    assert_eq!(world.positions(), [3]);
    assert!(world.requests.is_empty(), "nothing was left to ask");
    assert_eq!((world.filled, world.resyncs), (1, 0));
}

#[test]
fn messages_beyond_the_held_ones_are_found_in_the_log() {
    let mut world = joined(Start::Position);
    world.run(PUBLISH_LOST);
    world.run(PUBLISH);
    world.arrive(false);
    world.execute();
    // They overtake the answer, and one is more than can be held.
    let late: Vec<_> = (0..MAX_HELD).map(|_| world.server.publish()).collect();
    late.into_iter().for_each(|message| world.message(message));
    world.drain();
    assert_eq!(world.positions(), [2 + MAX_HELD as u64]);
    assert_eq!((world.filled, world.resyncs), (2, 0));
}

#[test]
fn the_last_message_again_changes_nothing() {
    let mut world = joined_at(1);
    let again = world.server.events[0].clone();
    world.message(again);
    assert!(world.requests.is_empty());
    assert_eq!(world.positions(), [1]);
}

#[test]
fn a_join_at_the_head_is_answered_at_once() {
    let mut world = joined_at(2);
    let head = world.server.head();
    world.join(Some(head.clone()));
    world.join(Some(Position { id: None, ..head.clone() }));
    assert_eq!(world.positions(), [2, 2, 2]);
    // The same number, and another history.
    world.join(Some(Position { id: Some("id9".parse().unwrap()), ..head }));
    assert_eq!(world.positions(), [2, 2, 2, 2]);
    assert!(world.requests.is_empty(), "nothing was asked");
}

#[test]
fn a_member_that_leaves_gives_its_read_back() {
    let mut world = joined_at(2);
    let behind = world.join(Some(at(1)));
    let read = world.requests[0].0;
    let unknown = world.join(Some(at(3)));
    assert_eq!(world.stream.handle_leave(SocketId(99)), None);
    assert_eq!(world.stream.handle_leave(unknown), None, "the stream's own read goes on");
    assert_eq!(world.stream.handle_leave(behind), Some(read));
}

#[test]
fn a_member_that_left_gets_no_snapshot() {
    let mut world = joined(Start::Snapshot);
    world.run(Op::Stale { newest: true });
    let (gone, stays) = (world.join(None), world.join(None));
    world.leave(gone);
    world.run(Op::Load { missing: Parts::NONE });
    world.drain();
    assert_eq!(world.positions(), [0, 0]);
    world.leave(stays);
    assert_eq!(world.positions(), [0]);
}

#[test]
fn an_outage_is_over_when_the_position_is_proved() {
    let mut world = joined(Start::Position);
    world.run(Op::Lost);
    assert_eq!(world.stream.outage().map(|outage| outage.reason), Some("redis"));
    world.run(Op::Check);
    world.drain();
    assert!(world.stream.outage().is_some(), "a comparison proves nothing before the connection is back");
    world.run(Op::Check);
    world.run(Op::Returned);
    world.run(Op::Lost);
    world.drain();
    assert!(world.stream.outage().is_some(), "the connection broke again");
    world.run(Op::Returned);
    world.drain();
    assert!(world.stream.outage().is_none());
}

#[test]
fn the_bridge_leads_from_a_position_to_another_or_is_none() {
    let events = |range: std::ops::RangeInclusive<u64>| range.map(event).collect::<Vec<_>>();
    let seqs = |from: &Position, to: &Position, log, since| {
        bridge(from, to, log, since).map(|events| events.iter().map(|event| event.seq).collect::<Vec<_>>())
    };
    assert_eq!(seqs(&at(1), &at(4), events(2..=4), vec![]), Some(vec![2, 3, 4]));
    assert_eq!(seqs(&at(1), &at(4), events(1..=3), events(3..=4)), Some(vec![2, 3, 4]), "each once");
    assert_eq!(seqs(&at(1), &at(3), events(2..=4), events(5..=5)), Some(vec![2, 3]), "no further");
    assert_eq!(seqs(&at(2), &at(2), vec![], vec![]), Some(vec![]));
    assert_eq!(seqs(&at(1), &at(4), events(3..=4), vec![]), None, "a gap at the beginning");
    assert_eq!(seqs(&at(1), &at(4), events(2..=2), events(4..=4)), None, "a gap between the two");
    assert_eq!(seqs(&at(1), &at(4), events(2..=3), vec![]), None, "a gap at the end");
    let other = Position { id: Some("id9".parse().unwrap()), ..at(1) };
    assert_eq!(seqs(&other, &at(2), events(2..=2), vec![]), None, "another history at the beginning");
    let other = Position { id: Some("id9".parse().unwrap()), ..at(2) };
    assert_eq!(seqs(&at(1), &other, events(2..=2), vec![]), None, "another history at the end");
    let unknown = Position { id: None, ..at(2) };
    assert_eq!(seqs(&at(1), &unknown, events(2..=2), vec![]), Some(vec![2]));
    let other = Position { epoch: "e1".parse().unwrap(), ..at(1) };
    assert_eq!(seqs(&other, &at(1), vec![], vec![]), None, "another epoch");
}

#[test]
fn a_message_costs_no_allocation() {
    let mut stream = Stream::open(1, Start::Position);
    let read = Reading { head: Position { id: None, ..at(0) }, events: vec![] };
    stream.handle_join(SocketId(1), None);
    let Some(Effect::Subscribe(ticket)) = stream.poll_effect() else { panic!("the first effect") };
    stream.handle_reading(ticket, read);
    while stream.poll_effect().is_some() {}
    assert_eq!(stream.effects.capacity(), 1, "an idle stream keeps space for one effect, and no more");
    stream.handle_message(event(1));
    assert!(matches!(stream.poll_effect(), Some(Effect::Deliver(_))));
    assert!(stream.poll_effect().is_none());
    assert_eq!(stream.effects.capacity(), 1);
}

#[test]
fn questions_of_two_streams_have_different_names() {
    let tickets = |generation| {
        let mut stream = Stream::open(generation, Start::Position);
        let Some(Effect::Subscribe(first)) = stream.poll_effect() else { panic!("the first effect") };
        stream.handle_reading(first, Reading { head: at(5), events: vec![] });
        stream.handle_join(SocketId(1), Some(at(4)));
        let Some(Effect::Read(second, Known::Client(_))) = stream.poll_effect() else { panic!("a read") };
        assert!(first < second);
        [first, second]
    };
    let (one, another) = (tickets(1), tickets(2));
    assert!(one.iter().all(|ticket| !another.contains(ticket)));
}

/// A storm: a join that comes while a query runs, and for a second after it began, shares it, and misses nothing.
#[test]
fn joins_share_a_snapshot_and_the_events_since() {
    let mut world = World::new(Start::Snapshot);
    world.join(None);
    world.execute();
    world.arrive(false);
    world.join(None);
    world.run(PUBLISH);
    world.arrive(false);
    world.join(None);
    assert_eq!(world.loads.len(), 1);
    world.run(Op::Load { missing: Parts::NONE });
    world.join(None);
    assert_eq!((world.positions(), world.loads.len()), (vec![1; 4], 0));
    world.run(Op::Stale { newest: true });
    world.join(None);
    assert_eq!((world.positions().len(), world.loads.len()), (4, 1));
    world.settle();
}

#[test]
fn a_snapshot_that_comes_late_is_for_those_that_wait_for_it() {
    let mut world = joined(Start::Snapshot);
    world.run(Op::Stale { newest: true });
    world.join(None);
    world.run(Op::Stale { newest: true });
    world.run(Op::Load { missing: Parts::NONE });
    assert_eq!(world.positions(), [0, 0]);
    world.join(None);
    assert_eq!((world.positions().len(), world.loads.len()), (2, 1), "the next join needs a newer one");
}

#[test]
fn a_snapshot_is_asked_for_again_when_too_much_happened_since() {
    let mut world = joined(Start::Snapshot);
    world.run(Op::Stale { newest: true });
    world.join(None);
    for _ in 0..=MAX_HELD {
        world.run(PUBLISH);
        world.arrive(false);
    }
    world.run(Op::Load { missing: Parts::NONE });
    assert_eq!((world.positions().len(), world.loads.len()), (1, 1));
    world.run(Op::Load { missing: Parts::NONE });
    assert_eq!(world.positions(), [1 + MAX_HELD as u64; 2]);
    // As many as can be kept are no reason.
    for _ in 0..MAX_HELD {
        world.run(PUBLISH);
        world.arrive(false);
    }
    world.join(None);
    assert_eq!((world.positions().len(), world.loads.len()), (3, 0));
    world.run(PUBLISH);
    world.arrive(false);
    world.join(None);
    assert_eq!((world.positions().len(), world.loads.len()), (3, 1));
    assert_eq!(world.resyncs, 0, "the joined members have missed nothing");
}

/// A snapshot that could not be had goes to those members alone that were answered without it, and takes no event back.
#[test]
fn members_get_the_snapshot_that_they_were_answered_without() {
    let mut world = World::new(Start::Snapshot);
    world.join(None);
    world.execute();
    world.arrive(false);
    world.run(Op::Load { missing: Parts::ALL });
    assert_eq!(world.lacks(), [Parts::ALL]);
    // An event overtakes the first answer: the second is asked for while nothing is delivered.
    world.run(Op::Complete);
    world.run(PUBLISH);
    world.arrive(false);
    world.run(Op::Load { missing: Parts::NONE });
    assert_eq!(world.lacks(), [Parts::ALL]);
    world.run(PUBLISH);
    world.arrive(false);
    assert_eq!(world.positions(), [1]);
    world.run(Op::Load { missing: Parts { metrics: false, payments: true } });
    assert_eq!(world.lacks(), [Parts { metrics: false, payments: true }]);
    assert_eq!(world.positions(), [2]);
    world.settle();
}
