//! What comes from Redis: a message that is read prints back to the same bytes, and shares their memory.
#![cfg_attr(fuzzing, no_main)]

use bytes::Bytes;
use publisher::internals::Message;

fn check(input: &[u8]) {
    let raw = Bytes::copy_from_slice(input);
    match Message::parse(raw.clone()) {
        Ok(message) => {
            assert_eq!(message.encode(), raw);
            assert!(raw.as_ptr_range().contains(&message.json.as_ptr()), "the JSON was copied");
            assert!(message.seq > 0);
            let numbered = format!("{{\"seq\":{},", message.seq);
            assert!(message.json.starts_with(numbered.as_bytes()), "the browser is told another number");
            assert!(std::str::from_utf8(&message.json).is_ok(), "a text frame must be UTF-8");
        }
        Err(malformed) => gateway_fuzz::assert_presentable(&malformed.to_string()),
    }
}

gateway_fuzz::target!(check);
