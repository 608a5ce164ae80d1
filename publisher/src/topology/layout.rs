//! Which server holds which tenant.

use redis_protocol::redis_keyslot;

use super::Server;
use crate::resp::{
    Frame,
    frame::{array, number, text},
};

const LAST_SLOT: u16 = 16_383;

/// Which server holds which slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    servers: Vec<Server>,
    /// Ranges by their last slot, ascending; each with the index of its server. The slots between them have no server.
    ranges: Vec<Range>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    server: usize,
}

impl Layout {
    pub(super) fn nothing() -> Self {
        Self { servers: Vec::new(), ranges: Vec::new() }
    }

    pub(super) fn all_on(server: Server) -> Self {
        Self { servers: vec![server], ranges: vec![Range { first: 0, last: LAST_SLOT, server: 0 }] }
    }

    /// The server that holds a name; `None` while no server is known to hold it.
    pub fn server_of(&self, name: &[u8]) -> Option<&Server> {
        // One server holds all there is, whatever the slot.
        if let ([server], [Range { first: 0, last: LAST_SLOT, .. }]) = (&self.servers[..], &self.ranges[..]) {
            return Some(server);
        }
        let slot = redis_keyslot(name);
        let range = self.ranges.get(self.ranges.partition_point(|range| range.last < slot))?;
        (range.first <= slot).then(|| &self.servers[range.server])
    }

    /// Whether every slot has a server.
    pub fn is_whole(&self) -> bool {
        let mut next = 0;
        for range in &self.ranges {
            if range.first > next {
                return false;
            }
            next = range.last + 1;
        }
        next > LAST_SLOT
    }

    /// Every server that holds something.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// Reads the answer to CLUSTER SLOTS, which the node `asked` gave.
    pub(super) fn of_cluster(answer: &Frame, asked: &Server) -> Option<Self> {
        let mut layout = Self::nothing();
        for entry in array(answer)? {
            let [first, last, master, ..] = array(entry)? else { return None };
            let [host, port, ..] = array(master)? else { return None };
            // A node that doesn't know how it is reached leaves that to us, who have just reached it.
            let host = text(host).filter(|host| !host.is_empty() && *host != "?").unwrap_or(&asked.host);
            let server = Server::new(host, number(port)?.try_into().ok()?);
            let known = layout.servers.iter().position(|known| *known == server);
            let server = known.unwrap_or_else(|| {
                layout.servers.push(server);
                layout.servers.len() - 1
            });
            let slot = |frame| number(frame)?.try_into().ok();
            layout.ranges.push(Range { first: slot(first)?, last: slot(last)?, server });
        }
        layout.ranges.sort_by_key(|range| range.last);
        (!layout.ranges.is_empty()).then_some(layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(ranges: &[(u16, u16, &str, i64)]) -> Option<Layout> {
        let blob = |text: &str| Frame::BlobString { data: text.to_owned().into(), attributes: None };
        let number = |data: i64| Frame::Number { data, attributes: None };
        let list = |data: Vec<Frame>| Frame::Array { data, attributes: None };
        let entries = ranges.iter().map(|(first, last, host, port)| {
            let master = list(vec![blob(host), number(*port), blob("id")]);
            list(vec![number((*first).into()), number((*last).into()), master])
        });
        Layout::of_cluster(&list(entries.collect()), &Server::new("asked", 1))
    }

    #[test]
    fn a_slot_is_where_the_cluster_says() {
        let layout = layout(&[(5000, 9000, "b", 2), (0, 4999, "a", 1), (9001, 16383, "", 3)]).expect("a layout");
        let slot = |name: &str| redis_keyslot(name.as_bytes());
        for name in ["dash:{acorn}:events", "dash:{hazel}:log", "dash:{maple}:state", "dash:kicks"] {
            let expected = match slot(name) {
                ..=4999 => Server::new("a", 1),
                5000..=9000 => Server::new("b", 2),
                _ => Server::new("asked", 3),
            };
            assert_eq!(layout.server_of(name.as_bytes()), Some(&expected), "{name} in slot {}", slot(name));
        }
        assert_eq!(layout.servers().len(), 3);
        assert!(layout.is_whole());
    }

    #[test]
    fn a_slot_between_the_ranges_has_no_server() {
        let slot = redis_keyslot(b"dash:kicks");
        let layout = layout(&[(0, slot - 1, "a", 1), (slot + 1, 16383, "a", 1)]).expect("a layout");
        assert_eq!(layout.server_of(b"dash:kicks"), None);
        assert_eq!(layout.servers().len(), 1);
        assert!(!layout.is_whole());
    }

    #[test]
    fn a_cluster_without_slots_is_no_answer() {
        assert_eq!(layout(&[]), None);
    }
}
