//! What breaks when: drawn from a seed and from nothing else, so that a run can be had again.

use std::fmt;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// Gateways, and as many groups of clients.
pub const GATEWAYS: usize = 3;
/// More would leave nothing that works.
const AT_ONCE: usize = 3;
/// In quiet rounds: for whatever was broken to be whole before the next thing breaks.
const REST: Duration = Duration::from_millis(2500);

/// What can be broken. Two faults of one of them never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Gateway(usize),
    /// The way from this gateway to Redis.
    Way(usize),
    Redis,
    Postgres,
    /// The log of this gateway.
    Log(usize),
    /// All clients of a third of the tenants.
    Clients(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    GatewayKilled,
    GatewayFrozen,
    GatewaysRolled,
    SubscribersKilled,
    ConnectionsKilled,
    WritesPaused,
    CommandsPaused,
    RedisAsleep,
    RedisFrozen,
    RedisEmptied,
    RedisRestarted,
    Flushed,
    StateDeleted,
    LogDeleted,
    ScriptsForgotten,
    FailedOver,
    OutputOverrun,
    WayDelayed,
    WayBlackHoled,
    WayRefused,
    WayReset,
    WayHalfClosed,
    PostgresKilled,
    PostgresFrozen,
    SessionsEnded,
    TenantBroken,
    LogStalled,
    ClientsReset,
    ClientsDeaf,
    ClientsAbsent,
    ClientsLeave,
}

/// What lasts for a minute and more in life, and so in every fourth round.
const LASTING: [Fault; 12] = [
    Fault::GatewayFrozen,
    Fault::CommandsPaused,
    Fault::RedisFrozen,
    Fault::RedisEmptied,
    Fault::RedisRestarted,
    Fault::WayBlackHoled,
    Fault::WayRefused,
    Fault::PostgresKilled,
    Fault::PostgresFrozen,
    Fault::TenantBroken,
    Fault::LogStalled,
    Fault::ClientsAbsent,
];

impl Fault {
    pub const ALL: [Self; 31] = [
        Self::GatewayKilled,
        Self::GatewayFrozen,
        Self::GatewaysRolled,
        Self::SubscribersKilled,
        Self::ConnectionsKilled,
        Self::WritesPaused,
        Self::CommandsPaused,
        Self::RedisAsleep,
        Self::RedisFrozen,
        Self::RedisEmptied,
        Self::RedisRestarted,
        Self::Flushed,
        Self::StateDeleted,
        Self::LogDeleted,
        Self::ScriptsForgotten,
        Self::FailedOver,
        Self::OutputOverrun,
        Self::WayDelayed,
        Self::WayBlackHoled,
        Self::WayRefused,
        Self::WayReset,
        Self::WayHalfClosed,
        Self::PostgresKilled,
        Self::PostgresFrozen,
        Self::SessionsEnded,
        Self::TenantBroken,
        Self::LogStalled,
        Self::ClientsReset,
        Self::ClientsDeaf,
        Self::ClientsAbsent,
        Self::ClientsLeave,
    ];

