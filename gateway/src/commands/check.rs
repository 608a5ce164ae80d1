//! `gateway check`: would `gateway serve` work here? One line for each thing looked at.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use percent_encoding::percent_decode_str;
use reqwest::Url;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Config;
use crate::database::{self, Found};
use crate::tokens::Tokens;

/// Longer than any healthy Redis takes, shorter than a person's patience.
const PATIENCE: Duration = Duration::from_secs(2);

/// Checks what an already valid configuration points at. Fails when something can't be used or reached.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    println!("configuration: valid");
    println!("keys: {}", Tokens::load(&config.jwt).await?.describe());
    postgres(config).await?;
    let Some(url) = &config.redis_url else {
        println!("redis: none configured, an instance serves alone from memory");
        return Ok(());
    };
    let url = Url::parse(url.expose()).context("REDIS_URL was checked when it was read")?;
    let place = format!("{}:{}", url.host_str().unwrap_or_default(), url.port().unwrap_or(6379));
    let reached =
        timeout(PATIENCE, ping(&url, &place)).await.unwrap_or_else(|_| bail!("no answer within {PATIENCE:?}"));
    match reached {
        Ok(()) if url.scheme() == "rediss" => {
            println!("redis: {place} accepts connections; `serve` does the TLS handshake")
        }
        Ok(()) => println!("redis: {place} answers"),
        Err(reason) => {
            println!("redis: {place} cannot be used: {reason:#}");
            bail!("Redis cannot be used");
        }
    }
    Ok(())
}

async fn postgres(config: &Config) -> anyhow::Result<()> {
    let Some(url) = &config.database_url else {
        println!("postgres: none configured, there are no snapshots and no outbox");
        return Ok(());
    };
    match database::look(&database::options(url)?).await? {
        Found::Ready { views: true } => println!("postgres: answers, with the outbox and the views of snapshots"),
        Found::Ready { views: false } => {
            println!("postgres: answers, with the outbox; without views snapshots are null")
        }
        Found::Down(reason) => {
            println!("postgres: cannot be used: {reason}");
            bail!("Postgres cannot be used");
        }
    }
    Ok(())
}

/// AUTH and PING by hand: the real client reconnects for ever, and here the first failure is the answer.
async fn ping(url: &Url, place: &str) -> anyhow::Result<()> {
    let mut redis = BufReader::new(TcpStream::connect(place).await.context("cannot connect")?);
    if url.scheme() == "rediss" {
        return Ok(());
    }
    let decoded = |part: &str| percent_decode_str(part).collect::<Vec<u8>>();
    if let Some(password) = url.password() {
        let (user, password) = (decoded(url.username()), decoded(password));
        let auth: &[&[u8]] = if user.is_empty() { &[b"AUTH", &password] } else { &[b"AUTH", &user, &password] };
        call(&mut redis, auth).await?;
    }
    call(&mut redis, &[b"PING"]).await
}

/// Sends one command and expects a simple reply.
async fn call(redis: &mut BufReader<TcpStream>, command: &[&[u8]]) -> anyhow::Result<()> {
    let mut request = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    redis.write_all(&request).await?;
    let mut reply = String::new();
    redis.read_line(&mut reply).await?;
    ensure!(reply.starts_with('+'), "it says {:?}", reply.trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Config;

    /// Checks against a Redis that says `replies` to whatever it hears; returns what it heard.
    async fn check(replies: &'static str, credentials: &str) -> (anyhow::Result<()>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("--redis-url=redis://{credentials}{}", listener.local_addr().unwrap());
        let redis = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(replies.as_bytes()).await.unwrap();
            let mut heard = String::new();
            socket.read_to_string(&mut heard).await.unwrap();
            heard
        });
        let secret = "--jwt-secret=0123456789abcdef0123456789abcdef";
        let (_, config) = Config::from_args(["gateway", "check", secret, &url]).unwrap();
        let result = run(&config).await;
        (result, redis.await.unwrap())
    }

    #[tokio::test]
    async fn a_redis_that_answers_is_good() {
        let (result, heard) = check("+PONG\r\n", "").await;
        assert!(result.is_ok() && heard == "*1\r\n$4\r\nPING\r\n");
    }

    #[tokio::test]
    async fn passwords_are_sent_as_they_are_meant() {
        let (result, heard) = check("+OK\r\n+PONG\r\n", "user:p%40ss@").await;
        assert!(result.is_ok() && heard.starts_with("*3\r\n$4\r\nAUTH\r\n$4\r\nuser\r\n$4\r\np@ss\r\n"), "{heard}");
        let (result, heard) = check("+OK\r\n+PONG\r\n", ":p%40ss@").await;
        assert!(result.is_ok() && heard.starts_with("*2\r\n$4\r\nAUTH\r\n$4\r\np@ss\r\n"), "{heard}");
    }

    #[tokio::test]
    async fn a_redis_that_refuses_is_not() {
        assert!(check("-NOAUTH Authentication required.\r\n", "").await.0.is_err());
        assert!(check("-WRONGPASS invalid\r\n", ":hunter2@").await.0.is_err());
        assert!(check("HTTP/1.1 400 Bad Request\r\n", "").await.0.is_err());
    }
}
