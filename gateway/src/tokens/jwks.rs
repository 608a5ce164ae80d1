//! A JWKS: keys that their issuer changes while we run.

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use reqwest::{Client, Url, redirect};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::keys::KeySet;
use crate::config::ConfigError;

/// How often the keys are read again unasked.
const PERIOD: Duration = Duration::from_secs(5 * 60);

/// Anyone can name an unknown key; the issuer shall not hear of it more often than this.
const SHORTEST_PAUSE: Duration = Duration::from_secs(60);

/// A start answers within two seconds, good or bad.
const FIRST_TIMEOUT: Duration = Duration::from_millis(1800);

const TIMEOUT: Duration = Duration::from_secs(5);

const LONGEST_DOCUMENT: usize = 1024 * 1024;

/// The newest good keys of a source.
pub(super) struct Jwks {
    source: Source,
    keys: RwLock<Arc<KeySet>>,
    /// When the source was last asked. Its lock is held while asking: who comes meanwhile waits for the same answer.
    asked: Mutex<Instant>,
}

enum Source {
    File(PathBuf),
    Url(Client, Url),
}

impl Jwks {
    pub(super) async fn load(source: &str) -> Result<Self, ConfigError> {
        let refuse = |rule: String| ConfigError::with_value("JWT_JWKS", source, rule);
        let opened = Source::open(source).map_err(refuse)?;
        let keys = opened.read(FIRST_TIMEOUT).await.map_err(refuse)?;
        Ok(Self { source: opened, keys: RwLock::new(Arc::new(keys)), asked: Mutex::new(Instant::now()) })
    }

    /// The current keys; read again first when they don't hold `kid`, if that is not too soon.
    pub(super) async fn holding(&self, kid: Option<&str>) -> Arc<KeySet> {
        let keys = self.current();
        // Reading again names no key for a token that names none.
        if kid.is_none() || keys.find(kid).is_some() {
            return keys;
        }
        let mut asked = self.asked.lock().await;
        if self.current().find(kid).is_none() && asked.elapsed() >= SHORTEST_PAUSE {
            *asked = Instant::now();
            self.read_again().await;
        }
        self.current()
    }

    pub(super) async fn keep_fresh(&self) {
        loop {
            sleep(PERIOD).await;
            let mut asked = self.asked.lock().await;
            *asked = Instant::now();
            self.read_again().await;
        }
    }

    pub(super) fn describe(&self) -> String {
        self.current().describe()
    }

    /// Keeps the old keys when there are no good new ones: the issuer's outage is not to become ours.
    async fn read_again(&self) {
        match self.source.read(TIMEOUT).await {
            Ok(keys) => {
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                debug!("read the JWKS again");
            }
            Err(reason) => warn!(%reason, "could not read the JWKS again, keeping the keys"),
        }
    }

    fn current(&self) -> Arc<KeySet> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
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

    async fn read(&self, limit: Duration) -> Result<KeySet, String> {
        let document = timeout(limit, self.document()).await.map_err(|_| format!("did not answer within {limit:?}"))?;
        KeySet::parse(&document?)
    }

    async fn document(&self) -> Result<Vec<u8>, String> {
        let document = match self {
            Self::File(path) => {
                let path = path.clone();
                let read = move || {
                    let mut document = Vec::new();
                    std::fs::File::open(path)?.take(LONGEST_DOCUMENT as u64 + 1).read_to_end(&mut document)?;
                    Ok(document)
                };
                let read = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other);
                read.flatten().map_err(|error: std::io::Error| format!("cannot be read: {error}"))?
            }
            Self::Url(client, url) => {
                let unreadable =
                    |error: reqwest::Error| format!("cannot be read: {}", root_cause(&error.without_url()));
                let mut response = client.get(url.clone()).send().await.map_err(unreadable)?;
                if response.status() != reqwest::StatusCode::OK {
                    return Err(format!("answered {}", response.status()));
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
            return Err(format!("is longer than {LONGEST_DOCUMENT} bytes"));
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
