//! The address of Redis: one server, Sentinels, or a Cluster.

use fred::types::{
    RespVersion,
    config::{self, Config, ServerConfig},
};
use url::Url;

use crate::{
    address::{encoding_rule, is_loopback},
    error::ConnectError,
    resp::Target,
};

use super::Server;

/// An address of Redis, checked.
#[derive(Clone)]
pub struct RedisUrl {
    /// How to talk to the servers that hold tenants; the server named in it is not used.
    pub(super) config: Config,
    pub(super) place: Place,
}

#[derive(Clone)]
pub(super) enum Place {
    One(Server),
    /// `ask` is how to talk to the Sentinels themselves.
    Sentinels {
        seeds: Vec<Server>,
        service: String,
        ask: Box<Config>,
    },
    Cluster {
        seeds: Vec<Server>,
    },
}

impl RedisUrl {
    /// Reads `redis://[[user]:password@]host[:port][/database]`, `redis-sentinel://…?sentinelServiceName=name`,
    /// `redis-cluster://…`, the latter two with `node=host:port` in the query for each further Sentinel or node. With
    /// `rediss` in place of `redis` connections use TLS.
    ///
    /// # Errors
    /// When it can't be used; the text names the rule, and never repeats the URL, for a password may be in it.
    pub fn parse(url: &str) -> Result<Self, ConnectError> {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        let rule = match scheme {
            "redis" | "rediss" | "redis-sentinel" | "rediss-sentinel" | "redis-cluster" | "rediss-cluster" => {
                rule(scheme)
            }
            _ => return Err(ConnectError::Url(rule("redis").to_owned())),
        };
        if let Some(rule) = encoding_rule(url) {
            return Err(ConnectError::Url(rule));
        }
        let unusable = || ConnectError::Url(rule.to_owned());
        if !is_well_formed(url) {
            return Err(unusable());
        }
        // The library panics without a default provider; that it is set already is fine.
        let _ = fred::rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut config = Config::from_url(url).map_err(|_| unusable())?;
        config.version = RespVersion::RESP3;
        let place = match &config.server {
            ServerConfig::Centralized { server } => Place::One(server_of(server)),
            ServerConfig::Clustered { hosts, .. } => Place::Cluster { seeds: hosts.iter().map(server_of).collect() },
            ServerConfig::Sentinel { hosts, service_name, username, password } => {
                let (username, password) = (username.clone(), password.clone());
                let ask = Config { username, password, database: None, ..config.clone() };
                let seeds = hosts.iter().map(server_of).collect();
                Place::Sentinels { seeds, service: service_name.clone(), ask: Box::new(ask) }
            }
        };
        Ok(Self { config, place })
    }

    /// Whether channels are sharded: a tenant's events are then published on its own node only.
    pub fn is_cluster(&self) -> bool {
        matches!(self.place, Place::Cluster { .. })
    }

    /// Whether connections use TLS.
    pub fn uses_tls(&self) -> bool {
        self.config.tls.is_some()
    }

    /// What is unsafe about the way there, and what to write instead: a password that goes to another machine in clear text.
    pub fn weakness(&self) -> Option<String> {
        let to_sentinels = match &self.place {
            Place::Sentinels { ask, .. } => ask.password.is_some(),
            Place::One(_) | Place::Cluster { .. } => false,
        };
        let has_password = self.config.password.is_some() || to_sentinels;
        let is_elsewhere = |server: &&Server| !is_loopback(&server.host);
        let server = self.seeds().iter().find(is_elsewhere).filter(|_| has_password && !self.uses_tls())?;
        Some(format!(
            "the network between reads what is sent to {server}, the password too, for it goes in clear text; write rediss in place of \
             redis"
        ))
    }

    /// How to reach one of the servers that hold tenants.
    pub fn target(&self, server: &Server) -> Target {
        Target { server: server.clone(), config: self.config.clone() }
    }

    /// How to reach a server that knows the layout.
    pub(super) fn target_to_ask(&self, server: &Server) -> Target {
        match &self.place {
            Place::Sentinels { ask, .. } => Target { server: server.clone(), config: (**ask).clone() },
            Place::One(_) | Place::Cluster { .. } => self.target(server),
        }
    }

