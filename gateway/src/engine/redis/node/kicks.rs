//! How far a server's kicks are known.

use std::time::Duration;

use tokio::time::Instant;

use crate::engine::redis::sync_round::KicksRead;

/// How often all kicks are read: a server may lose some while the connection holds, and get some back that are old.
const PERIOD: Duration = Duration::from_secs(60);

/// What was read, and whether there may be more.
#[derive(Default)]
pub struct KnownKicks {
    /// Whether a push told that there may be a kick to read.
    pub news: News,
    /// When kicks were last read on this connection, by the server's clock; 0 for never.
    read: u64,
    /// When all of them were read.
    whole: Option<Instant>,
}

/// Whether a push came that no round has looked after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum News {
    /// One came.
    Unread,
    /// None did.
    #[default]
    Nothing,
}

impl KnownKicks {
    /// The connection is another: what it did not bring must be read anew.
    pub fn forget(&mut self) {
        self.read = 0;
    }

    /// Which kicks are to be read.
    pub fn to_read(&self) -> KicksRead {
        let is_recent = self.whole.is_some_and(|at| at.elapsed() < PERIOD);
        if is_recent && self.read > 0 { KicksRead::Since(self.read) } else { KicksRead::Everything }
    }

    /// Kicks were read at this time of the server's clock.
    pub fn have_been_read(&mut self, now: u64, read: KicksRead) {
        // A clock that was set back: what was given since may lie before the last read.
        self.read = if now < self.read { 0 } else { now };
        if read == KicksRead::Everything {
            self.whole = Some(Instant::now());
        }
    }
}
