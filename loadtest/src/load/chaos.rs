//! A disturbance during a run: all Redis subscriptions are killed at a fixed interval.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;

use crate::wire::resp::{RedisConnection, Value};

/// Sends `CLIENT KILL TYPE pubsub` until it is stopped.
pub struct PubsubKiller {
    stop: Sender<()>,
    killer: JoinHandle<anyhow::Result<u64>>,
}

impl PubsubKiller {
    pub fn start(redis_url: &str, interval: Duration) -> anyhow::Result<Self> {
        let mut redis = RedisConnection::open(redis_url)?;
        let (stop, stopped) = mpsc::channel();
        let killer = thread::spawn(move || {
            let mut killed = 0;
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                if let Value::Integer(connections) = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"])? {
                    killed += connections.unsigned_abs();
                }
            }
            Ok(killed)
        });
        Ok(Self { stop, killer })
    }

    /// Stops, and returns how many connections were killed.
    pub fn stop(self) -> anyhow::Result<u64> {
        drop(self.stop);
        self.killer.join().expect("the killer does not panic").context("killing subscriptions")
    }
}
