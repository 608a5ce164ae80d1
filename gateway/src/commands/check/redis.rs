//! Redis: every server of it.

use std::time::Duration;

use publisher::internals::topology::{self, RedisUrl, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::report::Report;
use crate::config::{RedisAddress, Settings};

pub(super) async fn check(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    let Some(RedisAddress { url, .. }) = &settings.redis else {
        return report.good("redis: none configured, an instance serves alone from memory");
    };
    match topology::reach(url).await {
        Ok(layout) => layout.servers().iter().try_for_each(|server| report.good(format!("redis: {server} answers"))),
        Err(reason) => {
            let instead = match remedy(&reason) {
                None => tls_remedy(url).await,
                known => known,
            };
            let instead = instead.map_or_else(String::new, |instead| format!("; {instead}"));
            report.unreachable(format!("redis: cannot be used: {reason}{instead}"))
        }
    }
}

/// What a server answers to a word in clear text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Redis,
    /// It ends the connection, as a port does that speaks TLS.
    Refused,
    /// Or is not there.
    Nothing,
}

/// Longer than a server takes to answer a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// What to write instead, where a server speaks TLS and the address says that it doesn't, or the other way round: one waits in silence for
/// the other then.
async fn tls_remedy(url: &RedisUrl) -> Option<&'static str> {
    for server in url.seeds() {
        match timeout(PATIENCE, ask_in_clear_text(server)).await.unwrap_or(Speaks::Nothing) {
            Speaks::Redis if url.uses_tls() => {
                return Some("the port speaks no TLS: write redis in place of rediss, or the port that speaks it");
            }
            Speaks::Refused if !url.uses_tls() => {
                return Some("the port takes nothing in clear text: if it speaks TLS, write rediss in place of redis");
            }
            _ => {}
        }
    }
    None
}

async fn ask_in_clear_text(server: &Server) -> Speaks {
    let Ok(mut stream) = TcpStream::connect((&*server.host, server.port)).await else { return Speaks::Nothing };
    if stream.write_all(b"PING\r\n").await.is_err() {
        return Speaks::Nothing;
    }
    match stream.read_u8().await {
        // An answer, or a refusal to answer without a password.
        Ok(b'+' | b'-') => Speaks::Redis,
        Ok(_) | Err(_) => Speaks::Refused,
    }
}

/// What to write instead, where the reason tells.
fn remedy(reason: &str) -> Option<&'static str> {
    let says = |word: &str| reason.contains(word);
    if says("WRONGPASS") || says("without any password configured") {
        Some("write the user and the password that Redis has (ACL LIST) in REDIS_URL, or in REDIS_URL_FILE")
    } else if says("NOAUTH") {
        Some("write the password in REDIS_URL: redis://user:password@host:port")
    } else if says("invalid peer certificate") {
        Some("write the file of the certificate's authority in SSL_CERT_FILE")
    } else {
        None
    }
}
