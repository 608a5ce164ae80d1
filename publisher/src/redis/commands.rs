//! One server's commands and scripts, for a gateway: by one connection that heals.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Failure,
    connection::{Call, Connection, Settings},
};
use crate::{
    backoff::Backoff,
    resp::{Frame, Target},
    script::Script,
    task::keep_running,
};

/// No command may take longer.
const LIMIT: Duration = Duration::from_secs(1);
/// Commands that may wait for the connection.
const QUEUE: usize = 65_536;
/// The longest delay between two attempts to connect.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// The connection; it ends with this.
pub struct Commands {
    connection: Arc<Connection>,
    _task: AbortOnDropHandle<()>,
}

/// Whether a script may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It may not, and the right to read is enough for it.
    Read,
    /// It may.
    Write,
}

impl Commands {
    /// Starts to connect, and goes on trying in the background.
    pub fn open(target: Target) -> Self {
        let settings = Settings { queue: QUEUE, pulse_limit: LIMIT };
        let connection = Arc::new(Connection::new("commands".to_owned(), target, settings));
        let (kept, dialling) = (connection.clone(), Arc::new(Mutex::new(Backoff::up_to(RECONNECT_DELAY))));
        let task = keep_running("Redis connection", move || kept.clone().keep_alive(dialling.clone()));
        Self { connection, _task: task }
    }

    /// Whether the connection has answered of late.
    pub fn is_up(&self) -> bool {
        self.connection.is_usable()
    }

    /// Runs a command within a second.
    ///
    /// # Errors
    /// Why there is no answer, or that it is a refusal.
    pub async fn run(&self, command: &'static str, words: Vec<Bytes>) -> Result<Frame, Failure> {
        if !self.is_up() {
            return Err(Failure::NotSent);
        }
        self.connection.command(command, words, LIMIT).await
    }

    /// Runs a script within a second.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn script(
        &self,
        access: Access,
        script: &'static Script,
        keys: Vec<Bytes>,
        args: Vec<Bytes>,
    ) -> Result<Frame, Failure> {
        if !self.is_up() {
            return Err(Failure::NotSent);
        }
        let commands = match access {
            Access::Read => ["EVALSHA_RO", "EVAL_RO"],
            Access::Write => ["EVALSHA", "EVAL"],
        };
        self.connection.script(commands, &Call { script, keys, args }, LIMIT).await
    }
}
