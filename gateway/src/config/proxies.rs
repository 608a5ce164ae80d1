//! Load balancers that are trusted to name a client's address.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// The networks of the trusted load balancers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

impl Proxies {
    /// Whether this is the address of a trusted load balancer.
    pub fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl FromStr for Proxies {
    type Err = String;

    fn from_str(raw: &str) -> Result<Self, String> {
        let network = |one: &str| {
            let one = one.trim();
            one.parse::<IpNet>().or_else(|_| one.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
                "must be a comma-separated list of addresses and networks such as 10.0.0.7, 10.1.0.0/16".to_owned()
            })
        };
        raw.split(',').map(network).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b71_a_list_of_proxies_that_cannot_be_read_is_refused() {
        for list in ["", " ", "10.0.0.0/33", "10.0.0.1,", "example.com", "10.0.0.1 10.0.0.2"] {
            assert!(list.parse::<Proxies>().is_err(), "{list}");
        }
    }
}
