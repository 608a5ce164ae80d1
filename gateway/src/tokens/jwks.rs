//! A JWKS: keys that their issuer changes while the gateway runs.

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

/// The keys are read again this often.
const PERIOD: Duration = Duration::from_secs(5 * 60);

/// A token can name an unknown key without being valid. Such tokens can cause this many reads in a row, and another one after each
/// `REFILL`.
const RESERVE: u32 = 4;
const REFILL: Duration = Duration::from_secs(15);

/// How long a token waits for the read that another token has caused. Without a limit, tokens with unknown keys would queue behind an
/// issuer that does not answer.
const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// How long keys are used while the source can't be read: a key that the issuer has withdrawn must not live for ever.
const LONGEST_USE: Duration = Duration::from_secs(24 * 3600);

/// For the read at the start: the gateway starts, or refuses to, within two seconds.
const FIRST_TIMEOUT: Duration = Duration::from_millis(1800);

const TIMEOUT: Duration = Duration::from_secs(5);

/// Between two attempts while there are no keys: from the first to the longest, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

const LONGEST_DOCUMENT: usize = 1024 * 1024;

/// The newest good keys of a source.
pub(super) struct Jwks {
    source: Source,
    /// The reason instead, while no key could be read since the start, or since [`LONGEST_USE`].
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

/// Tells versions of a file apart: inode, size, time of change.
type Stamp = (u64, u64, Option<SystemTime>);

/// What is kept from one read to the next.
struct Reader {
    reserve: Reserve,
    /// The unused entries that the log has named.
    named: Vec<String>,
    throttle: LogThrottle,
}

/// A token bucket of the reads that unknown keys may cause.
struct Reserve {
    /// When it will be full again.
    full_at: Instant,
}

impl Reserve {
    /// Takes a read out of the bucket; false when it is empty.
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
    /// The issuer did not answer, or answered with a server error.
    Away(String),
    /// The source can't be used.
    Unusable(String),
}

impl Jwks {
    /// Reads the keys. An issuer that does not answer is asked again by [`Jwks::keep_fresh`].
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
                warn!(%reason, "JWKS unavailable, tokens can't be checked");
                Err(reason)
            }
            Err(ReadError::Unusable(rule)) => return Err(refuse(rule)),
        };
        Ok(Self { source: opened, keys: RwLock::new(keys), reader: Mutex::new(reader) })
    }

    /// The keys, when they have `kid`, or when they were read after this call and lack it. `None` while that is unknown: there are no
    /// keys, or unknown ones have caused too many reads.
    pub(super) async fn holding(&self, kid: Option<&str>) -> Option<Arc<KeySet>> {
        let asked = Instant::now();
        let keys = self.current().ok()?.keys;
        // A token without `kid` gains nothing by another read.
        if kid.is_none() || !keys.find(kid).is_empty() {
            return Some(keys);
        }
        let mut reader = timeout(LOCK_LIMIT, self.reader.lock()).await.ok()?;
        // An unchanged file has no other keys.
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
                // A random share keeps gateways apart that started together.
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

    /// The keys as text, or why there are none.
    pub(super) fn describe(&self) -> Result<String, String> {
        self.current().map(|fetched| fetched.keys.describe())
    }

    /// Reads the keys. When that fails, the old ones are used for a day: an outage of the issuer must not become one of the gateway.
    async fn read_again(&self, reader: &mut Reader) {
        let (had_keys, at, stamp) = (self.is_loaded(), Instant::now(), self.source.stamp().await);
        match self.source.read(TIMEOUT).await {
            Ok(keys) => {
                match had_keys {
                    true => debug!("JWKS read again"),
                    false => info!("JWKS loaded"),
                }
                reader.name(&keys);
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) =
                    Ok(Fetched { keys: Arc::new(keys), at, stamp });
            }
            Err(ReadError::Away(reason) | ReadError::Unusable(reason)) => {
                let is_due = reader.throttle.is_due(&reason);
                match had_keys {
                    true if is_due => warn!(%reason, "JWKS unavailable, the old keys stay in use"),
                    false if is_due => {
                        warn!(%reason, "JWKS still unavailable, tokens can't be checked")
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
    /// Logs the unused entries, each once for as long as the set has it.
    fn name(&mut self, keys: &KeySet) {
        for entry in keys.passed_over.iter().filter(|entry| !self.named.contains(*entry)) {
            warn!(entry, "JWKS entry ignored");
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
        // Over plain http an attacker on the network could replace the keys, and sign for every tenant.
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

    /// `None` for an address, or a missing file.
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

/// The client's own text is "error sending request"; the cause is the last error of the chain.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
