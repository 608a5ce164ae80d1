//! A token: none that we haven't signed is believed, and one that we have grants what it says and no more. The input is a token, or
//! a header and claims on two lines, which are signed first.
#![cfg_attr(fuzzing, no_main)]

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt as _;
use gateway::config::{ClaimRules, JwtSettings, KeySource};
use gateway::tokens::{Claims, LEEWAY, LONGEST_TIMER, MOST_TENANTS, TokenError, Tokens};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::Value;

const KEY: &str = "nobody else has these 32 bytes..";
const ISSUER: &str = "crechebooks";
const AUDIENCE: &str = "dashboard";

/// Looks at neither issuer nor audience.
static LENIENT: LazyLock<Tokens> = LazyLock::new(|| tokens(None, None));
/// Wants both.
static STRICT: LazyLock<Tokens> = LazyLock::new(|| tokens(Some(ISSUER), Some(AUDIENCE)));

fn tokens(issuer: Option<&str>, audience: Option<&str>) -> Tokens {
    let claims = ClaimRules {
        issuer: issuer.map(str::to_owned),
        audience: audience.map(str::to_owned),
        tenant_claim: "tenantId".to_owned(),
        max_lifetime: Duration::from_secs(30 * 24 * 3600),
    };
    let settings = JwtSettings { keys: Some(KeySource::Secret(KEY.parse().expect("a key"))), claims };
    Tokens::load(&settings).now_or_never().expect("a secret is there at once").expect("a right configuration")
}

fn verify(tokens: &Tokens, token: &str) -> Result<Claims, TokenError> {
    let verified = tokens.verify(token).now_or_never().expect("a secret needs no waiting");
    verified.inspect_err(|error| gateway_fuzz::assert_presentable(&error.to_string()))
}

fn sign(header: &str, claims: &str) -> String {
    let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = crypto::sign(input.as_bytes(), &EncodingKey::from_secret(KEY.as_bytes()), Algorithm::HS256);
    format!("{input}.{}", signature.expect("HS256 signs with any key"))
}

fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Some((header, claims)) = text.split_once('\n') else {
        assert!(verify(&LENIENT, &text).is_err(), "believed without a signature: {text:?}");
        return;
    };
    let token = sign(header, claims);
    if let Ok(granted) = verify(&LENIENT, &token) {
        let header: Value = serde_json::from_str(header).expect("a header that was read");
        assert_eq!(header["alg"], "HS256");
        check_claims(&granted, &serde_json::from_str(claims).expect("claims that were read"));
    }
    if let Ok(granted) = verify(&STRICT, &token) {
        let said: Value = serde_json::from_str(claims).expect("claims that were read");
        check_claims(&granted, &said);
        assert_eq!(said["iss"], ISSUER);
        assert!(said["aud"] == AUDIENCE || said["aud"].as_array().is_some_and(|all| all.contains(&AUDIENCE.into())));
    }
}

fn check_claims(granted: &Claims, said: &Value) {
    let tenants: Vec<&str> = match &said["tenantId"] {
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    assert!((1..=MOST_TENANTS).contains(&granted.tenants.len()), "{} tenants", granted.tenants.len());
    for (index, tenant) in granted.tenants.iter().enumerate() {
        assert!(tenants.contains(&tenant.as_str()), "{tenant} is nowhere in {tenants:?}");
        assert!(!granted.tenants[..index].contains(tenant), "{tenant} is granted twice");
    }
    assert!(tenants.iter().all(|tenant| granted.tenants.iter().any(|one| one.as_str() == *tenant)));
    let subject = match &said["sub"] {
        Value::Number(digits) => Some(digits.to_string()),
        text => text.as_str().map(str::to_owned),
    };
    assert_eq!(granted.subject.as_deref(), subject.as_deref());

    // A second for the time since it was checked.
    assert!(granted.expires_at + LEEWAY + Duration::from_secs(1) > SystemTime::now(), "it had expired");
    assert!(granted.remaining() <= LONGEST_TIMER);
    let _ = Instant::now() + granted.remaining();
}

gateway_fuzz::target!(check);
