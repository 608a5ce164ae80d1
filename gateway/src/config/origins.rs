//! Which web origins may connect (RFC 6454): compared whole, never by prefix or suffix.

use std::collections::HashSet;
use std::str::FromStr;
use std::sync::Arc;

/// `*`, or a list of origins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origins(Option<Arc<HashSet<Origin>>>);

impl Origins {
    /// Whether a browser on a page of `origin` may connect.
    ///
    /// `*` is tolerable because a token is never ambient: no cookie is ever read.
    pub fn allows(&self, origin: &str) -> bool {
        match &self.0 {
            None => true,
            Some(allowed) => Origin::parse(origin).is_some_and(|origin| allowed.contains(&origin)),
        }
    }

    /// Whether it is `*`.
    pub fn are_all(&self) -> bool {
        self.0.is_none()
    }
}

impl FromStr for Origins {
    type Err = String;

    fn from_str(raw: &str) -> Result<Self, String> {
        if raw.trim() == "*" {
            return Ok(Self(None));
        }
        let parse = |one: &str| {
            Origin::parse(one.trim()).ok_or(
                "must be * or a comma-separated list of origins such as https://app.crechebooks.co.za, without a path",
            )
        };
        let allowed = raw.split(',').map(parse).collect::<Result<HashSet<_>, _>>()?;
        Ok(Self(Some(Arc::new(allowed))))
    }
}

/// Scheme, host and port, in the one spelling that browsers send.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Origin {
    scheme: String,
    host: String,
    /// None only where the scheme has no default port: an app's own, such as `capacitor`.
    port: Option<u16>,
}

impl Origin {
    /// Strict on purpose: a URL parser would repair tabs, backslashes and credentials into something that is allowed.
    fn parse(raw: &str) -> Option<Self> {
        let (scheme, authority) = raw.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let valid_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let host = host.to_ascii_lowercase();
        if !valid_scheme || !is_host(&host) {
            return None;
        }
        let port = match port {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().ok().filter(|port| *port > 0)?)
            }
            Some(_) => return None,
            None => match scheme.as_str() {
                "http" => Some(80),
                "https" => Some(443),
                _ => None,
            },
        };
        Some(Self { scheme, host, port })
    }
}

/// A name or an IPv4 address of dot-separated labels, none of them empty (so no trailing dot), or an IPv6 address.
fn is_host(host: &str) -> bool {
    if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return v6.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_listed_origin_is_allowed_in_every_spelling_of_the_same() {
        let origins: Origins =
            "https://app.example.com, http://localhost:5173,http://[::1]:3000,capacitor://localhost".parse().unwrap();
        for allowed in [
            "https://app.example.com",
            "https://APP.Example.com",
            "HTTPS://app.example.com",
            "https://app.example.com:443",
            "http://localhost:5173",
            "http://[::1]:3000",
            "capacitor://localhost",
        ] {
            assert!(origins.allows(allowed), "{allowed}");
        }
    }

    #[test]
    fn b26_nothing_else_is() {
        let origins: Origins = "https://app.example.com".parse().unwrap();
        for foreign in [
            "",
            "null",
            "*",
            "https://",
            "https://example.com",
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com:0443x",
            "https://app.example.com:",
            "https://app.example.com.",
            "https://app.example.com/",
            "https://app.example.com.evil.com",
            "https://evil-app.example.com",
            "https://evilapp.example.com",
            "https://app.example.com@evil.com",
            "https://evil.com/https://app.example.com",
            "https://evil.com#https://app.example.com",
            "https:\\\\app.example.com",
            "https:app.example.com",
            " https://app.example.com",
            "https://app.example.com\t",
            "https://app.example.com, https://app.example.com",
            "https://аpp.example.com",
            "app.example.com",
        ] {
            assert!(!origins.allows(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_star_allows_every_page() {
        let origins: Origins = "*".parse().unwrap();
        assert!(origins.allows("https://anything.example") && origins.allows("null"));
    }

    #[test]
    fn a_list_that_could_not_mean_what_it_says_is_refused() {
        for list in [
            "",
            " ",
            ",",
            "https://a.example,",
            "a.example",
            "https://a.example/path",
            "https://*.example.com",
            "null",
            "https://a.example,*",
        ] {
            assert!(list.parse::<Origins>().is_err(), "{list}");
        }
    }
}
