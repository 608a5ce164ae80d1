//! What is to be published, from the API or a row of the outbox: an event that is taken keeps its rules and its content on the whole
//! way to a gateway.
#![cfg_attr(fuzzing, no_main)]

use publisher::internals::Message;
use publisher::{DashboardEvent, EventData, MAX_EVENT_BYTES};
use time::OffsetDateTime;

fn check(input: &[u8]) {
    let mut event = match DashboardEvent::from_json(input) {
        Ok(event) => event,
        Err(invalid) => return gateway_fuzz::assert_presentable(&invalid.to_string()),
    };
    let written = serde_json::to_vec(&event).expect("an event can be written");
    assert!(written.len() <= MAX_EVENT_BYTES, "{} bytes", written.len());

    // Times are written in microseconds.
    event.timestamp = cut(event.timestamp);
    if let EventData::MetricsUpdated(figures) = &mut event.data {
        figures.as_of = cut(figures.as_of);
    }
    assert_eq!(DashboardEvent::from_json(&written).as_ref(), Ok(&event));

    let epoch = "1".parse().expect("an epoch");
    let message = Message::new(&event, epoch, 1, None, 1);
    assert_eq!(Message::parse(message.encode()).as_ref(), Ok(&message));
}

fn cut(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_microsecond(time.microsecond()).expect("a microsecond of its own")
}

gateway_fuzz::target!(check);
