//! Faults of a gateway's own: frozen, out of descriptors, starved of processor time (F22, F32, F39).

use std::process::Command;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::harness::balancer::{Behind, CHECKED_OFTEN};
use crate::harness::follower::judge;
use crate::harness::ledger::Entry;
use crate::harness::process::Process;
use crate::harness::{
    Balancer, Dashboard, Follower, Incoming, Oracle, Setup, Stack, Token, Traffic, eventually, payment, tenant,
    tenants, within,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f22_a_frozen_gateway_is_left_and_wakes_without_late_duplicates() {
    const FROZEN: Duration = Duration::from_secs(60);
    const LEFT: Duration = Duration::from_secs(5);
    let mut stack = Setup::new().gateways(3).env("HEARTBEAT_SECONDS", "1").start().await;
    let balancer = Balancer::haproxy(&Behind::stack(&stack).await, &[("CHECK_INTERVAL", CHECKED_OFTEN)]).await;
    let rooms = tenants(6);
    let mut followers = Vec::new();
    for _ in 0..10 {
        followers.extend(Follower::start_all(&[balancer.addr], &rooms).await);
    }
    // One that waits for ever, and is there when the gateway wakes.
    let mut patient = stack.dashboard(&rooms[0]).await;
    let last = payment();
    let last_id = last.id.to_string();
    let patient = tokio::spawn(async move {
        while !patient.ledger().has(&last_id) {
            if let Incoming::Closed(code) = patient.next_unbounded().await {
                panic!("closed with {code:?} for a silence that was the gateway's own: {}", patient.ledger());
            }
        }
        patient.close().await
    });
    let traffic = Traffic::start(&stack.publisher().await, &rooms, 5);
    sleep(Duration::from_millis(500)).await;

    let others = async || {
        let counts = stack.gateways[1..].iter().map(|gateway| gateway.metric("gateway_connections", &[]));
        futures::future::join_all(counts).await.into_iter().sum::<f64>() as usize
    };
    let left_behind = followers.len() - others().await;
    stack.gateway().freeze();
    let frozen = Instant::now();
    eventually("everybody is elsewhere", LEFT, async || (others().await == followers.len()).then_some(())).await;
    eprintln!("{left_behind} clients of the frozen gateway were elsewhere after {:?}", frozen.elapsed());
    sleep(FROZEN.saturating_sub(frozen.elapsed())).await;
    stack.gateway().thaw();
    stack.gateway().metric_becomes("gateway_connections", &[], 1.0).await;
    sleep(Duration::from_secs(1)).await;

    let mut receipts = traffic.stop().await;
    receipts.push(stack.publish(&rooms[0], &last).await);
    let patient = within("the patient one has the last event", Duration::from_secs(10), patient).await.unwrap();
    Oracle::new(receipts.clone()).judge_to_the_end("the patient one", &patient);
    let ledgers = judge(followers, receipts).await;
    let resumed = |entry: &Entry| matches!(entry, Entry::Joined { recovered: true, .. });
    assert_eq!(ledgers.iter().map(|ledger| ledger.count(resumed)).sum::<usize>(), left_behind, "each came back once");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f32_without_descriptors_new_sockets_wait_and_the_old_live_on() {
    let mut stack = Setup::new().env("HEARTBEAT_SECONDS", "30").start().await;
    let room = tenant();
    let mut old = Vec::new();
    for _ in 0..10 {
        old.push(stack.dashboard(&room).await);
    }
    stack.gateway().limit_file_descriptors(Some(stack.gateway().file_descriptors() + 10));
    let addr = stack.addr();
    let mut new = JoinSet::new();
    for _ in 0..40 {
        let room = room.clone();
        new.spawn(async move { Dashboard::joined(addr, room.as_str(), &Token::of(room.as_str()).sign()).await });
    }
    let complaint = "accepting connections fails, trying again until it works";
    let throttle = |stack: &Stack| stack.gateway().log().text().matches(complaint).count();
    eventually("it says so", Duration::from_secs(5), async || (throttle(&stack) > 0).then_some(())).await;

    let (begun, used) = (Instant::now(), stack.gateway().processor_time());
    // Each that goes makes room for one that waits.
    for _ in 0..5 {
        old.pop().unwrap().close().await;
        sleep(Duration::from_millis(200)).await;
    }
    let receipt = stack.publish(&room, &payment()).await;
    for dashboard in &mut old {
        assert_eq!(dashboard.until_event().await.id, Some(receipt.id.clone()));
    }
    sleep(Duration::from_secs(2)).await;
    let share = (stack.gateway().processor_time() - used).as_secs_f64() / begun.elapsed().as_secs_f64();
    eprintln!("without descriptors: {:.1} % of a processor, {} lines", share * 100.0, throttle(&stack));
    assert!(share < 0.2, "{share} of a processor, to wait");
    assert!(throttle(&stack) <= 2, "{}", stack.gateway().log().text());

    stack.gateway().limit_file_descriptors(None);
    let freed = Instant::now();
    for dashboard in new.join_all().await {
        dashboard.close().await;
    }
    eprintln!("with descriptors again: all joined after {:?}", freed.elapsed());
    for dashboard in old {
        dashboard.close().await;
    }
    stack.finish().await;
}

/// Clients that never give up, in rooms that beat at moments of their own; what ends one is its close code.
async fn patient_ones(stack: &Stack) -> JoinSet<Option<u16>> {
    let mut reading = JoinSet::new();
    for room in tenants(60) {
        let mut dashboard = stack.dashboard(&room).await;
        reading.spawn(async move {
            loop {
                if let Incoming::Closed(code) = dashboard.next_unbounded().await {
                    return code;
                }
            }
        });
    }
    reading
}

async fn assert_nobody_was_closed(stack: &Stack, mut patient: JoinSet<Option<u16>>) {
    // A socket that was judged too early has been closed by now.
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(stack.gateway().metric("gateway_heartbeat_timeouts_total", &[]).await, 0.0);
    assert!(patient.try_join_next().is_none(), "closed for a silence that was the gateway's own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f39_nobody_is_closed_for_a_stall_of_the_gateway() {
    let stack = Setup::new().env("HEARTBEAT_SECONDS", "1").start().await;
    let patient = patient_ones(&stack).await;
    // Around two intervals, where a clock that is just due can't tell by its own lateness that it is late.
    for milliseconds in [1300, 1700, 2050, 2500] {
        sleep(Duration::from_millis(1200)).await;
        stack.gateway().freeze();
        sleep(Duration::from_millis(milliseconds)).await;
        stack.gateway().thaw();
    }
    assert_nobody_was_closed(&stack, patient).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f39_nobody_is_closed_while_others_have_the_processor() {
    let stack = Setup::new().env("HEARTBEAT_SECONDS", "1").start().await;
    let patient = patient_ones(&stack).await;
    let pinned = Command::new("taskset").args(["-a", "-p", "-c", "0", &stack.gateway().id().to_string()]).output();
    assert!(pinned.unwrap().status.success());
    let busy = || Process::spawn(Command::new("taskset").args(["-c", "0", "sh", "-c", "while :; do :; done"]));
    let others: Vec<_> = std::iter::repeat_with(busy).take(4).collect();
    sleep(Duration::from_secs(4)).await;
    drop(others);
    assert_nobody_was_closed(&stack, patient).await;
    stack.finish().await;
}
