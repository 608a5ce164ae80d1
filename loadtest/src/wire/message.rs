//! Reads the gateway's text messages without parsing the JSON: at 100,000 deliveries a second a JSON parser would cost
//! more than the server under test.

use memchr::memmem::Finder;

/// A place in a tenant's stream: what a client resumes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub epoch: Box<[u8]>,
    pub seq: u64,
}

/// A message of the gateway, with the fields that the ledger needs.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A dashboard event.
    Event { seq: u64, id: &'a [u8] },
    /// The room was joined at this position; `recovered` when the missed events follow.
    Joined { epoch: &'a [u8], seq: u64, recovered: bool },
    /// This socket will not get some events: its stream continues after this position.
    Resync { epoch: &'a [u8], seq: u64 },
    /// The tenant's head, as delivered to this socket.
    Heartbeat { epoch: &'a [u8], seq: u64 },
    /// The gateway can't guarantee live delivery.
    Degraded,
    /// The gateway guarantees live delivery again.
    Restored,
    /// The room was left.
    Left,
    /// The gateway refused a request, or is about to close the socket and says when to reconnect.
    Error { retry_in_ms: Option<u64> },
    /// Any other message: a token that ends soon, or a type of a later version.
    Other,
}

/// Finds the few keys that matter. Text inside a payload can't be mistaken for a key, since its quotes are escaped, and
/// no payload has a key of the same name.
pub struct Scanner {
    kind: Finder<'static>,
    seq: Finder<'static>,
    id: Finder<'static>,
    epoch: Finder<'static>,
    recovered: Finder<'static>,
    retry: Finder<'static>,
}

impl Scanner {
    pub fn new() -> Self {
        Self {
            kind: Finder::new(br#""type":""#),
            seq: Finder::new(br#""seq":"#),
            id: Finder::new(br#""id":""#),
            epoch: Finder::new(br#""epoch":""#),
            recovered: Finder::new(br#""recovered":true"#),
            retry: Finder::new(br#""retryInMs":"#),
        }
    }

    /// `None` when the payload lacks a field that its type must have: the gateway broke its contract.
    pub fn scan<'a>(&self, payload: &'a [u8]) -> Option<Message<'a>> {
        let position = || Some((string(&self.epoch, payload)?, number(&self.seq, payload)?));
        Some(match string(&self.kind, payload)? {
            b"payment_received" | b"invoice_status_changed" | b"arrears_alert" | b"metrics_updated" => {
                Message::Event { seq: number(&self.seq, payload)?, id: string(&self.id, payload)? }
            }
            b"heartbeat" => position().map(|(epoch, seq)| Message::Heartbeat { epoch, seq })?,
            b"joined" => position().map(|(epoch, seq)| {
                let recovered = self.recovered.find(payload).is_some();
                Message::Joined { epoch, seq, recovered }
            })?,
            b"resync" => position().map(|(epoch, seq)| Message::Resync { epoch, seq })?,
            b"degraded" => Message::Degraded,
            b"restored" => Message::Restored,
            b"left" => Message::Left,
            b"error" => Message::Error { retry_in_ms: number(&self.retry, payload) },
            _ => Message::Other,
        })
    }
}

/// The text after `key` up to its closing quote. Ids, epochs and types never contain an escape.
fn string<'a>(key: &Finder<'_>, payload: &'a [u8]) -> Option<&'a [u8]> {
    let rest = &payload[key.find(payload)? + key.needle().len()..];
    Some(&rest[..memchr::memchr(b'"', rest)?])
}

fn number(key: &Finder<'_>, payload: &[u8]) -> Option<u64> {
    let rest = &payload[key.find(payload)? + key.needle().len()..];
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_in_any_order_of_its_keys() {
        let expected = Some(Message::Event { seq: 42, id: b"l0001-7-1" });
        for payload in [
            r#"{"seq":42,"id":"l0001-7-1","type":"payment_received","timestamp":"…","data":{"paymentId":"p"}}"#,
            r#"{"type":"payment_received","data":{"paymentId":"\"id\":\"x\""},"id":"l0001-7-1","seq":42}"#,
        ] {
            assert_eq!(Scanner::new().scan(payload.as_bytes()), expected);
        }
    }

    #[test]
    fn a_position_is_found() {
        let payload =
            br#"{"type":"joined","timestamp":"","data":{"tenantId":"t","epoch":"e-1","seq":9,"recovered":false}}"#;
        assert_eq!(Scanner::new().scan(payload), Some(Message::Joined { epoch: b"e-1", seq: 9, recovered: false }));
        let payload = br#"{"type":"joined","data":{"epoch":"e-1","seq":9,"recovered":true}}"#;
        assert_eq!(Scanner::new().scan(payload), Some(Message::Joined { epoch: b"e-1", seq: 9, recovered: true }));
    }

    #[test]
    fn the_wait_that_an_error_asks_for_is_found() {
        let error = br#"{"type":"error","data":{"code":"restart","message":"","retryInMs":1250}}"#;
        assert_eq!(Scanner::new().scan(error), Some(Message::Error { retry_in_ms: Some(1250) }));
        assert_eq!(Scanner::new().scan(br#"{"type":"error"}"#), Some(Message::Error { retry_in_ms: None }));
    }

    #[test]
    fn an_event_without_its_seq_breaks_the_contract() {
        assert_eq!(Scanner::new().scan(br#"{"id":"x","type":"arrears_alert"}"#), None);
        assert_eq!(Scanner::new().scan(b"hello"), None);
    }
}
