//! Finds variables that are ours but for a typo: `JWT_SECERT` must not mean "no secret".

use std::ffi::OsString;

use strsim::damerau_levenshtein;

use super::error::ConfigError;

/// Shorter names (`LOG`) look like too many variables of other programs.
const SHORTEST: usize = 6;

/// Refuses the first variable of the environment that looks like one of `ours` and is none.
pub(super) fn refuse(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    ours: &[String],
) -> Result<(), ConfigError> {
    for (name, _) in environment {
        let Some(name) = name.to_str().filter(|name| !ours.iter().any(|our| our == name)) else {
            continue;
        };
        if let Some(meant) = ours.iter().find(|our| is_near(name, our)) {
            // Without its value, which may well be the secret.
            return Err(ConfigError::new(name, format!("no such variable; was {meant} meant?")));
        }
    }
    Ok(())
}

/// Refuses a variable that is `ours` under a name of other programs, and is not empty.
pub(super) fn refuse_other_names(
    ours: &str,
    others: &[&str],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(), ConfigError> {
    let given = environment.into_iter().filter(|(_, value)| !value.is_empty());
    for (name, _) in given {
        if let Some(other) = others.iter().find(|other| name.to_str() == Some(**other)) {
            return Err(ConfigError::new(other, format!("no such variable, and {ours} is not given; write {ours}")));
        }
    }
    Ok(())
}

/// One slip anywhere, or two when no word of the name is a different word altogether: REDIS_TTL and DATABASE_SSL are
/// other programs' variables, though only two letters away from REDIS_URL and DATABASE_URL.
fn is_near(name: &str, our: &str) -> bool {
    if our.len() < SHORTEST || name.len().abs_diff(our.len()) > 2 {
        return false;
    }
    let name = name.to_uppercase();
    match damerau_levenshtein(&name, our) {
        0 | 1 => true,
        2 => {
            name.split('_').count() == our.split('_').count()
                && name
                    .split('_')
                    .zip(our.split('_'))
                    .all(|(word, ours)| damerau_levenshtein(word, ours) <= ours.len() / 3)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const OURS: [&str; 9] = [
        "LISTEN",
        "LOG",
        "LOG_FORMAT",
        "REDIS_URL",
        "DATABASE_URL",
        "JWT_SECRET",
        "JWT_JWKS",
        "MAX_CONNECTIONS",
        "REALTIME_DASHBOARD",
    ];

    fn verdict(name: &str) -> Result<(), ConfigError> {
        refuse([(name.into(), "hunter2".into())], &OURS.map(str::to_owned))
    }

    #[test]
    fn a_typo_stops_the_start_and_names_what_was_meant() {
        for (typo, meant) in [
            ("JWT_SECERT", "JWT_SECRET"),
            ("JWT_SECRETS", "JWT_SECRET"),
            ("JWTSECRET", "JWT_SECRET"),
            ("jwt_secret", "JWT_SECRET"),
            ("REDIS_URI", "REDIS_URL"),
            ("LISTE", "LISTEN"),
            ("LOGFORMAT", "LOG_FORMAT"),
            ("MAX_CONECTION", "MAX_CONNECTIONS"),
            ("REALTME_DASHBORD", "REALTIME_DASHBOARD"),
        ] {
            let line = verdict(typo).unwrap_err().to_string();
            assert_eq!(line, format!("{typo}: no such variable; was {meant} meant?"));
        }
    }

    #[test]
    fn other_programs_names_are_refused_where_ours_is_missing() {
        let refused =
            |name: &str, value: &str| refuse_other_names("DATABASE_URL", &["DB_URL"], [(name.into(), value.into())]);
        let line = refused("DB_URL", "hunter2").unwrap_err().to_string();
        assert_eq!(line, "DB_URL: no such variable, and DATABASE_URL is not given; write DATABASE_URL");
        assert_eq!(refused("DB_URL", ""), Ok(()));
        assert_eq!(refused("DB_URLS", "x"), Ok(()));
    }

    #[test]
    fn innocent_variables_do_not() {
        for innocent in [
            "PATH",
            "HOME",
            "LOGNAME",
            "LOG",
            "LANG",
            "TERM",
            "HOSTNAME",
            "LISTEN_FDS",
            "LISTEN_PID",
            "LISTEN_FDNAMES",
            "REDIS_TTL",
            "REDIS_HOST",
            "REDIS_PORT",
            "REDIS_DB",
            "DATABASE_SSL",
            "DATABASE_USER",
            "DATABASE_HOST",
            "JWT_EXPIRY",
            "JWT_SECRET",
            "LESSOPEN",
            "INVOCATION_ID",
            "KUBERNETES_SERVICE_HOST",
            "REDIS_SERVICE_PORT",
            "RUST_LOG",
            "LS_COLORS",
        ] {
            assert_eq!(verdict(innocent), Ok(()), "{innocent}");
        }
    }
}
