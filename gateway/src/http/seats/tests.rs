#![allow(clippy::unwrap_used)]

use futures::FutureExt;
use tokio::time::advance;

use super::*;

async fn seat(seats: &Seats) -> Seat {
    advance(Duration::from_millis(1)).await;
    seats.take(|| panic!("there are free seats")).await.unwrap()
}

fn is_closed(seat: &Seat) -> bool {
    seat.exchange.closed().now_or_never().is_some()
}

#[tokio::test(start_paused = true)]
async fn b63_the_longest_without_a_request_loses_its_seat() {
    let seats = Seats::new(5);
    let [handled, written, answered, silent, late] =
        [seat(&seats).await, seat(&seats).await, seat(&seats).await, seat(&seats).await, seat(&seats).await];
    handled.exchange.asked();
    written.exchange.asked();
    written.exchange.answered();
    answered.exchange.asked();
    answered.exchange.answered();
    advance(Duration::from_secs(1)).await;
    // Its answer is out: idle from now on, and so after those that have yet to ask.
    answered.exchange.flushed();
    let mut in_order = Vec::new();
    for (name, seat) in [("silent", silent), ("late", late), ("answered", answered), ("written", written)] {
        assert!(seats.close_one());
        in_order.push((name, is_closed(&seat)));
    }
    assert_eq!(in_order, [("silent", true), ("late", true), ("answered", true), ("written", true)]);
    assert!(!seats.close_one(), "the gateway works on the last one's answer");
    assert!(!is_closed(&handled));
    advance(LONG_WORK).await;
    assert!(seats.close_one() && is_closed(&handled), "it waits for another server, and the others wait for it");
}

#[tokio::test(start_paused = true)]
async fn b63_a_seat_is_taken_from_another_and_given_back() {
    let seats = Seats::new(1);
    let first = seat(&seats).await;
    let mut closed = 0;
    let second = {
        let take = seats.take(|| closed += 1);
        tokio::pin!(take);
        assert!(take.as_mut().now_or_never().is_none(), "never more than there are");
        assert!(is_closed(&first));
        drop(first);
        take.await
    };
    assert!(second.is_some());
    assert_eq!(closed, 1);
    assert_eq!(seats.0.taken().len(), 1);
    drop(second);
    assert!(seats.0.taken().is_empty());
}

#[tokio::test(start_paused = true)]
async fn b63_a_request_sent_ahead_gives_its_connection_no_more_time() {
    let seats = Seats::new(100);
    let (pipelined, silent, idle) = (seat(&seats).await, seat(&seats).await, seat(&seats).await);
    for step in [Exchange::asked, Exchange::answered, Exchange::flushed] {
        step(&idle.exchange);
    }
    let looking = seats.clone();
    let mut look = std::pin::pin!(looking.close_overdue());
    let mut closed = [None; 3];
    for second in 0..60 {
        pipelined.exchange.asked();
        pipelined.exchange.answered();
        assert!(timeout(Duration::from_secs(1), look.as_mut()).await.is_err());
        for (seat, closed) in [&pipelined, &silent, &idle].into_iter().zip(&mut closed) {
            if closed.is_none() && is_closed(seat) {
                *closed = Some(second);
            }
        }
    }
    assert!(matches!(closed, [Some(29..=30), Some(9..=10), None]), "{closed:?}");
}

#[tokio::test(start_paused = true)]
async fn b63_short_of_seats_a_head_has_two_seconds() {
    let seats = Seats::new(4);
    let mut taken = Vec::new();
    for _ in 0..4 {
        taken.push(seat(&seats).await);
    }
    assert!(timeout(Duration::from_millis(1900), seats.close_overdue()).await.is_err());
    assert!(taken.iter().all(|seat| !is_closed(seat)));
    assert!(timeout(Duration::from_millis(600), seats.close_overdue()).await.is_err());
    assert!(taken.iter().all(is_closed));
}
