//! The judge is judged: each promise, broken on purpose, must not pass.

use std::time::Instant;

use publisher::TenantId;

use crate::harness::Oracle;
use crate::harness::ledger::{Cursor, Entry, Ledger};
use crate::harness::oracle::{Breach, Life, Receipt};

fn at(epoch: &str, seq: u64) -> Cursor {
    Cursor { epoch: epoch.to_owned(), seq }
}

fn joined(seq: u64, recovered: bool) -> Entry {
    Entry::Joined { tenant: "acorn".to_owned(), at: at("e1", seq), recovered }
}

fn event(seq: u64, id: &str) -> Entry {
    Entry::Event { seq, id: id.to_owned() }
}

fn ledger(entries: impl IntoIterator<Item = Entry>) -> Ledger {
    let mut ledger = Ledger::default();
    for entry in entries {
        ledger.record(entry);
    }
    ledger
}

fn published(tenant: &str, seq: u64, id: &str) -> Receipt {
    let tenant: TenantId = tenant.parse().unwrap();
    Receipt { tenant, id: id.to_owned(), seq: Some(seq), at: Instant::now() }
}

#[test]
fn an_orderly_life_passes() {
    let ledger = ledger([
        joined(3, false),
        event(4, "four"),
        Entry::Heartbeat(at("e1", 4)),
        Entry::Closed(Some(1012)),
        joined(6, true),
        event(5, "five"),
        event(6, "six"),
        Entry::Resync(at("e2", 1)),
        event(2, "two"),
        Entry::Left { tenant: "acorn".to_owned() },
    ]);
    Oracle::default().judge_to_the_end("the orderly one", &ledger);
}

#[test]
#[should_panic(expected = "O1")]
fn o1_a_lost_event_is_noticed() {
    let ledger = ledger([joined(0, false), event(1, "one")]);
    Oracle::new([published("acorn", 1, "one"), published("acorn", 2, "two")]).judge_to_the_end("the loser", &ledger);
}

#[test]
#[should_panic(expected = "O2")]
fn o2_a_gap_is_noticed() {
    Oracle::default().judge("the gap", &ledger([joined(0, false), event(1, "one"), event(3, "three")]));
}

#[test]
#[should_panic(expected = "O2")]
fn o2_a_seq_twice_is_noticed() {
    Oracle::default().judge("the echo", &ledger([joined(0, false), event(1, "one"), event(1, "one")]));
}

#[test]
#[should_panic(expected = "O3")]
fn o3_an_id_twice_is_noticed() {
    Oracle::default().judge("the double", &ledger([joined(0, false), event(1, "one"), event(2, "one")]));
}

#[test]
fn o3_an_id_may_come_again_after_a_new_epoch_was_told() {
    let lived = [joined(0, false), event(1, "one"), Entry::Resync(at("e2", 0)), event(1, "one")];
    Oracle::default().judge("the one who was told", &ledger(lived));
}

#[test]
#[should_panic(expected = "O3")]
fn o3_an_id_twice_in_an_epoch_is_noticed_whatever_was_told() {
    let lived = [joined(0, false), event(1, "one"), Entry::Resync(at("e1", 1)), event(2, "one")];
    Oracle::default().judge("the one who was told", &ledger(lived));
}

#[test]
#[should_panic(expected = "O4")]
fn o4_a_seq_with_two_events_is_noticed() {
    let mut oracle = Oracle::default();
    oracle.judge("the one", &ledger([joined(0, false), event(1, "one")]));
    oracle.judge("the other", &ledger([joined(0, false), event(1, "another")]));
}

#[test]
#[should_panic(expected = "O5")]
fn o5_a_foreign_event_is_noticed() {
    Oracle::new([published("hazel", 1, "foreign")]).judge("the leak", &ledger([joined(0, false), event(1, "foreign")]));
}

#[test]
#[should_panic(expected = "O5")]
fn o5_an_event_after_leaving_is_noticed() {
    let left = Entry::Left { tenant: "acorn".to_owned() };
    Oracle::default().judge("the straggler", &ledger([joined(0, false), left, event(1, "one")]));
}

#[test]
#[should_panic(expected = "O6")]
fn o6_a_recovery_into_another_epoch_is_noticed() {
    let other = Entry::Joined { tenant: "acorn".to_owned(), at: at("e2", 9), recovered: true };
    Oracle::default().judge("the pretender", &ledger([joined(3, false), other]));
}

#[test]
#[should_panic(expected = "O6")]
fn o6_a_heartbeat_ahead_of_what_was_delivered_is_noticed() {
    Oracle::default().judge("the hole", &ledger([joined(3, false), Entry::Heartbeat(at("e1", 5))]));
}

#[test]
#[should_panic(expected = "O4")]
fn o4_a_counter_that_goes_back_is_noticed() {
    Oracle::default().judge("the one sent back", &ledger([joined(3, false), Entry::Resync(at("e1", 2))]));
}

#[test]
fn a_life_is_judged_in_parts() {
    let mut oracle = Oracle::new([published("acorn", 1, "one")]);
    let mut life = Life::default();
    let mut lived = ledger([joined(0, false), event(1, "one")]);
    oracle.check_to_the_end("the first part", &mut life, &lived.take()).unwrap();
    oracle.turn();
    life.turn();
    assert_eq!(lived.cursor(), Some(at("e1", 1)), "the position outlives the entries");

    oracle.learn([published("acorn", 2, "two")]);
    let lost = oracle.check_to_the_end("nothing came", &mut life, &lived.take()).unwrap_err();
    assert_eq!(lost.breach, Breach::Missed, "{lost}");
    lived.record(event(2, "one"));
    let doubled = oracle.check_to_the_end("the echo", &mut life, &lived.take()).unwrap_err();
    assert_eq!(doubled.breach, Breach::Doubled, "{doubled}");
    assert_eq!(life.told.len(), 0);
}
