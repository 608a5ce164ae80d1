//! A JWKS: keys that their issuer changes while we run.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use publisher::internals::LogThrottle;
use reqwest::{Client, StatusCode, Url, redirect};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::keys::KeySet;
use crate::config::ConfigError;

/// How often the keys are read again unasked.
const PERIOD: Duration = Duration::from_secs(5 * 60);

/// Anyone can name an unknown key. The source is read again for that so often in a row, and once more after each pause.
const RESERVE: u32 = 4;
const REFILL: Duration = Duration::from_secs(15);

/// How long a token waits for another that has the source read: with an issuer that does not answer, strangers would wait in a row.
const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// How long keys are good without their source: a key that the issuer has withdrawn must end.
const LONGEST_USE: Duration = Duration::from_secs(24 * 3600);

/// A start answers within two seconds, good or bad.
const FIRST_TIMEOUT: Duration = Duration::from_millis(1800);

const TIMEOUT: Duration = Duration::from_secs(5);

/// Between two attempts while there are no keys: from the first to the longest, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

const LONGEST_DOCUMENT: usize = 1024 * 1024;

/// The newest good keys of a source.
pub(super) struct Jwks {
    source: Source,
    /// None yet when the issuer was away at the start, and none any more when it was away for too long; then the reason.
    keys: RwLock<Result<Fetched, String>>,
    /// Its lock is held while the source is read.
    reader: Mutex<Reader>,
}

/// Keys, and when the read began that brought them.
#[derive(Clone)]
struct Fetched {
    keys: Arc<KeySet>,
    at: Instant,
    /// The file that was read.
    stamp: Option<Stamp>,
}

/// What changes when a file does: its number, its size and its time.
type Stamp = (u64, u64, Option<SystemTime>);

/// What reads have in common.
struct Reader {
    reserve: Reserve,
    /// The entries that were named in the log because no token is checked with them.
    named: Vec<String>,
    throttle: LogThrottle,
}

/// A token bucket: reads for the sake of a token that names an unknown key.
struct Reserve {
    /// When it will be full again.
    full_at: Instant,
}

impl Reserve {
    /// Takes a read out, if there is one.
    fn take(&mut self) -> bool {
        let now = Instant::now();
        let full_at = self.full_at.max(now) + REFILL;
        let left = full_at <= now + RESERVE * REFILL;
        if left {
            self.full_at = full_at;
        }
        left
    }
}

enum Source {
    File(PathBuf),
    Url(Client, Url),
}

/// Why there is no key set.
enum ReadError {
    /// The issuer gave no answer, or none that says anything about its keys.
    Away(String),
    /// The source can't be used.
    Unusable(String),
}

impl Jwks {
    /// Reads the keys. An issuer that is away is asked again by [`Jwks::keep_fresh`].
    pub(super) async fn load(source: &str) -> Result<Self, ConfigError> {
        let refuse = |rule: String| ConfigError::with_value("JWT_JWKS", source, rule);
        let opened = Source::open(source).map_err(refuse)?;
        let now = Instant::now();
        let mut reader =
            Reader { reserve: Reserve { full_at: now }, named: Vec::new(), throttle: LogThrottle::default() };
        let stamp = opened.stamp().await;
        let keys = match opened.read(FIRST_TIMEOUT).await {
            Ok(keys) => {
                reader.name(&keys);
                Ok(Fetched { keys: Arc::new(keys), at: now, stamp })
            }
            Err(ReadError::Away(reason)) => {
                warn!(%reason, "JWKS unavailable, no token can be checked until it is there");
                Err(reason)
            }
            Err(ReadError::Unusable(rule)) => return Err(refuse(rule)),
        };
        Ok(Self { source: opened, keys: RwLock::new(keys), reader: Mutex::new(reader) })
    }

    /// Keys that hold `kid`, or that don't although they were read since it was asked for. `None` while that can't be told: there
    /// are no keys, or too many unknown ones were asked for.
    pub(super) async fn holding(&self, kid: Option<&str>) -> Option<Arc<KeySet>> {
        let asked = Instant::now();
        let keys = self.current().ok()?.keys;
        // Reading again names no key for a token that names none.
        if kid.is_none() || !keys.find(kid).is_empty() {
            return Some(keys);
        }
        let mut reader = timeout(LOCK_LIMIT, self.reader.lock()).await.ok()?;
        // A file that is what it was has no other keys, however often strangers ask.
        let stamp = self.source.stamp().await;
        let is_answer = |fetched: &Fetched| {
            let is_fresh = fetched.at >= asked || stamp.is_some() && fetched.stamp == stamp;
            is_fresh || !fetched.keys.find(kid).is_empty()
        };
        if !self.current().is_ok_and(|fetched| is_answer(&fetched)) && reader.reserve.take() {
            self.read_again(&mut reader).await;
        }
        self.current().ok().filter(&is_answer).map(|fetched| fetched.keys)
    }

    pub(super) async fn keep_fresh(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            if self.current().is_ok() {
                sleep(PERIOD).await;
            } else {
                // Gateways that started together should not ask together.
                sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
            self.read_again(&mut *self.reader.lock().await).await;
        }
    }

