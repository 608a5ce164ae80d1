//! The events as the browser's client has them: `gateway/web/src/core/events.ts` is written from the Rust types.

use std::{env, fs, io};

use ts_rs::{Config, TS};

use crate::{ArrearsAlert, DashboardEventType, EventsCondensed, InvoiceStatusChanged, MetricsUpdated, PaymentReceived};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../gateway/web/src/core/events.ts");

fn declaration<T: TS>(config: &Config) -> String {
    format!("\n{}export {}\n", T::docs().unwrap_or_default(), T::decl(config))
}

fn event(name: &str, data: &str) -> String {
    let known = "seq: number; id: string; timestamp: string";
    format!("  | {{ type: \"{name}\"; {known}; data: {data} }}\n")
}

#[test]
fn the_client_has_the_types_of_the_events() -> io::Result<()> {
    let config = Config::new().with_large_int("number");
    let mut expected =
        "// Written from the Rust types by `UPDATE_TYPES=1 cargo test typescript`; a test fails when they differ.\n"
            .to_owned();
    expected += "\n/** An amount in rand, with at most two decimals. */\nexport type Money = number;\n";
    expected += &declaration::<PaymentReceived>(&config);
    expected += &declaration::<InvoiceStatusChanged>(&config);
    expected += &declaration::<ArrearsAlert>(&config);
    expected += &declaration::<MetricsUpdated>(&config);
    expected += &declaration::<EventsCondensed>(&config);
    expected += &declaration::<DashboardEventType>(&config);
    expected += "\n/** Something that happened at a centre. `seq` is one more than that of the event before it; `id` names it for ever. */\nexport type DashboardEvent =\n";
    expected += &event("payment_received", &PaymentReceived::name(&config));
    expected += &event("invoice_status_changed", &InvoiceStatusChanged::name(&config));
    expected += &event("arrears_alert", &ArrearsAlert::name(&config));
    let figures_or_none = [MetricsUpdated::name(&config), EventsCondensed::name(&config)].join(" | ");
    expected += &event("metrics_updated", &figures_or_none);
    expected.insert(expected.len() - 1, ';');
    if env::var_os("UPDATE_TYPES").is_some() {
        fs::write(FILE, &expected)?;
    }
    assert_eq!(fs::read_to_string(FILE)?, expected, "run UPDATE_TYPES=1 cargo test typescript");
    Ok(())
}
