//! B60: bad configuration stops the start with one line. Given as flags, which share all but the first step with
//! variables.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::cli::{command_line, parse as read};
use super::*;

const SECRET: &str = "--jwt-secret=0123456789abcdef0123456789abcdef";

/// Parses as `gateway ARGS` would in an empty environment.
fn parse(args: &[&str]) -> Result<(Command, Settings), ConfigError> {
    let bare = command_line().mut_args(|arg| arg.env(None::<&'static str>));
    let (cli, matches) = read(bare, std::iter::once("gateway").chain(args.iter().copied()))?;
    Settings::check(cli.command.unwrap_or(Command::Serve), cli.variables, &matches)
}

fn refused(args: &[&str]) -> String {
    let line = parse(args).err().unwrap().to_string();
    assert!(!line.contains('\n') && !line.is_empty(), "{line:?} is not one line");
    line
}

#[test]
fn the_definition_is_sound_and_every_variable_is_a_flag_of_the_same_letters() {
    command_line().debug_assert();
    for arg in command_line().get_arguments().filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version")) {
        let variable = arg.get_env().unwrap().to_str().unwrap();
        assert_eq!(arg.get_long().unwrap().to_uppercase().replace('-', "_"), variable);
        assert!(arg.get_help().is_some(), "{variable} has no help");
        assert!(arg.is_global_set());
    }
}

#[test]
fn defaults_are_those_of_the_contract() {
    let (command, settings) = parse(&[SECRET]).unwrap();
    assert_eq!(command, Command::Serve);
    assert_eq!(settings.listen, "0.0.0.0:8080".parse().unwrap());
    assert_eq!(settings.internal_listen, "127.0.0.1:9090".parse().unwrap());
    assert_eq!(
        (
            settings.limits.max_connections,
            settings.limits.max_connections_per_tenant(),
            settings.limits.events_per_second
        ),
        (1000, 250, 10)
    );
    assert_eq!(
        (settings.limits.heartbeat, settings.limits.join_timeout),
        (Duration::from_secs(30), Duration::from_secs(10))
    );
    assert_eq!((settings.limits.max_message_bytes, settings.limits.send_queue_events), (16_384, 256));
    assert_eq!((settings.limits.recovery_events, settings.limits.recovery), (512, Duration::from_secs(300)));
    assert_eq!(
        (settings.limits.unsubscribe_linger, settings.limits.drain),
        (Duration::from_secs(5), Duration::from_secs(30))
    );
    assert_eq!(
        (settings.jwt.claims.tenant_claim.as_str(), settings.redis_prefix.as_str(), settings.log.filter.as_str()),
        ("tenantId", "dash", "info")
    );
    assert!(settings.realtime && settings.origins.allows("https://any.example"));
    assert_eq!(settings.log.format, LogFormat::Text);
}

#[test]
fn flags_are_good_before_and_after_the_subcommand() {
    for args in [
        ["--max-connections=7", SECRET, "serve"],
        ["serve", "--max-connections=7", SECRET],
        [SECRET, "check", "--max-connections=7"],
    ] {
        assert_eq!(parse(&args).unwrap().1.limits.max_connections, 7, "{args:?}");
    }
    let (command, _) = parse(&["token", "--tenant=t1", "--tenant", "t2", "--ttl=60", SECRET]).unwrap();
    let options = TokenOptions {
        tenants: vec!["t1".parse().unwrap(), "t2".parse().unwrap()],
        sub: None,
        ttl: Duration::from_secs(60),
        explain: None,
    };
    assert_eq!(command, Command::Token(options));
}

#[test]
fn b60_one_line_names_the_variable_the_value_and_the_rule() {
    for (flag, line) in [
        ("--max-connections=0", "MAX_CONNECTIONS=0: must be a whole number from 1 to 10000000"),
        ("--max-connections=-1", "MAX_CONNECTIONS=-1: must be a whole number from 1 to 10000000"),
        ("--max-connections=1e3", "MAX_CONNECTIONS=1e3: must be a whole number from 1 to 10000000"),
        ("--max-connections=1000000000", "MAX_CONNECTIONS=1000000000: must be a whole number from 1 to 10000000"),
        ("--max-connections=", "MAX_CONNECTIONS: must be a whole number from 1 to 10000000"),
        ("--max-connections-per-tenant=0", "MAX_CONNECTIONS_PER_TENANT=0: must be a whole number from 1 to 10000000"),
        ("--heartbeat-seconds=0", "HEARTBEAT_SECONDS=0: must be a whole number from 1 to 3600"),
        ("--join-timeout-seconds=0", "JOIN_TIMEOUT_SECONDS=0: must be a whole number from 1 to 600"),
        ("--recovery-seconds=0", "RECOVERY_SECONDS=0: must be a whole number from 1 to 86400"),
        ("--recovery-events=0", "RECOVERY_EVENTS=0: must be a whole number from 1 to 100000"),
        ("--events-per-second=0", "EVENTS_PER_SECOND=0: must be a whole number from 1 to 1000"),
        ("--send-queue-events=0", "SEND_QUEUE_EVENTS=0: must be a whole number from 1 to 65536"),
        ("--max-message-bytes=1023", "MAX_MESSAGE_BYTES=1023: must be a whole number from 1024 to 1048576"),
        (
            "--drain-seconds=18446744073709551615",
            "DRAIN_SECONDS=18446744073709551615: must be a whole number from 0 to 3600",
        ),
        ("--listen=8080", "LISTEN=8080: must be an IP address and a port, such as 0.0.0.0:8080 or [::]:8080"),
        ("--listen=", "LISTEN: must be an IP address and a port, such as 0.0.0.0:8080 or [::]:8080"),
        ("--internal-listen=0.0.0.0:8080", "INTERNAL_LISTEN=0.0.0.0:8080: needs a port of its own, 8080 is LISTEN's"),
        ("--redis-prefix={x}", "REDIS_PREFIX={x}: must be 1 to 32 of A-Z a-z 0-9 _ : -"),
        ("--realtime-dashboard=maybe", "REALTIME_DASHBOARD=maybe: must be true or false"),
        ("--log-format=yaml", "LOG_FORMAT=yaml: must be text or json"),
        ("--jwt-issuer=", "JWT_ISSUER: must not be empty; leave it out for the default"),
        ("--jwt-tenant-claim=", "JWT_TENANT_CLAIM: must not be empty; leave it out for the default"),
        ("--publish-api-key=", "PUBLISH_API_KEY: must not be empty; leave it out for the default"),
        ("--jwt-secret-file=", "JWT_SECRET_FILE: must not be empty; leave it out for the default"),
    ] {
        assert_eq!(refused(&[SECRET, flag]), line);
    }
    assert!(refused(&[SECRET, "--log=loud=very"]).starts_with("LOG=loud=very: must be a level"));
    assert!(
        refused(&[SECRET, "--allowed-origins=example.com"]).starts_with("ALLOWED_ORIGINS=example.com: must be * or")
    );
    assert!(refused(&[SECRET, "--log-format=a\nb\u{1b}[31m"]).starts_with("LOG_FORMAT=a\u{fffd}b\u{fffd}[31m: "));
}

#[test]
fn zero_is_a_time_where_waiting_may_be_left_out() {
    let (_, settings) = parse(&[SECRET, "--drain-seconds=0", "--unsubscribe-linger-seconds=0"]).unwrap();
    assert_eq!((settings.limits.drain, settings.limits.unsubscribe_linger), (Duration::ZERO, Duration::ZERO));
}

#[test]
fn switches_have_six_spellings() {
    for (spelling, on) in [("true", true), ("1", true), ("on", true), ("false", false), ("0", false), ("OFF", false)] {
        let (_, settings) = parse(&[SECRET, &format!("--realtime-dashboard={spelling}")]).unwrap();
        assert_eq!(settings.realtime, on, "{spelling}");
    }
}

#[test]
fn b60_unknown_flags_and_subcommands_are_one_line_too() {
    assert!(refused(&[SECRET, "--max-conections=5"]).starts_with("unexpected argument '--max-conections' found"));
    assert!(refused(&["sevre", SECRET]).starts_with("unrecognized subcommand 'sevre'"));
    assert!(refused(&["token", SECRET]).contains("--tenant <ID>"));
    assert!(refused(&["--max-connections"]).contains("MAX_CONNECTIONS"));
}

#[test]
fn b60_redis_addresses() {
    for good in [
        "redis://localhost",
        "redis://localhost:6379/3",
        "rediss://user:p%40ss@redis.example:6380",
        "redis://:pass@[::1]:6379",
        "redis-sentinel://h:26379/1?sentinelServiceName=books&node=i:26379",
        "rediss-cluster://user:pass@h:7000?node=i:7001&node=j:7002",
    ] {
        assert!(parse(&[SECRET, "--redis-url", good]).is_ok(), "{good}");
    }
    for bad in [
        "localhost:6379",
        "http://hunter2@localhost",
        "redis://",
        "redis:///0",
        "redis://hunter2@",
        "redis://h:99999",
        "redis://h:0",
        "redis://h/hunter2",
        "redis://h/0?hunter2=1",
        "redis-sentinel://hunter2@h:26379",
        "redis-cluster://h:7000/1",
        "redis-cluster://h:7000?node=hunter2",
        "redis+unix:///hunter2",
        "",
    ] {
        let line = refused(&[SECRET, "--redis-url", bad]);
        assert!(line.starts_with("REDIS_URL: must") && !line.contains("hunter2"), "{bad}: {line}");
    }
    assert!(
        refused(&[SECRET, "--database-url=mysql://hunter2@h/db"])
            .starts_with("DATABASE_URL: must be an address such as postgres://")
    );
}

#[test]
fn b60_one_source_of_keys_and_no_less() {
    assert_eq!(
        refused(&[]),
        "JWT_SECRET: give this, JWT_PUBLIC_KEY_FILE or JWT_JWKS: without a key no token can be checked"
    );
    assert_eq!(
        refused(&[SECRET, "--jwt-jwks=keys.json"]),
        "JWT_JWKS: JWT_SECRET is given too; tokens are checked with one source of keys"
    );
    assert_eq!(
        refused(&["--jwt-secret=0123456789abcdef0123456789abcde"]),
        "JWT_SECRET: must be at least 32 bytes, has 31"
    );
    assert!(parse(&["demo"]).is_ok(), "the demo makes its own");
}

#[test]
fn b60_secrets_in_files() {
    let dir = std::env::temp_dir().join(format!("gateway-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        format!("--jwt-secret-file={}", path.display())
    };
    let good = file("good", b"0123456789abcdef0123456789abcde \r\n");
    let (_, settings) = parse(&[&good]).unwrap();
    let Some(KeySource::Secret(secret)) = settings.jwt.keys else { panic!("the file's secret") };
    assert_eq!(secret.expose(), "0123456789abcdef0123456789abcde ");

    assert_eq!(refused(&[SECRET, &good]), "JWT_SECRET: give this or JWT_SECRET_FILE, not both");
    for (flag, rule) in [
        (file("empty", b"\n"), "its content must not be empty"),
        (file("binary", b"\xff\xfe"), "cannot be read"),
        (file("long", &[b'x'; 70_000]), "is longer than 65536 bytes"),
        ("--jwt-secret-file=/nowhere/at/all".to_owned(), "cannot be read: No such file"),
    ] {
        let line = refused(&[&flag]);
        assert!(line.starts_with("JWT_SECRET_FILE=/") && line.contains(rule), "{line}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn b67_keys_are_long_no_placeholder_and_one_a_line() {
    let keys = |keys: &str| format!("--publish-api-key={keys}");
    let (old, new) = ("o".repeat(32), "n".repeat(32));
    for (given, rule) in [
        ("x".to_owned(), "must be at least 32 bytes, has 1"),
        ("x".repeat(31), "must be at least 32 bytes, has 31"),
        (format!("{new}\n{}", "x".repeat(31)), "key 2 must be at least 32 bytes, has 31"),
        ("change-me".to_owned(), "is the placeholder of an example"),
        ("Change_Me-change_me-change_me-change_me".to_owned(), "is the placeholder of an example"),
        (format!("{new}\n<your-key-of-at-least-32-bytes-here>"), "key 2 is the placeholder of an example"),
        ("${PUBLISH_API_KEY_OF_THE_ENVIRONMENT}".to_owned(), "is the placeholder of an example"),
        ("\n\n".to_owned(), "holds no key"),
    ] {
        let line = refused(&[SECRET, &keys(&given)]);
        assert!(line.starts_with("PUBLISH_API_KEY: ") && line.contains(rule), "{line}");
        assert!(!line.contains(&given), "{line}");
    }
    let (_, settings) = parse(&[SECRET, &keys(&format!("{new}\r\n\n{old}\n"))]).unwrap();
    let which = |guess: &str| settings.api_keys.as_ref().unwrap().which(guess.as_bytes());
    assert_eq!((which(&new), which(&old)), (Some(1), Some(2)));
    for wrong in ["", &new[1..], &format!("{new}n"), &format!("{new}\n{old}"), &"x".repeat(32)] {
        assert_eq!(which(wrong), None, "{wrong:?}");
    }
    let short = format!("--jwt-secret={new}\nshort");
    assert_eq!(refused(&[&short]), "JWT_SECRET: key 2 must be at least 32 bytes, has 5");
}

#[test]
fn secrets_are_never_printed() {
    let arguments = [
        "gateway",
        "--jwt-secret=hunter2-hunter2-hunter2-hunter2-hunter2",
        "--redis-url=redis://:hunter2@h",
        "--publish-api-key=hunter2-hunter2-hunter2-hunter2-",
    ];
    let (cli, _) = read(command_line(), arguments).unwrap();
    let (_, settings) = parse(&arguments[1..]).unwrap();
    let Some(KeySource::Secret(secret)) = &settings.jwt.keys else { panic!("the flag's secret") };
    assert!(!format!("{cli:?} {:?} {secret} {:?}", settings.jwt, settings.redis).contains("hunter2"));
    for arg in command_line()
        .get_arguments()
        .filter(|arg| matches!(arg.get_id().as_str(), "secret" | "redis_url" | "database_url" | "publish_api_key"))
    {
        assert!(arg.is_hide_env_values_set(), "--help would show {:?}", arg.get_long());
    }
}

#[test]
fn b74_the_demo_listens_on_loopback_unless_told() {
    let (_, demo) = parse(&["demo"]).unwrap();
    assert_eq!(demo.listen.to_string(), "127.0.0.1:8080");
    for arguments in [&["demo", "--listen=0.0.0.0:8081"], &["--listen=0.0.0.0:8081", "demo"]] {
        let (_, told) = parse(arguments).unwrap();
        assert_eq!(told.listen.to_string(), "0.0.0.0:8081");
    }
    let (_, serve) = parse(&[SECRET]).unwrap();
    assert_eq!(serve.listen.to_string(), "0.0.0.0:8080");
}

#[test]
fn b73_a_flag_is_a_secret_when_it_holds_one() {
    let named = |arguments: &[&str]| {
        let (_, settings) = parse(arguments).unwrap();
        settings.warnings.into_iter().filter(|line| line.contains("as a flag")).collect::<Vec<_>>()
    };
    assert_eq!(named(&["--jwt-jwks=keys.json", "--redis-url=redis://h", "--database-url=postgres://h/db"]), [""; 0]);
    let lines =
        named(&["--jwt-jwks=keys.json", "--redis-url=redis://:hunter2@h", "--database-url=postgres://u:hunter2@h/db"]);
    assert!(lines[0].starts_with("REDIS_URL") && lines[1].starts_with("DATABASE_URL") && lines.len() == 2, "{lines:?}");
    assert!(!lines.concat().contains("hunter2"), "{lines:?}");
}
