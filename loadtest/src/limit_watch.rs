//! Holds promise 3 against Redis' own clock: reads each tenant's log while the run goes on and looks for the
//! fullest second. The log, not the channel, because a subscription can be killed and the log can't.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use publisher::{Message, Names};
use serde::Serialize;

use crate::resp::{RedisConnection, Value};
use crate::schedule::{Stamp, tenant_name};

/// What the logs say.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LimitReport {
    /// The most events any tenant had in any window of one second.
    pub most_in_any_second: usize,
    /// Events of the run that were looked at: fewer than published means that the logs were cut too early.
    pub events: u64,
}

/// Reads the logs until it is asked for its report.
pub struct LimitWatch {
    stop: Sender<()>,
    reader: JoinHandle<anyhow::Result<LimitReport>>,
}

struct Log {
    key: String,
    /// The epoch and the id of the last entry that was read.
    epoch: String,
    cursor: String,
    published: Vec<u64>,
}

impl LimitWatch {
    /// Between two readings, at most: what a new epoch deletes is what was published meanwhile.
    const EVERY: Duration = Duration::from_millis(500);
    /// Events of a tenant between two readings: well under the 512 that its log keeps.
    const BETWEEN: u32 = 128;

    /// Only what is published from now on counts, at most `limit` a second of each tenant.
    pub fn start(redis_url: &str, prefix: &str, tenants: u32, limit: u32) -> anyhow::Result<Self> {
        let every = Self::EVERY.min(Duration::from_secs(Self::BETWEEN.into()) / limit);
        let names = Names::new(prefix)?;
        let log = |tenant| anyhow::Ok(Log::new(names.log(&tenant_name(tenant).parse()?)));
        let mut logs = (0..tenants).map(log).collect::<anyhow::Result<Vec<_>>>()?;
        let mut redis = RedisConnection::open(redis_url)?;
        read(&mut redis, &mut logs)?;
        logs.iter_mut().for_each(|log| log.published.clear());

        let (stop, stopped) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut events = 0;
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                events += read(&mut redis, &mut logs)?;
            }
            events += read(&mut redis, &mut logs)?;
            let most_in_any_second = logs.iter().map(|log| most_in_any_second(&log.published)).max().unwrap_or(0);
            Ok(LimitReport { most_in_any_second, events })
        });
        Ok(Self { stop, reader })
    }

    pub fn report(self) -> anyhow::Result<LimitReport> {
        drop(self.stop);
        self.reader.join().expect("the log reader does not panic").context("reading the tenants' logs")
    }
}

impl Log {
    fn new(key: String) -> Self {
        Self { key, epoch: String::new(), cursor: BEGINNING.to_owned(), published: Vec::new() }
    }
}

/// Before any entry.
const BEGINNING: &str = "0-0";

/// Reads what is new in all logs, in two pipelines; says how many of it a load test published.
fn read(redis: &mut RedisConnection, logs: &mut [Log]) -> anyhow::Result<u64> {
    // A new epoch counts from 1 again: entries after the old cursor would not be all of it.
    for log in logs.iter() {
        redis.send(&["XREVRANGE", &log.key, "+", "-", "COUNT", "1"])?;
    }
    for log in logs.iter_mut() {
        if let Some(newest) = redis.reply()?.items().first()
            && message(newest)?.epoch.as_str() != log.epoch
        {
            log.cursor = BEGINNING.to_owned();
        }
    }
    for log in logs.iter() {
        redis.send(&["XRANGE", &log.key, &format!("({}", log.cursor), "+"])?;
    }
    let mut ours = 0;
    for log in logs {
        for entry in redis.reply()?.items() {
            let message = message(entry)?;
            log.cursor = format!("{}-0", message.seq);
            log.epoch = message.epoch.as_str().to_owned();
            ours += u64::from(Stamp::parse(message.id.as_str().as_bytes()).is_some());
            log.published.push(message.published_micros);
        }
    }
    Ok(ours)
}

/// The message of a log entry, `[id, [field, message]]`.
fn message(entry: &Value) -> anyhow::Result<Message> {
    let fields = entry.items().get(1).map(Value::items).unwrap_or_default();
    let raw = fields.get(1).context("a log entry without its message")?;
    Ok(Message::parse(Bytes::copy_from_slice(raw.bytes()))?)
}

/// The most of these moments, in rising microseconds, that any half-open window of one second holds.
pub fn most_in_any_second(moments: &[u64]) -> usize {
    let mut first = 0;
    let windows = moments.iter().enumerate().map(|(last, &moment)| {
        while moment - moments[first] >= 1_000_000 {
            first += 1;
        }
        last - first + 1
    });
    windows.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_may_return_exactly_one_second_after_it_was_spent() {
        let ten: Vec<u64> = (0..10).collect();
        let allowed: Vec<u64> = ten.iter().chain(&[1_000_000]).copied().collect();
        let too_early: Vec<u64> = ten.iter().chain(&[999_999]).copied().collect();
        assert_eq!(most_in_any_second(&allowed), 10);
        assert_eq!(most_in_any_second(&too_early), 11);
        assert_eq!(most_in_any_second(&[]), 0);
    }
}
