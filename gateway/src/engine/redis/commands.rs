//! What the gateway asks of one Redis server besides subscriptions: positions, kicks, claims and probes.

mod answer;

use std::time::Duration;

use bytes::Bytes;
use publisher::internals::redis::{Access, Commands as Connection, Failure};
use publisher::internals::resp::frame::text;
use publisher::internals::resp::{Frame, Target};
use publisher::internals::script;
use publisher::{EventId, TenantId};

use super::settings::Settings;
use crate::engine::{Claim, FIGURES_PAUSE, Kick, Kicked, Known, MOST_KICKS, Position, Reading};
pub use answer::{Kicks, Sighting};

/// How far before the last read kicks are read again. The clocks of two masters differ, and a set may move from one to the other.
const KICKS_OVERLAP: Duration = Duration::from_secs(60);
/// How far a kick may be ahead of the server's clock: what another master's clock may have been. One that is further ahead was
/// written by hand, and would shut everybody out until then.
const KICK_AHEAD: Duration = Duration::from_secs(5);
/// Kicks in one ZADD.
const KICKS_BATCH: usize = 512;

/// One server's command connection.
pub struct Commands {
    connection: Connection,
    settings: Settings,
}

impl Commands {
    /// Starts to connect; goes on for ever in the background.
    pub fn open(target: Target, settings: Settings) -> Self {
        Self { connection: Connection::open(target), settings }
    }

    /// Whether anything can be asked.
    pub fn is_up(&self) -> bool {
        self.connection.is_up()
    }

    /// Reads a tenant's head, and its log after a position, through the fence (gateway/docs/protocol.md).
    ///
    /// First by a script that may not write, for which the right to read is enough. Where the fence must begin an epoch, that
    /// is refused, and asked again with the right to write. A user without it gets a [provisional](provisional) head.
    pub async fn position(&self, tenant: &TenantId, after: Option<&Known>) -> Result<Sighting, Failure> {
        let answer = match self.run_position(Access::Read, tenant, after).await {
            Err(Failure::Refused(why)) if why.contains("not allowed from read-only scripts") => {
                self.run_position(Access::Write, tenant, after).await?
            }
            Err(Failure::Refused(why)) if why.starts_with("NOPERM no permission to begin an epoch") => {
                return Ok(Sighting { reading: provisional(after), run: None });
            }
            answer => answer?,
        };
        answer::sighting(answer).ok_or_else(|| unexpected("the position script"))
    }

    async fn run_position(&self, access: Access, tenant: &TenantId, after: Option<&Known>) -> Result<Frame, Failure> {
        let (at, trusted) = match after {
            Some(Known::Room(at)) => (Some(at), "1"),
            Some(Known::Client(at)) => (Some(at), "0"),
            None => (None, "0"),
        };
        let args = [
            at.map_or(String::new(), |at| at.epoch.to_string()),
            at.map_or(0, |at| at.seq).to_string(),
            at.and_then(|at| at.id.as_ref()).map_or(String::new(), ToString::to_string),
            trusted.into(),
            self.settings.recovery_events.to_string(),
            script::STATE_MILLIS.to_string(),
        ];
        let keys = [self.settings.names.state(tenant), self.settings.names.log(tenant)];
        self.connection.script(access, &script::POSITION, words(keys), words(args)).await
    }

    /// Publishes a probe.
    pub async fn probe(&self, channel: &str) -> Result<(), Failure> {
        self.connection.run("PUBLISH", words([channel, "probe"].map(str::to_owned))).await.map(drop)
    }

    /// Claims a tenant's figures for an instance, unless another has: then what that one is at.
    pub async fn claim(&self, instance: &str, tenant: &TenantId, at: Option<&Position>) -> Result<Claim, Failure> {
        let at = at.map_or_else(|| "-".to_owned(), |Position { epoch, seq, .. }| format!("{epoch} {seq}"));
        let (claim, millis) = (format!("{instance} {at}"), FIGURES_PAUSE.as_millis().to_string());
        let set = [self.settings.names.figures(tenant), claim, "NX".into(), "GET".into(), "PX".into(), millis];
        Ok(match self.connection.run("SET", words(set)).await? {
            Frame::Null => Claim::Won,
            held => {
                let held = text(&held).and_then(|held| held.split_once(' '));
                let (holder, covered) = held.ok_or_else(|| unexpected("SET"))?;
                // Our own, from a try that Redis or Postgres cut short.
                if holder == instance { Claim::Won } else { Claim::Lost { covers: covered == at } }
            }
        })
    }