    /// The servers that the URL names.
    pub fn seeds(&self) -> &[Server] {
        match &self.place {
            Place::One(server) => std::slice::from_ref(server),
            Place::Sentinels { seeds, .. } | Place::Cluster { seeds } => seeds,
        }
    }
}

/// What the library lets pass: it ignores a query that it doesn't know, and takes port 0 for one.
fn is_well_formed(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let (sentinels, cluster) = (url.scheme().ends_with("-sentinel"), url.scheme().ends_with("-cluster"));
    let is_place = |host: Option<&str>, port| host.is_some_and(|host| !host.is_empty()) && port != Some(0);
    let is_node = |node: &str| {
        let parts = node.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        parts.is_some_and(|(host, port)| is_place(Some(host), Some(port)))
    };
    let database = url.path().trim_start_matches('/');
    is_place(url.host_str(), url.port())
        && url.fragment().is_none()
        && (database.is_empty() || !cluster && database.parse::<u8>().is_ok())
        && url.query_pairs().all(|(name, value)| match &*name {
            "node" => (sentinels || cluster) && is_node(&value),
            "sentinelServiceName" | "sentinelUsername" | "sentinelPassword" => sentinels && !value.is_empty(),
            _ => false,
        })
}

fn rule(scheme: &str) -> &'static str {
    match scheme {
        "redis-sentinel" | "rediss-sentinel" => {
            "must be redis-sentinel://[user:password@]host:port[/database]?sentinelServiceName=name[&node=host:port…], or \
             rediss-sentinel:// for TLS"
        }
        "redis-cluster" | "rediss-cluster" => {
            "must be redis-cluster://[user:password@]host:port[?node=host:port…], or rediss-cluster:// for TLS"
        }
        _ => {
            "must be an address such as redis://[user:password@]host[:port][/database], or rediss:// for TLS; \
             redis-sentinel:// and redis-cluster:// lead to more than one server"
        }
    }
}

fn server_of(server: &config::Server) -> Server {
    Server::new(&server.host, server.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_one_of_three_kinds() {
        for (url, seeds, cluster) in [
            ("redis://localhost", 1, false),
            ("rediss://user:p%40ss@redis.example:6380/3", 1, false),
            ("redis-cluster://:hunter2@a:7001?node=b:7002&node=c:7003", 3, true),
            ("redis-sentinel://a:26379/1?sentinelServiceName=books&node=b:26379", 2, false),
        ] {
            let parsed = RedisUrl::parse(url).expect(url);
            assert_eq!((parsed.seeds().len(), parsed.is_cluster()), (seeds, cluster), "{url}");
        }
    }

    #[test]
    fn b68_a_password_that_goes_to_another_machine_in_clear_text_is_named() {
        for (url, weak) in [
            ("redis://:hunter2@redis.example:6379", true),
            ("redis://user:hunter2@10.0.0.1", true),
            ("redis-cluster://:hunter2@127.0.0.1:1?node=b:2", true),
            ("redis-sentinel://:hunter2@a:26379?sentinelServiceName=s", true),
            ("redis-sentinel://a:26379?sentinelServiceName=s&sentinelPassword=hunter2", true),
            ("rediss://:hunter2@redis.example:6379", false),
            ("rediss-cluster://:hunter2@a:1", false),
            ("rediss-sentinel://:hunter2@a:26379?sentinelServiceName=s", false),
            ("redis://redis.example:6379", false),
            ("redis://:hunter2@localhost", false),
            ("redis://:hunter2@[::1]:6379", false),
        ] {
            let weakness = RedisUrl::parse(url).expect(url).weakness();
            assert_eq!(weakness.is_some(), weak, "{url}: {weakness:?}");
            assert!(weakness.is_none_or(|said| said.contains("write rediss") && !said.contains("hunter2")), "{url}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_is_said_without_it() {
        for url in [
            "",
            "http://hunter2",
            "redis+unix:///hunter2",
            "redis-sentinel://:hunter2@a:26379",
            "redis://",
            "redis-cluster://a:1/3",
            "redis-cluster://a:1?node=b",
            "redis-cluster://a:1?hunter2=b:2",
            "redis://a?node=b:2",
            "redis-sentinel://a:0?sentinelServiceName=s",
        ] {
            let error = RedisUrl::parse(url).err().expect(url).to_string();
            assert!(error.contains("must be") && !error.contains("hunter2"), "{url}: {error}");
        }
    }
}