    /// Its line in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::GatewayKilled => "gateway SIGKILL, restart",
            Self::GatewayFrozen => "gateway SIGSTOP",
            Self::GatewaysRolled => "gateways SIGTERM, one by one",
            Self::SubscribersKilled => "CLIENT KILL TYPE pubsub",
            Self::ConnectionsKilled => "CLIENT KILL, all",
            Self::WritesPaused => "CLIENT PAUSE WRITE",
            Self::CommandsPaused => "CLIENT PAUSE ALL",
            Self::RedisAsleep => "DEBUG SLEEP",
            Self::RedisFrozen => "Redis SIGSTOP",
            Self::RedisEmptied => "Redis SIGKILL, restart empty",
            Self::RedisRestarted => "Redis SIGKILL, restart with its AOF",
            Self::Flushed => "FLUSHALL",
            Self::StateDeleted => "DEL state",
            Self::LogDeleted => "DEL log",
            Self::ScriptsForgotten => "SCRIPT FLUSH",
            Self::FailedOver => "failover to a lagging replica",
            Self::OutputOverrun => "pub/sub output buffer overrun",
            Self::WayDelayed => "way to Redis delayed",
            Self::WayBlackHoled => "way to Redis black-holed",
            Self::WayRefused => "way to Redis refused",
            Self::WayReset => "way to Redis reset",
            Self::WayHalfClosed => "way to Redis half-closed",
            Self::PostgresKilled => "PostgreSQL SIGKILL, restart",
            Self::PostgresFrozen => "PostgreSQL SIGSTOP",
            Self::SessionsEnded => "pg_terminate_backend, all",
            Self::TenantBroken => "a tenant's log and outbox rows broken",
            Self::LogStalled => "gateway's log not read",
            Self::ClientsReset => "clients reset",
            Self::ClientsDeaf => "clients stop reading",
            Self::ClientsAbsent => "clients go and come back",
            Self::ClientsLeave => "clients leave and join",
        }
    }

    /// Whether it takes something away that can't be had again, so that clients must be told.
    pub fn loses(self) -> bool {
        matches!(
            self,
            Self::RedisEmptied
                | Self::RedisRestarted
                | Self::Flushed
                | Self::StateDeleted
                | Self::LogDeleted
                | Self::TenantBroken
                | Self::FailedOver
        )
    }

    fn victims(self, target: usize) -> Vec<Victim> {
        match self {
            Self::GatewayKilled | Self::GatewayFrozen => vec![Victim::Gateway(target)],
            Self::GatewaysRolled => (0..GATEWAYS).map(Victim::Gateway).collect(),
            Self::WayDelayed | Self::WayBlackHoled | Self::WayRefused | Self::WayReset | Self::WayHalfClosed => {
                vec![Victim::Way(target)]
            }
            Self::TenantBroken => vec![Victim::Redis, Victim::Postgres],
            Self::LogStalled => vec![Victim::Log(target)],
            Self::OutputOverrun => vec![Victim::Redis, Victim::Way(target)],
            Self::PostgresKilled | Self::PostgresFrozen | Self::SessionsEnded => vec![Victim::Postgres],
            Self::ClientsReset | Self::ClientsDeaf | Self::ClientsAbsent | Self::ClientsLeave => {
                vec![Victim::Clients(target)]
            }
            _ => vec![Victim::Redis],
        }
    }

    /// The shortest and the longest that it lasts, in milliseconds.
    fn lasts(self) -> (u64, u64) {
        match self {
            // Done in a moment.
            Self::Flushed
            | Self::StateDeleted
            | Self::LogDeleted
            | Self::WayReset
            | Self::WayHalfClosed
            | Self::SessionsEnded
            | Self::ClientsReset => (0, 0),
            // Three times: a second to drain, and a start.
            Self::GatewaysRolled => (6000, 6000),
            // Done again and again.
            Self::SubscribersKilled | Self::ConnectionsKilled | Self::ScriptsForgotten => (300, 2000),
            Self::OutputOverrun => (1000, 2000),
            _ => (200, 5000),
        }
    }
}

/// One fault at one moment of its round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strike {
    pub at: Duration,
    pub lasts: Duration,
    pub fault: Fault,
    /// Which gateway, way, tenant or group of clients, where there are several.
    pub target: usize,
}

impl Strike {
    fn until(&self) -> Duration {
        self.at + self.lasts
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.at <= other.until() && other.at <= self.until()
    }

    /// Whether both can't happen at once.
    fn excludes(&self, other: &Self) -> bool {
        let theirs = other.fault.victims(other.target);
        self.fault.victims(self.target).iter().any(|victim| theirs.contains(victim))
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f32(), self.lasts.as_secs_f32());
        write!(f, "{at:7.3} s, for {lasts:.3} s: {} ({})", self.fault.name(), self.target)
    }
}

/// What happens between two quiet points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    pub number: usize,
    pub strikes: Vec<Strike>,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {}", self.number)?;
        self.strikes.iter().try_for_each(|strike| write!(f, "\n  {strike}"))
    }
}

/// The rounds of a seed, without end.
pub struct Schedule {
    random: Xoshiro256PlusPlus,
    number: usize,
    /// Faults whose turn is still to come: none comes again before all have been.
    bag: Vec<Fault>,
    /// The same for those that last.
    lasting: Vec<Fault>,
}

impl Schedule {
    pub fn of_seed(seed: u64) -> Self {
        // A generator that is the same on every machine and in every release.
        Self { random: Xoshiro256PlusPlus::seed_from_u64(seed), number: 0, bag: Vec::new(), lasting: Vec::new() }
    }

    fn draw(&mut self, at: Duration) -> Strike {
        let fault = draw(&mut self.bag, &Fault::ALL, &mut self.random);
        let (shortest, longest) = fault.lasts();
        let lasts = Duration::from_millis(self.random.random_range(shortest..=longest));
        Strike { at, lasts, fault, target: self.random.random_range(0..GATEWAYS as u32) as usize }
    }

    /// One fault after the other, each with the time to heal: what it costs by itself.
    fn one_by_one(&mut self) -> Vec<Strike> {
        let mut at = Duration::ZERO;
        let mut strikes = Vec::new();
        for _ in 0..3 {
            at += Duration::from_millis(self.random.random_range(300..=1000));
            let strike = self.draw(at);
            at = strike.until() + REST;
            strikes.push(strike);
        }
        strikes
    }