    /// Revokes tokens, and tells all gateways to read that. The kick's moment, in milliseconds of the server's time; `None` when there
    /// are too many revocations.
    pub async fn kick(&self, who: &Kicked) -> Result<Option<u64>, Failure> {
        let (names, lifetime) = (&self.settings.names, self.settings.token_lifetime.as_millis());
        // Kicks are rare: the script goes along with each.
        let script = [script::KICK.source().to_owned(), "1".to_owned(), names.revoked(), who.to_string()];
        let args = [lifetime.to_string(), MOST_KICKS.to_string(), names.control()];
        match self.connection.run("EVAL", words(script.into_iter().chain(args))).await? {
            Frame::Number { data, .. } => Ok(u64::try_from(data).ok().filter(|at| *at > 0)),
            _ => Err(unexpected("the kick script")),
        }
    }

    /// The kicks since the server's time was this, in milliseconds; all of them since 0.
    pub async fn kicks_since(&self, last: u64) -> Result<Kicks, Failure> {
        let from = last.saturating_sub(KICKS_OVERLAP.as_millis() as u64).to_string();
        let (key, most) = (self.settings.names.revoked(), MOST_KICKS.to_string());
        let range = [&*key, &from, "+inf", "BYSCORE", "LIMIT", "0", &most, "WITHSCORES"].map(str::to_owned);
        // Redis answers in order, so the time is not after any kick that the set doesn't hold yet.
        let (time, entries) = futures::future::try_join(
            self.connection.run("TIME", Vec::new()),
            self.connection.run("ZRANGE", words(range)),
        )
        .await?;
        let now = answer::millis(time).ok_or_else(|| unexpected("TIME"))?;
        let entries = answer::array(entries).ok_or_else(|| unexpected("ZRANGE"))?;
        let mut read = Kicks { now, kicks: Vec::new(), unusable: 0 };
        for kick in entries.into_iter().map(answer::kick) {
            match kick.filter(|kick| kick.at <= now + KICK_AHEAD.as_millis() as u64) {
                Some(kick) => read.kicks.push(kick),
                None => read.unusable += 1,
            }
        }
        Ok(read)
    }

    /// Gives kicks back to a server that has lost them.
    pub async fn restore_kicks(&self, kicks: &[Kick]) -> Result<(), Failure> {
        let key = self.settings.names.revoked();
        for batch in kicks.chunks(KICKS_BATCH) {
            let entries = batch.iter().flat_map(|Kick { who, at }| [at.to_string(), who.to_string()]);
            let zadd = [key.clone(), "GT".into()].into_iter().chain(entries);
            self.connection.run("ZADD", words(zadd)).await?;
        }
        let millis = self.settings.token_lifetime.as_millis().to_string();
        self.connection.run("PEXPIRE", words([key, millis])).await.map(drop)
    }
}

/// Where a stream stands that needs a new epoch, to a gateway that may not begin one: at the beginning of an epoch of its
/// own. The next event that is published brings the real one, and with it a resync. An epoch that a room has left is
/// never given out again: a client that resumes from it has missed something.
fn provisional(after: Option<&Known>) -> Reading {
    const MARK: &str = "provisional-";
    let kept = match after {
        Some(Known::Room(at)) if at.epoch.as_str().starts_with(MARK) => Some(at.epoch.clone()),
        _ => None,
    };
    let fresh = || format!("{MARK}{}", EventId::new()).parse().expect("an epoch is a word");
    Reading { head: Position { epoch: kept.unwrap_or_else(fresh), seq: 0, id: None }, events: Vec::new() }
}

fn words(words: impl IntoIterator<Item = String>) -> Vec<Bytes> {
    words.into_iter().map(Bytes::from).collect()
}

fn unexpected(command: &str) -> Failure {
    Failure::Refused(format!("unexpected answer to {command}"))
}
