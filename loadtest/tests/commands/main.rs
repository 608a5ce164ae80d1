//! Each subcommand as operators run it: the built program against a real gateway and a real Redis.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Stack;

#[test]
fn fanout_passes_and_reports_the_same_as_json_and_as_a_page() {
    let stack = Stack::start();
    let page = stack.scratch("fanout.html");
    let run =
        stack.run("fanout", &["--sockets=40", "--tenants=8", "--duration=2s", "--report", page.to_str().unwrap()]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.figure("/passed"), true);
    let delivered = run.number("/verdict/delivered");
    assert!(delivered >= 40.0 * 15.0, "{run:?}");
    assert_eq!(run.number("/verdict/expected"), delivered);
    assert!(run.number("/servers/0/cpu_seconds") >= 0.0 && run.number("/servers/0/rss_joined_bytes") > 1e6);
    assert!(run.number("/timeline/0/deliveries") > 0.0);

    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<strong>Passed") && page.contains("Latency by percentile"));
    assert!(!page.contains(harness::SECRET), "a report must not contain a secret");
}

#[test]
fn a_failed_bound_is_reported_and_sets_the_exit_code() {
    let stack = Stack::start();
    let run = stack.run("fanout", &["--sockets=4", "--tenants=2", "--duration=1s", "--max-p99=1us"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert_eq!(run.figure("/passed"), false);
    assert!(run.errors.contains("FAILED: p99 is") && run.errors.contains("above 1µs"), "{run:?}");
}

#[test]
fn fanout_publishes_through_the_api_of_the_gateways() {
    let stack = Stack::start();
    let run = stack.run("fanout", &["--via=http", "--sockets=8", "--tenants=4", "--duration=1s"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.number("/verdict/delivered") >= 8.0 * 8.0, "{run:?}");

    let refused = stack.run("fanout", &["--via=http", "--publish-api-key=another-key", "--duration=1s"]);
    assert_eq!(refused.code, 2);
    assert!(refused.errors.contains("is --publish-api-key its PUBLISH_API_KEY?"), "{refused:?}");
}

#[test]
fn fanout_publishes_through_the_outbox() {
    let stack = Stack::with_database();
    let run = stack.run("fanout", &["--via=outbox", "--sockets=8", "--tenants=4", "--rate=5", "--duration=2s"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.number("/verdict/delivered") >= 8.0 * 8.0, "{run:?}");
}

#[test]
fn ramp_ends_where_a_bound_fails_and_reports_the_step_before() {
    let stack = Stack::start();
    let ramp = ["--sockets=20", "--tenants=4", "--step=1s", "--start=4", "--factor=2"];
    let run = stack.run("ramp", &ramp);
    assert_eq!(run.code, 0, "{run:?}");
    // 4 and 8 events a second, and the 10 that are allowed.
    assert_eq!(run.figure("/steps").as_array().unwrap().len(), 3);
    assert!(run.number("/knee/deliveries_per_second") > 150.0, "{run:?}");

    let run = stack.run("ramp", &[&ramp[..], &["--max-p99=1us"]].concat());
    assert_eq!(run.code, 1, "{run:?}");
    assert_eq!(run.figure("/steps").as_array().unwrap().len(), 1);
    assert!(run.figure("/knee").is_null() && run.errors.contains("the first step failed"), "{run:?}");
}

#[test]
fn after_a_storm_all_sockets_have_reconnected_and_missed_nothing() {
    let stack = Stack::start();
    let storm = ["--sockets=120", "--untouched=20", "--tenants=10", "--rate=5", "--duration=3s", "--cut-after=500ms"];
    let run = stack.run("storm", &storm);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!((run.number("/cut"), run.number("/back")), (100.0, 100.0));
    assert!(run.number("/untouched/p99_us") > 0.0, "{run:?}");
    assert_eq!(run.number("/verdict/recovered"), 100.0);
    assert!(run.number("/connects/p50_us") > 0.0 && run.number("/connects/p50_us") <= run.number("/returns/max_us"));
    assert_eq!(run.number("/verdict/missed"), 0.0);
    let back: f64 = run.figure("/back_in_second").as_array().unwrap().iter().map(|count| count.as_f64().unwrap()).sum();
    assert_eq!(back, 100.0);
}

#[test]
fn b62_sockets_that_resume_by_message_miss_nothing() {
    let stack = Stack::start();
    let storm = ["--resume=message", "--sockets=20", "--tenants=4", "--rate=5", "--duration=2s", "--cut-after=500ms"];
    let run = stack.run("storm", &storm);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.number("/verdict/recovered"), 20.0);
}

#[test]
fn a_storm_without_reconnects_fails() {
    let stack = Stack::start();
    let pid = stack.gateway_pid().to_string();
    // The gateway is killed and not started again.
    let storm =
        ["--sockets=10", "--tenants=2", "--duration=1s", "--cut-after=200ms", "--max-return=1s", "--kill", &pid];
    let run = stack.run_unwatched("storm", &storm);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.errors.contains("10 sockets had not reconnected"), "{run:?}");
    assert!(run.number("/failed_attempts") > 0.0, "{run:?}");
}

#[test]
fn dashboards_beside_an_attack_miss_nothing() {
    let stack = Stack::start();
    let attack = ["--scale=0.05", "--sockets=20", "--tenants=4", "--duration=3s"];
    let run = stack.run("attack", &attack);
    assert_eq!(run.code, 0, "{run:?}");
    let attackers = run.figure("/attackers").as_array().unwrap();
    assert_eq!(attackers.len(), 6);
    assert!(attackers.iter().all(|attacker| attacker["opened"].as_u64() > Some(0)), "{attackers:?}");
    // The gateway closes connections whose token has an unknown key.
    assert!(attackers.iter().any(|attacker| attacker["kind"] == "junk-kids" && attacker["held"] == 0), "{attackers:?}");
    assert!(run.number("/alone/reconnected") > 5.0 && run.number("/attacked/reconnected") > 5.0, "{run:?}");
    assert!(run.number("/attacked/latency/p99_us") > 0.0 && run.number("/verdict/delivered") > 500.0, "{run:?}");
    assert_eq!(run.number("/verdict/missed"), 0.0);

    let bound = ["--kinds=strangers", "--max-reconnect-p99=1us"];
    let run = stack.run("attack", &[&attack[..], &bound].concat());
    assert_eq!(run.code, 1, "{run:?}");
    assert_eq!(run.figure("/attackers").as_array().unwrap().len(), 1);
    assert!(run.errors.contains("FAILED: p99 of the reconnects is"), "{run:?}");
}

#[test]
fn a_soak_leaves_nothing_behind() {
    let stack = Stack::start();
    let soak = ["--sockets=30", "--tenants=5", "--rate=5", "--duration=3s", "--life=500ms", "--every=200ms"];
    // A few seconds say nothing about an hour: memory is measured without a bound.
    let run = stack.run("soak", &[&soak[..], &["--max-rss-slope=1000000MB/h"]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.number("/replaced") > 50.0, "{run:?}");
    assert_eq!(run.figure("/before"), run.figure("/after"));
    assert!(run.figure("/looks").as_array().unwrap().len() > 5);
}

#[test]
fn the_limit_holds_under_pressure_and_is_used_up() {
    let stack = Stack::start();
    let run = stack.run("limit", &["--duration=3s", "--publishers=8"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.number("/limit/most_in_any_second"), 10.0);
    assert!(run.number("/publishing/throttled") > 0.0);
    assert_eq!(run.figure("/told_the_truth"), true);
}

#[test]
fn a_wrong_setting_is_reported_in_one_line() {
    let stack = Stack::start();
    let refused = stack.run("fanout", &["--jwt-secret=another-secret-that-the-gateway-does-not-have"]);
    assert_eq!(refused.code, 2);
    assert!(refused.errors.contains("is --jwt-secret the gateways' JWT_SECRET?"), "{refused:?}");
    assert_eq!(refused.errors.trim().lines().count(), 1, "{refused:?}");

    let absent = stack.run("fanout", &["--gateway=ws://127.0.0.1:1"]);
    assert_eq!(absent.code, 2);
    assert!(absent.errors.contains("no gateway answers at ws://127.0.0.1:1"), "{absent:?}");
}