    /// Faults that meet.
    fn overlapping(&mut self) -> Vec<Strike> {
        let number = self.random.random_range(3..=6_u32);
        self.meeting(Vec::new(), number, 7000)
    }

    /// One fault that lasts as long as outages do in life, and others that meet it.
    fn lasting(&mut self) -> Vec<Strike> {
        let fault = draw(&mut self.lasting, &LASTING, &mut self.random);
        let lasts = Duration::from_millis(self.random.random_range(60_000..=70_000));
        let target = self.random.random_range(0..GATEWAYS as u32) as usize;
        let strike = Strike { at: Duration::from_millis(300), lasts, fault, target };
        let number = self.random.random_range(2..=4_u32);
        self.meeting(vec![strike], number, 60_000)
    }

    /// Adds so many faults that begin before `latest`, in milliseconds, unless they have to wait for others.
    fn meeting(&mut self, mut strikes: Vec<Strike>, number: u32, latest: u64) -> Vec<Strike> {
        for _ in 0..number {
            let at = Duration::from_millis(self.random.random_range(300..=latest));
            let mut strike = self.draw(at);
            loop {
                let meets = strikes.iter().filter(|other| other.overlaps(&strike));
                let (excluding, others): (Vec<&Strike>, Vec<&Strike>) =
                    meets.partition(|other| other.excludes(&strike));
                let blocking = if others.len() < AT_ONCE { excluding } else { others };
                let Some(end) = blocking.into_iter().map(Strike::until).min() else { break };
                strike.at = end + Duration::from_millis(self.random.random_range(100..=800));
            }
            strikes.push(strike);
        }
        strikes.sort_by_key(|strike| strike.at);
        strikes
    }
}

impl Iterator for Schedule {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        self.number += 1;
        let strikes = match self.number % 4 {
            0 => self.lasting(),
            2 => self.overlapping(),
            _ => self.one_by_one(),
        };
        Some(Round { number: self.number, strikes })
    }
}

/// The next fault out of the bag, which is filled again when it is empty.
fn draw(bag: &mut Vec<Fault>, all: &[Fault], random: &mut Xoshiro256PlusPlus) -> Fault {
    if bag.is_empty() {
        bag.extend(all);
        bag.shuffle(random);
    }
    bag.pop().expect("filled just now")
}

fn written(seed: u64, rounds: usize) -> String {
    Schedule::of_seed(seed).take(rounds).map(|round| format!("{round}\n")).collect()
}

const SEVEN: &str = "\
round 1
    0.338 s, for 2.435 s: way to Redis delayed (2)
    5.804 s, for 4.916 s: gateway SIGKILL, restart (0)
   13.600 s, for 1.025 s: clients go and come back (2)
round 2
    1.535 s, for 0.727 s: gateway's log not read (2)
    3.614 s, for 0.000 s: way to Redis half-closed (0)
    4.827 s, for 2.200 s: clients leave and join (2)
";

#[test]
fn the_same_seed_gives_the_same_schedule() {
    assert_eq!(written(7, 200), written(7, 200));
    assert_ne!(written(7, 2), written(8, 2));
    // And on every machine: what was seen once can be seen again.
    assert_eq!(written(7, 2), SEVEN);
}

#[test]
fn every_fault_has_its_turn() {
    let mut schedule = Schedule::of_seed(1);
    let mut faults: Vec<Fault> = Fault::ALL.map(|_| schedule.draw(Duration::ZERO).fault).to_vec();
    faults.sort_unstable();
    assert_eq!(faults, Fault::ALL);
    let strikes = Schedule::of_seed(1).flat_map(|round| round.strikes);
    let lasting = strikes.filter(|strike| strike.lasts >= Duration::from_secs(60)).map(|strike| strike.fault);
    let mut lasting: Vec<Fault> = lasting.take(LASTING.len()).collect();
    lasting.sort_unstable();
    assert_eq!(lasting, LASTING);
}

#[test]
fn no_victim_suffers_two_faults_at_once_and_never_all_do() {
    for round in Schedule::of_seed(3).take(2000) {
        for strike in &round.strikes {
            let meets: Vec<&Strike> =
                round.strikes.iter().filter(|other| *other != strike && other.overlaps(strike)).collect();
            assert!(!meets.iter().any(|other| other.excludes(strike)), "{round}");
            let at_once = meets.iter().filter(|other| other.at <= strike.at).count();
            assert!(at_once < AT_ONCE, "{round}");
            assert!(strike.until() < Duration::from_secs(if round.number % 4 == 0 { 150 } else { 60 }), "{round}");
        }
    }
}
