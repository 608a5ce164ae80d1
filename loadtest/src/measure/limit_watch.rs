//! Checks the limit of events a second by Redis' own clock: reads each tenant's log during the run and finds its fullest
//! second. It reads the log and not the channel because a run may kill subscriptions.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use publisher::internals::{Message, Names};
use serde::Serialize;

use crate::schedule::{Stamp, tenant_name};
use crate::wire::resp::{RedisConnection, Value};

/// The result of reading the logs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LimitReport {
    /// The most events of any tenant in any window of one second.
    pub most_in_any_second: usize,
    /// Events of the run that were read: fewer than were published means that the logs were trimmed too early.
    pub events: u64,
}

/// Reads the logs on a thread of its own.
pub struct LimitWatch {
    stop: Sender<()>,
    reader: JoinHandle<anyhow::Result<LimitReport>>,
}

struct Log {
    key: String,
    /// The epoch and the id of the last entry read.
    epoch: String,
    cursor: String,
    published: Vec<u64>,
}

impl LimitWatch {
    /// Longest time between two readings. A new epoch deletes the log, and with it the entries since the last reading.
    const INTERVAL: Duration = Duration::from_millis(500);
    /// Events of a tenant between two readings: well under the 512 that its log keeps.
    const EVENTS_PER_READING: u32 = 128;

    /// Counts events published from now on, at most `limit` a second of each tenant.
    pub fn start(redis_url: &str, prefix: &str, tenants: u32, limit: u32) -> anyhow::Result<Self> {
        let interval = Self::INTERVAL.min(Duration::from_secs(Self::EVENTS_PER_READING.into()) / limit);
        let names = Names::new(prefix)?;
        let log = |tenant| anyhow::Ok(Log::new(names.log(&tenant_name(tenant).parse()?)));
        let mut logs = (0..tenants).map(log).collect::<anyhow::Result<Vec<_>>>()?;
        let mut redis = RedisConnection::open(redis_url)?;
        read(&mut redis, &mut logs)?;
        logs.iter_mut().for_each(|log| log.published.clear());

        let (stop, stopped) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut events = 0;
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
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

/// Reads the new entries of all logs, in two pipelines; returns how many of them a load test published.
fn read(redis: &mut RedisConnection, logs: &mut [Log]) -> anyhow::Result<u64> {
    // A new epoch counts from 1 again: its log must be read from the beginning, not from the old cursor.
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

/// The most of these moments (microseconds, rising) in any half-open window of one second.
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
    use crate::schedule::Schedule;

    #[test]
    fn an_event_exactly_one_second_later_is_in_another_window() {
        let ten: Vec<u64> = (0..10).collect();
        let allowed: Vec<u64> = ten.iter().chain(&[1_000_000]).copied().collect();
        let too_early: Vec<u64> = ten.iter().chain(&[999_999]).copied().collect();
        assert_eq!(most_in_any_second(&allowed), 10);
        assert_eq!(most_in_any_second(&too_early), 11);
        assert_eq!(most_in_any_second(&[]), 0);
    }

    #[test]
    fn a_schedule_at_the_limit_never_exceeds_it_and_spreads_the_tenants() {
        let schedule = Schedule::new(20, 0, 10.0, 10, Duration::from_secs(60));
        let events: Vec<Stamp> = schedule.events(0).collect();
        assert_eq!(events.len(), 20 * schedule.end() as usize);
        assert!(events.is_sorted_by_key(|event| event.due_micros));
        let first: Vec<u64> = events.iter().filter(|e| e.tenant == 0).map(|e| e.due_micros).collect();
        assert_eq!(most_in_any_second(&first), 10);
        assert!(events.windows(2).all(|pair| pair[1].due_micros - pair[0].due_micros < 6_000));
    }
}
