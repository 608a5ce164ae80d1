//! A JWKS: keys that their issuer changes while we run.

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use reqwest::{Client, StatusCode, Url, redirect};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::keys::KeySet;
use crate::config::ConfigError;

/// How often the keys are read again unasked.
const PERIOD: Duration = Duration::from_secs(5 * 60);

/// Anyone can name an unknown key; the issuer shall not hear of it more often than this.
const SHORTEST_PAUSE: Duration = Duration::from_secs(60);

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
    /// None yet when the issuer was away at the start; then the reason.
    keys: RwLock<Result<Arc<KeySet>, String>>,
    /// When the source was last asked. Its lock is held while asking: who comes meanwhile waits for the same answer.
    asked: Mutex<Instant>,
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
        let keys = match opened.read(FIRST_TIMEOUT).await {
            Ok(keys) => Ok(Arc::new(keys)),
            Err(ReadError::Away(reason)) => {
                warn!(%reason, "JWKS unavailable, no token can be checked until it is there");
                Err(reason)
            }
            Err(ReadError::Unusable(rule)) => return Err(refuse(rule)),
        };
        Ok(Self { source: opened, keys: RwLock::new(keys), asked: Mutex::new(Instant::now()) })
    }

    /// The current keys, unless there are none yet; read again first when they don't hold `kid`, if that is not too soon.
    pub(super) async fn holding(&self, kid: Option<&str>) -> Option<Arc<KeySet>> {
        let keys = self.current().ok()?;
        // Reading again names no key for a token that names none.
        if kid.is_none() || keys.find(kid).is_some() {
            return Some(keys);
        }
        let mut asked = self.asked.lock().await;
        let known = self.current().is_ok_and(|keys| keys.find(kid).is_some());
        if !known && asked.elapsed() >= SHORTEST_PAUSE {
            *asked = Instant::now();
            self.read_again().await;
        }
        self.current().ok()
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
            let mut asked = self.asked.lock().await;
            *asked = Instant::now();
            self.read_again().await;
        }
    }

    /// Whether there are keys.
    pub(super) fn is_loaded(&self) -> bool {
        self.current().is_ok()
    }

    /// The keys for a person, or why there are none.
    pub(super) fn describe(&self) -> Result<String, String> {
        self.current().map(|keys| keys.describe())
    }

    /// Keeps the old keys when there are no good new ones: the issuer's outage is not to become ours.
    async fn read_again(&self) {
        let read = self.source.read(TIMEOUT).await;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        match (read, &*keys) {
            (Ok(read), before) => {
                match before {
                    Ok(_) => debug!("read the JWKS again"),
                    Err(_) => info!("JWKS loaded"),
                }
                *keys = Ok(Arc::new(read));
            }
            (Err(ReadError::Away(reason) | ReadError::Unusable(reason)), Ok(_)) => {
                warn!(%reason, "could not read the JWKS again, keeping the keys");
            }
            (Err(ReadError::Away(reason) | ReadError::Unusable(reason)), Err(_)) => {
                warn!(%reason, "JWKS still unavailable, no token can be checked until it is there");
                *keys = Err(reason);
            }
        }
    }

    fn current(&self) -> Result<Arc<KeySet>, String> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
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