    /// Whether there are keys.
    pub(super) fn is_loaded(&self) -> bool {
        self.current().is_ok()
    }

    /// The keys for a person, or why there are none.
    pub(super) fn describe(&self) -> Result<String, String> {
        self.current().map(|fetched| fetched.keys.describe())
    }

    /// Keeps the old keys for a day when there are no good new ones: the issuer's outage is not to become ours.
    async fn read_again(&self, reader: &mut Reader) {
        let (had_keys, at, stamp) = (self.is_loaded(), Instant::now(), self.source.stamp().await);
        match self.source.read(TIMEOUT).await {
            Ok(keys) => {
                match had_keys {
                    true => debug!("read the JWKS again"),
                    false => info!("JWKS loaded"),
                }
                reader.name(&keys);
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) =
                    Ok(Fetched { keys: Arc::new(keys), at, stamp });
            }
            Err(ReadError::Away(reason) | ReadError::Unusable(reason)) => {
                let is_due = reader.throttle.is_due(&reason);
                match had_keys {
                    true if is_due => warn!(%reason, "could not read the JWKS again, keeping the keys"),
                    false if is_due => {
                        warn!(%reason, "JWKS still unavailable, no token can be checked until it is there")
                    }
                    _ => {}
                }
                if !had_keys {
                    *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Err(reason);
                }
            }
        }
    }

    fn current(&self) -> Result<Fetched, String> {
        let fetched = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        match fetched.at.elapsed() < LONGEST_USE {
            true => Ok(fetched),
            false => Err(format!("could not be read for {} hours", LONGEST_USE.as_secs() / 3600)),
        }
    }
}

impl Reader {
    /// Names the entries that no token is checked with, each once while it stays.
    fn name(&mut self, keys: &KeySet) {
        for entry in keys.passed_over.iter().filter(|entry| !self.named.contains(*entry)) {
            warn!(entry, "a key of the JWKS is not used");
        }
        self.named.clone_from(&keys.passed_over);
    }
}

impl Source {
    fn open(source: &str) -> Result<Self, String> {
        const RULE: &str = "must be the path of a file or an https:// address (http:// only on this machine)";
        if !source.contains("://") {
            return Ok(Self::File(source.into()));
        }
        let url = Url::parse(source).map_err(|_| RULE)?;
        let local = url.host_str().is_some_and(|host| matches!(host, "localhost" | "127.0.0.1" | "[::1]"));
        // Who can change the keys on their way can sign for every tenant.
        if !(url.scheme() == "https" || url.scheme() == "http" && local)
            || !url.username().is_empty()
            || url.password().is_some()
        {
            return Err(RULE.to_owned());
        }
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| format!("cannot be asked: {error}"))?;
        Ok(Self::Url(client, url))
    }

    /// Of a file that is there.
    async fn stamp(&self) -> Option<Stamp> {
        let Self::File(path) = self else { return None };
        let path = path.clone();
        let found = tokio::task::spawn_blocking(move || std::fs::metadata(path)).await.ok()?.ok()?;
        Some((found.ino(), found.len(), found.modified().ok()))
    }

    async fn read(&self, limit: Duration) -> Result<KeySet, ReadError> {
        let late = |_| ReadError::Away(format!("did not answer within {limit:?}"));
        let document = timeout(limit, self.document()).await.map_err(late)??;
        KeySet::parse(&document).map_err(ReadError::Unusable)
    }

    async fn document(&self) -> Result<Vec<u8>, ReadError> {
        let document = match self {
            Self::File(path) => {
                let path = path.clone();
                let read = move || {
                    let mut document = Vec::new();
                    std::fs::File::open(path)?.take(LONGEST_DOCUMENT as u64 + 1).read_to_end(&mut document)?;
                    Ok(document)
                };
                let read = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other);
                let unreadable = |error: std::io::Error| ReadError::Unusable(format!("cannot be read: {error}"));
                read.flatten().map_err(unreadable)?
            }
            Self::Url(client, url) => {
                let unreadable = |error: reqwest::Error| {
                    ReadError::Away(format!("cannot be read: {}", root_cause(&error.without_url())))
                };
                let mut response = client.get(url.clone()).send().await.map_err(unreadable)?;
                match response.status() {
                    StatusCode::OK => {}
                    status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                        return Err(ReadError::Away(format!("answered {status}")));
                    }
                    status => return Err(ReadError::Unusable(format!("answered {status}"))),
                }
                let mut document = Vec::new();
                while let Some(chunk) = response.chunk().await.map_err(unreadable)? {
                    document.extend_from_slice(&chunk);
                    if document.len() > LONGEST_DOCUMENT {
                        break;
                    }
                }
                document
            }
        };
        if document.len() > LONGEST_DOCUMENT {
            return Err(ReadError::Unusable(format!("is longer than {LONGEST_DOCUMENT} bytes")));
        }
        Ok(document)
    }
}

/// The HTTP client says "error sending request"; what went wrong is at the end of the chain.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
