//! What the addresses of Redis and PostgreSQL have in common.

use std::net::IpAddr;

/// Whether a host is this machine, so that a connection to it passes no network.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The character that cuts a URL's password short, if one does. `/`, `?` and `#` end the part of a URL that has user, password and host;
/// an `@` that comes after them shows that they were meant as part of the password.
fn cuts_password(url: &str) -> Option<char> {
    let (_, rest) = url.split_once("://")?;
    let (authority, after) = rest.split_at(rest.find(['/', '?', '#'])?);
    let (before, _) = after.split_once('@')?;
    // An `@` in the value of a parameter is allowed.
    let is_of_a_parameter = before.split_once('?').is_some_and(|(_, query)| query.contains('='));
    (authority.contains(':') && !is_of_a_parameter).then(|| after.chars().next())?
}

/// What to write where a URL's password must be percent-encoded and isn't. The text repeats nothing else of the URL.
pub(crate) fn encoding_rule(url: &str) -> Option<String> {
    let character = cuts_password(url)?;
    Some(format!("the password has a {character} that ends it too early: write %{:02X} in its place", character as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_of_this_machine_are_known() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.10", "::1", "[::1]", "::ffff:127.0.0.1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "127.1", "localhost.example.com", "postgres", "10.0.0.1", "[fd00::1]", "0.0.0.0", "128.0.0.1"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_password_that_must_be_encoded_is_found() {
        for (url, found) in [
            ("postgres://u:p/w@h/d", Some('/')),
            ("postgres://u:12/34@h:5432/d", Some('/')),
            ("postgres://u:p?w@h/d", Some('?')),
            ("redis://:p#w@h", Some('#')),
            ("postgres://u:p@ss/w@h/d", Some('/')),
            ("postgres://u:p@h/d?application_name=a@b", None),
            ("postgres://h:5432/d?user=a@b", None),
            ("postgres://u:p%2Fw@h/d", None),
            ("postgres://u:p@ss@h/d", None),
            ("redis://h:6379/0", None),
            ("", None),
        ] {
            assert_eq!(cuts_password(url), found, "{url}");
        }
    }
}
