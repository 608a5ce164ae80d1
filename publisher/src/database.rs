//! The address of PostgreSQL, and how safe the connection is. The gateway and the load test read `DATABASE_URL` here.

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::address::{encoding_rule, is_loopback};

/// The address can't be used. The text names the rule, and never repeats the address, which may have a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidDatabaseUrl(String);

/// Reads `postgres://user:password@host[:port]/database[?sslmode=…]`.
///
/// Without `sslmode` a connection that leaves this machine must be encrypted, to a server whose certificate is valid for the host's name.
/// The client library's default would fall back to clear text, and accept any certificate.
///
/// # Errors
/// [`InvalidDatabaseUrl`] says the rule.
pub fn options(url: &str) -> Result<PgConnectOptions, InvalidDatabaseUrl> {
    if let Some(rule) = encoding_rule(url) {
        return Err(InvalidDatabaseUrl(rule));
    }
    let unusable =
        || InvalidDatabaseUrl("must be an address such as postgres://user:password@host:5432/database".to_owned());
    let parsed = Url::parse(url).map_err(|_| unusable())?;
    let names_a_host = parsed.host_str().is_some_and(|host| !host.is_empty())
        || parsed.query_pairs().any(|(name, value)| matches!(&*name, "host" | "hostaddr") && !value.is_empty());
    if !matches!(parsed.scheme(), "postgres" | "postgresql") || !names_a_host || parsed.port() == Some(0) {
        return Err(unusable());
    }
    let modes: Vec<_> = parsed
        .query_pairs()
        .filter(|(name, _)| matches!(&**name, "sslmode" | "ssl-mode"))
        .map(|(_, mode)| mode)
        .collect();
    if modes.iter().any(|mode| mode.parse::<PgSslMode>().is_err()) {
        let rule = "sslmode must be verify-full, verify-ca, require, prefer or disable";
        return Err(InvalidDatabaseUrl(rule.to_owned()));
    }
    // The library's own error could repeat the address.
    let mut options: PgConnectOptions = url.parse().map_err(|_| unusable())?;
    if let Some(bare) = options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        // A certificate never has an address in brackets.
        options = options.clone().host(bare);
    }
    if modes.is_empty() && !stays_here(&options) {
        options = options.ssl_mode(PgSslMode::VerifyFull);
    }
    Ok(options)
}

/// What is unsafe about the connection to this database, and what to write instead. `None` for a connection that stays on this machine,
/// or that only the server of this name can accept.
pub fn weakness(options: &PgConnectOptions) -> Option<String> {
    if stays_here(options) {
        return None;
    }
    let (mode, lets) = match options.get_ssl_mode() {
        PgSslMode::VerifyFull => return None,
        PgSslMode::VerifyCa => ("verify-ca", "any server with a certificate of the same authority"),
        PgSslMode::Require => ("require", "any server, since no certificate is checked,"),
        PgSslMode::Prefer => ("prefer", "any server, and the network between in clear text,"),
        // The library treats it like `disable`.
        PgSslMode::Allow => ("allow", "any server, and the network between in clear text,"),
        PgSslMode::Disable => ("disable", "any server, and the network between in clear text,"),
    };
    let host = options.get_host();
    Some(format!("sslmode={mode} lets {lets} read what is sent to {host}, the password too; write sslmode=verify-full"))
}

fn stays_here(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some() || is_loopback(options.get_host())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> PgSslMode {
        options(url).expect(url).get_ssl_mode()
    }

    #[test]
    fn b68_another_host_means_verify_full_unless_a_mode_is_written_down() {
        for url in [
            "postgres://gateway:secret@postgres.example.com/crechebooks",
            "postgresql://postgres/db",
            "postgres://10.0.0.7:5432/db",
            "postgres://[fd00::7]/db",
            "postgres:///db?host=postgres.example.com",
            "postgres://localhost/db?host=postgres.example.com",
            "postgres://localhost/db?hostaddr=10.0.0.7",
            "postgres://h/db?sslmode=verify-full",
            "postgres://h/db?application_name=sslmode",
        ] {
            assert!(matches!(mode(url), PgSslMode::VerifyFull), "{url}");
            assert_eq!(weakness(&options(url).expect(url)), None, "{url}");
        }
        for (url, weak) in [
            ("postgres://localhost/db", false),
            ("postgres://127.0.0.1/db", false),
            ("postgres://[::1]/db", false),
            ("postgres://%2Frun%2Fpostgresql/db", false),
            ("postgres:///db?host=/run/postgresql", false),
            ("postgres://localhost/db?sslmode=disable", false),
            ("postgres://h/db?sslmode=verify-ca", true),
            ("postgres://h/db?sslmode=require", true),
            ("postgres://h/db?sslmode=prefer", true),
            ("postgres://h/db?sslmode=PREFER", true),
            ("postgres://h/db?ssl-mode=allow", true),
            ("postgres://h/db?sslmode=verify-full&sslmode=disable", true),
        ] {
            assert!(!matches!(mode(url), PgSslMode::VerifyFull), "{url}");
            assert_eq!(weakness(&options(url).expect(url)).is_some(), weak, "{url}");
        }
    }

    #[test]
    fn b68_an_error_about_an_address_does_not_repeat_it() {
        for (url, said) in [
            ("", "postgres://user:password@host"),
            ("mysql://u:hunter2@h/d", "postgres://user:password@host"),
            ("postgres:///d", "postgres://user:password@host"),
            ("postgres://u:hunter2@h:0/d", "postgres://user:password@host"),
            ("postgres://u:hunter2@h/d?port=hunter2", "postgres://user:password@host"),
            ("postgres://u:hunter2@h/d?sslmode=hunter2", "sslmode must be verify-full"),
            ("postgres://u:hunter2/hunter2@h/d", "write %2F"),
            ("postgres://u:hunter2#@h/d", "write %23"),
        ] {
            let error = options(url).expect_err(url).to_string();
            assert!(error.contains(said) && !error.contains("hunter2"), "{url}: {error}");
        }
    }
}
