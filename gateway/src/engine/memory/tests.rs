//! The bucket against its definition: at most so many events in any second, and no refusal without need.
#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000;
const START: u64 = 1_764_000_000 * SECOND;

/// Steps that meet the edges of a second more often than by chance.
fn step() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..50_000u64,
        2 => 0..400_000u64,
        1 => prop::sample::select(vec![0, 1, SECOND / 10, SECOND - 1, SECOND, SECOND + 1]),
        1 => 0..3 * SECOND,
    ]
}

/// The tokens that a payment must leave in the bucket, and those that figures must.
fn reserve() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0, 3])
}

proptest! {
    #[test]
    fn any_second_has_at_most_the_capacity_and_nothing_is_refused_without_need(
        capacity in 1..15u32, arrivals in vec((step(), reserve()), 0..200),
    ) {
        let mut stream = Stream::default();
        let mut granted: Vec<u64> = Vec::new();
        let mut now = START;
        for (step, reserve) in arrivals {
            let reserve = reserve.min(capacity - 1);
            now += step;
            let within = |at: u64| granted.iter().filter(|spent| **spent + SECOND > at).count();
            let usable = (capacity - reserve) as usize;
            match stream.throttled(now, capacity, reserve) {
                None => {
                    prop_assert!(within(now) < usable, "one too many with {} in reserve", reserve);
                    granted.push(now);
                }
                Some(wait) => {
                    prop_assert!(within(now) >= usable, "{} in reserve was refused though there was room", reserve);
                    // The promise of Retry-After, to the microsecond.
                    let again = now + wait.as_micros() as u64;
                    prop_assert!(within(again) < usable && within(again - 1) >= usable, "{:?} is not when", wait);
                }
            }
            prop_assert!(stream.spent.len() <= capacity as usize);
        }
        for window in granted.windows(capacity as usize + 1) {
            prop_assert!(window[capacity as usize] - window[0] >= SECOND);
        }
    }

    #[test]
    fn a_jittery_clock_lets_no_more_through(capacity in 1..15u32, arrivals in vec((0..20_000i64, -9_000..9_000i64), 0..200)) {
        let mut stream = Stream::default();
        let mut now = START as i64;
        // By the latest that the clock has shown, which is ahead of the bucket's time by the jitter at most.
        let (mut latest, mut granted) = (0, Vec::new());
        for (step, tremor) in arrivals {
            now += step;
            latest = latest.max(now + tremor);
            if stream.throttled((now + tremor) as u64, capacity, 0).is_none() {
                granted.push(latest);
            }
        }
        for window in granted.windows(capacity as usize + 1) {
            prop_assert!(window[capacity as usize] - window[0] >= SECOND as i64 - 9_000);
        }
    }
}

#[test]
fn metrics_leave_three_tokens_to_payments() {
    let mut stream = Stream::default();
    let mut granted = |reserve| (0..20).filter(|_| stream.throttled(START, 10, reserve).is_none()).count();
    assert_eq!(granted(3), 7);
    assert_eq!(granted(0), 3);
}

/// As in publish.lua: tokens spent in the future count as spent now, or the tenant would wait for the old clock.
#[test]
fn a_clock_that_was_set_back_is_not_waited_for() {
    let mut stream = Stream::default();
    for _ in 0..10 {
        assert_eq!(stream.throttled(START, 10, 0), None);
    }
    let back = START - 3600 * SECOND;
    let wait = stream.throttled(back, 10, 0).expect("the bucket is empty");
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    let again = back + wait.as_micros() as u64;
    assert_eq!(stream.throttled(again, 10, 0), None, "refused after the wait that was asked for");
}
