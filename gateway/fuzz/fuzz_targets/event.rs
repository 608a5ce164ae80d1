//! What is to be published, from the API or a row of the outbox: an event that is taken keeps its rules and its content on the whole
//! way to a gateway.
#![cfg_attr(fuzzing, no_main)]

use publisher::{DashboardEvent, MAX_EVENT_BYTES, Message};

fn check(input: &[u8]) {
    let event = match DashboardEvent::from_json(input) {
        Ok(event) => event,
        Err(invalid) => return gateway_fuzz::assert_presentable(&invalid.to_string()),
    };
    let written = write(&event);
    assert!(written.len() <= MAX_EVENT_BYTES, "{} bytes", written.len());
    let again = DashboardEvent::from_json(&written).expect("an event of ours");
    assert_eq!((&again.id, &again.data), (&event.id, &event.data));
    // Times are written in microseconds.
    assert_eq!(write(&again), written);

    let epoch = "1".parse().expect("an epoch");
    let message = Message::new(&event, epoch, 1, None, 1);
    assert_eq!(Message::parse(message.encode()).as_ref(), Ok(&message));
}

fn write(event: &DashboardEvent) -> Vec<u8> {
    serde_json::to_vec(event).expect("an event can be written")
}

gateway_fuzz::target!(check);
