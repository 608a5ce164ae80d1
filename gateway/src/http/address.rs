//! A client's address: the connection's, or the one that a trusted load balancer names.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::header::FORWARDED;
use http::{Extensions, HeaderMap, HeaderName};

use crate::config::Proxies;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of a request's client; an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// The client of a request that came over a connection from `peer`. Each proxy appends the address of its own peer, so the list is
    /// read from its end, and only as far as the proxies are trusted: any client can invent what comes before.
    pub fn determine(proxies: &Proxies, peer: IpAddr, headers: &HeaderMap) -> Self {
        let mut client = peer.to_canonical();
        if proxies.trust(client) {
            for hop in hops(headers).into_iter().rev() {
                let Some(address) = hop else { break };
                client = address;
                if !proxies.trust(client) {
                    break;
                }
            }
        }
        Self(client)
    }

    /// Of the request with these extensions; the accept loop gives every request one.
    pub fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The addresses that the headers name, in their order; `None` for what is none. `X-Forwarded-For` where it is there, as our balancers
/// write it and remove the other; else `Forwarded` (RFC 7239).
fn hops(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let elements = |name| {
        let values = headers.get_all(name).into_iter().map(|value| value.to_str().unwrap_or_default());
        values.flat_map(|value| value.split(',')).map(str::trim)
    };
    if headers.contains_key(X_FORWARDED_FOR) {
        return elements(X_FORWARDED_FOR).map(address).collect();
    }
    let is_for = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim().trim_matches('"').to_owned())
    };
    elements(FORWARDED).map(|element| address(&element.split(';').find_map(is_for)?)).collect()
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;

    use super::*;

    fn client(peer: &str, lines: &[(&str, &str)]) -> String {
        let proxies: Proxies = "10.0.0.0/8, 192.0.2.7,fd00::/8".parse().unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        ClientAddress::determine(&proxies, peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn b71_a_strangers_word_about_its_address_is_not_taken() {
        assert_eq!(
            client("203.0.113.9", &[("x-forwarded-for", "1.1.1.1"), ("forwarded", "for=1.1.1.1")]),
            "203.0.113.9"
        );
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn b71_of_a_list_the_last_that_is_no_proxy_counts() {
        for (expected, lines) in [
            ("203.0.113.9", &[("x-forwarded-for", "203.0.113.9")][..]),
            ("203.0.113.9", &[("x-forwarded-for", "1.1.1.1, 203.0.113.9, 10.2.3.4")]),
            ("203.0.113.9", &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.9:4711")]),
            ("2001:db8::9", &[("x-forwarded-for", "[2001:db8::9]:4711, fd00::1")]),
            ("203.0.113.9", &[("x-forwarded-for", "::ffff:203.0.113.9")]),
            ("10.9.9.9", &[("x-forwarded-for", "10.9.9.9, 10.2.3.4")]),
            // The proxy that wrote nonsense is the last that is known.
            ("10.2.3.4", &[("x-forwarded-for", "1.1.1.1, nonsense, 10.2.3.4")]),
            ("203.0.113.9", &[("forwarded", "for=1.1.1.1, for=203.0.113.9;proto=https, For=\"10.2.3.4:80\"")]),
            ("2001:db8::9", &[("forwarded", "proto=https;for=\"[2001:db8::9]:4711\"")]),
            ("10.0.0.1", &[("forwarded", "for=_hidden")]),
            ("203.0.113.9", &[("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=1.1.1.1")]),
        ] {
            for peer in ["10.0.0.1", "192.0.2.7", "::ffff:10.0.0.1"] {
                let got = client(peer, lines);
                let expected = if expected == "10.0.0.1" { peer.trim_start_matches("::ffff:") } else { expected };
                assert_eq!(got, expected, "{lines:?}");
            }
        }
    }
}
