//! Recognises frames that another socket has received: all sockets of a tenant get the same bytes, so that only the
//! first copy is parsed and the others are compared with it.

use crate::schedule::Stamp;
use crate::wire::websocket;

/// The newest frames of each tenant.
pub struct Memo(Vec<[Remembered; Memo::FRAMES]>);

#[derive(Default)]
struct Remembered {
    seq: u64,
    stamp: Option<Stamp>,
    /// Header and payload; empty in an unused slot.
    frame: Vec<u8>,
}

impl Memo {
    /// How many events the sockets of a tenant may be apart: about as many as one read brings at most.
    const FRAMES: usize = 256;

    pub fn new(tenants: u32) -> Self {
        Self((0..tenants).map(|_| std::array::from_fn(|_| Remembered::default())).collect())
    }

    /// The stamp and the length of the first frame in `bytes` if it is, byte for byte, the tenant's event `seq`.
    pub fn recognise(&self, tenant: u32, seq: u64, bytes: &[u8]) -> Option<(Option<Stamp>, usize)> {
        let known = &self.0[tenant as usize][seq as usize % Self::FRAMES];
        let same = known.seq == seq && !known.frame.is_empty() && bytes.starts_with(&known.frame);
        same.then_some((known.stamp, known.frame.len()))
    }

    /// Remembers a parsed frame.
    pub fn learn(&mut self, tenant: u32, seq: u64, stamp: Option<Stamp>, payload: &[u8]) {
        let slot = &mut self.0[tenant as usize][seq as usize % Self::FRAMES];
        (slot.seq, slot.stamp) = (seq, stamp);
        websocket::server_text(payload, &mut slot.frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_are_recognised_and_a_corrupted_copy_is_not() {
        let stamp = Some(Stamp { tenant: 1, number: 4, due_micros: 9 });
        let payload = br#"{"type":"payment_received","seq":7,"id":"load-1-4-9","data":{}}"#;
        let mut memo = Memo::new(2);
        memo.learn(1, 7, stamp, payload);

        let mut bytes = Vec::new();
        websocket::server_text(payload, &mut bytes);
        let length = bytes.len();
        bytes.extend(b"the next frame");
        assert_eq!(memo.recognise(1, 7, &bytes), Some((stamp, length)));
        assert_eq!(memo.recognise(0, 7, &bytes), None, "another tenant's");
        assert_eq!(memo.recognise(1, 8, &bytes), None, "another seq");
        assert_eq!(memo.recognise(1, 7, &bytes[..length - 1]), None, "half a frame");
        for corrupted in 0..length {
            let mut copy = bytes.clone();
            copy[corrupted] ^= 1;
            assert_eq!(memo.recognise(1, 7, &copy), None, "byte {corrupted}");
        }
    }

    #[test]
    fn an_unknown_seq_is_not_recognised() {
        assert_eq!(Memo::new(1).recognise(0, 0, b"anything"), None);
    }
}
