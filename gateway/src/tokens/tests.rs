//! Rows B38 to B50 of the catalogue of bad inputs: tokens really signed, with keys of every kind.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods)] // A test notices how its tasks end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{Algorithm, EncodingKey, crypto, jwk::Jwk};
use publisher::TenantId;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::{ClaimRules, ConfigError, JwtSettings, KeySource};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn rules() -> ClaimRules {
    ClaimRules {
        issuer: None,
        audience: None,
        tenant_claim: "tenantId".to_owned(),
        max_lifetime: Duration::from_secs(30 * 24 * 3600),
    }
}

fn settings(keys: KeySource) -> JwtSettings {
    JwtSettings { keys: Some(keys), claims: rules() }
}

fn secret() -> KeySource {
    KeySource::Secret(std::str::from_utf8(SECRET).unwrap().parse().unwrap())
}

async fn with_secret() -> Tokens {
    Tokens::load(&settings(secret())).await.unwrap()
}

fn key_file(name: &str) -> PathBuf {
    testkit::key(name)
}

fn key(name: &str) -> Vec<u8> {
    std::fs::read(key_file(name)).unwrap()
}

async fn with_public_key(name: &str) -> Result<Tokens, ConfigError> {
    Tokens::load(&settings(KeySource::PublicKeyFile(key_file(name)))).await
}

fn rsa() -> EncodingKey {
    EncodingKey::from_rsa_pem(&key("rsa.private.pem")).unwrap()
}

fn p256() -> EncodingKey {
    EncodingKey::from_ec_pem(&key("p256.private.pem")).unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims that keep every rule.
fn good() -> Value {
    json!({"tenantId": "t1", "sub": "u1", "exp": now() + 600})
}

/// The good claims with one more, or another.
fn with(name: &str, value: Value) -> String {
    let mut claims = good();
    claims[name] = value;
    claims.to_string()
}

/// Signs any text as header and claims.
fn sign(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let signature = crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// Signs claims as CrecheBooks would, with the shared secret.
fn hs256(claims: &str) -> String {
    sign(r#"{"alg":"HS256","typ":"JWT"}"#, claims, &EncodingKey::from_secret(SECRET), Algorithm::HS256)
}

fn hs256_with_header(header: &str) -> String {
    sign(header, &good().to_string(), &EncodingKey::from_secret(SECRET), Algorithm::HS256)
}

#[track_caller]
fn assert_invalid(result: Result<Claims, TokenError>, what: &str) {
    assert!(matches!(result, Err(TokenError::Invalid(_))), "{what}: {result:?}");
}

#[tokio::test]
async fn a_good_token_names_its_user_and_tenants() {
    let claims = with_secret().await.verify(&hs256(&good().to_string())).await.unwrap();
    assert_eq!((claims.subject.as_deref(), &claims.tenants[..]), (Some("u1"), &["t1".parse().unwrap()][..]));
    assert!((595..=600).contains(&claims.remaining().as_secs()));
}

#[tokio::test]
async fn every_kind_of_public_key_verifies_its_own_algorithm_only() {
    let ed25519 = EncodingKey::from_ed_pem(&key("ed25519.private.pem")).unwrap();
    let p384 = EncodingKey::from_ec_pem(&key("p384.private.pem")).unwrap();
    let signers = [
        ("rsa.public.pem", "RS256", rsa(), Algorithm::RS256),
        ("p256.public.pem", "ES256", p256(), Algorithm::ES256),
        ("p384.public.pem", "ES384", p384, Algorithm::ES384),
        ("ed25519.public.pem", "EdDSA", ed25519, Algorithm::EdDSA),
    ];
    for (file, ..) in &signers {
        let tokens = with_public_key(file).await.unwrap();
        for (signer, name, key, algorithm) in &signers {
            let token = sign(&json!({"alg": name}).to_string(), &good().to_string(), key, *algorithm);
            assert_eq!(tokens.verify(&token).await.is_ok(), file == signer, "{signer} against {file}");
        }
    }
}

#[tokio::test]
async fn public_keys_that_could_never_verify_stop_the_start() {
    for (file, rule) in [
        ("rsa-1024.public.pem", "must be RSA of 2048 to 8192 bits"),
        ("secp256k1.public.pem", "must be RSA of 2048 to 8192 bits"),
        ("p521.public.pem", "must be RSA of 2048 to 8192 bits"),
        ("rsa.private.pem", "is a private key"),
        ("certificate.pem", "is a certificate"),
        ("README.md", "must be a public key in PEM"),
        ("missing.pem", "cannot be read: No such file"),
    ] {
        let Err(error) = with_public_key(file).await else { panic!("{file} was accepted") };
        let line = error.to_string();
        assert!(line.starts_with("JWT_PUBLIC_KEY_FILE=") && line.contains(rule), "{file}: {line}");
    }
}

#[tokio::test]
async fn b38_unsigned_and_mangled_tokens() {
    let tokens = with_secret().await;
    let token = hs256(&good().to_string());
    let [header, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { unreachable!() };
    for alg in [r#""none""#, r#""None""#, r#""nOnE""#, r#""""#, "null", "256", r#""HS1024""#, r#""hs256""#] {
        let header = BASE64.encode(format!(r#"{{"alg":{alg}}}"#));
        assert_invalid(tokens.verify(&format!("{header}.{claims}.")).await, alg);
        assert_invalid(tokens.verify(&format!("{header}.{claims}.{signature}")).await, alg);
    }
    let no_alg = BASE64.encode(r#"{"typ":"JWT"}"#);
    for mangled in [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        format!("{header}.{claims}"),
        format!("{header}.{claims}."),
        format!("{header}..{signature}"),
        format!(".{claims}.{signature}"),
        format!("{token}."),
        format!("{token}.{signature}"),
        format!("{token} "),
        format!("{token}="),
        format!(" {token}"),
        format!("Bearer {token}"),
        format!("{no_alg}.{claims}.{signature}"),
        format!("{header}.{claims}.{}", &signature[1..]),
        format!("{header}.{}.{signature}", BASE64.encode(with("tenantId", json!("t2")))),
        token.replace('.', "\0"),
        "ä.ö.ü".into(),
    ] {
        assert_invalid(tokens.verify(&mangled).await, &mangled);
    }
    assert!(tokens.verify(&token).await.is_ok());
}

#[tokio::test]
async fn b39_algorithm_confusion() {
    let pem = key("rsa.public.pem");
    let base64: String = String::from_utf8_lossy(&pem).lines().filter(|line| !line.starts_with("---")).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
    let rsa_tokens = with_public_key("rsa.public.pem").await.unwrap();
    for public in [&pem, &pem[..pem.len() - 1].to_vec(), &der] {
        let key = EncodingKey::from_secret(public);
        for alg in ["HS256", "RS256"] {
            let token = sign(&json!({"alg": alg}).to_string(), &good().to_string(), &key, Algorithm::HS256);
            assert_invalid(rsa_tokens.verify(&token).await, alg);
        }
    }
    let claims = good().to_string();
    assert_invalid(
        with_secret().await.verify(&sign(r#"{"alg":"RS256"}"#, &claims, &rsa(), Algorithm::RS256)).await,
        "RS256",
    );
    for algorithm in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256] {
        let token = sign(&json!({"alg": algorithm}).to_string(), &claims, &rsa(), algorithm);
        assert_invalid(rsa_tokens.verify(&token).await, "not the configured algorithm");
    }
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        let token = sign(&json!({"alg": algorithm}).to_string(), &claims, &EncodingKey::from_secret(SECRET), algorithm);
        assert_invalid(with_secret().await.verify(&token).await, "not the configured algorithm");
    }
    let other = EncodingKey::from_rsa_pem(&key("rsa-other.private.pem")).unwrap();
    assert_invalid(
        rsa_tokens.verify(&sign(r#"{"alg":"RS256"}"#, &claims, &other, Algorithm::RS256)).await,
        "another key",
    );

    // CVE-2022-21449: r = s = 0 verified anything.
    let ec_tokens = with_public_key("p256.public.pem").await.unwrap();
    let zero = format!("{}.{}.{}", BASE64.encode(r#"{"alg":"ES256"}"#), BASE64.encode(&claims), BASE64.encode([0; 64]));
    assert_invalid(ec_tokens.verify(&zero).await, "r = s = 0");
}

/// The public half of a private key, as a JWKS entry with some fields changed.
fn jwk(private: &EncodingKey, algorithm: Algorithm, changes: Value) -> Value {
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(private, algorithm).unwrap()).unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(jwk.as_object_mut().unwrap().remove(name)),
            value => jwk[name] = value.clone(),
        }
    }
    jwk
}

/// A JWKS server that hands out `answers` in turn, the last one for ever; returns its address and how often it was asked.
async fn jwks_server(answers: Vec<String>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let nth = count.fetch_add(1, Ordering::SeqCst);
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket.write_all(answers[nth.min(answers.len() - 1)].as_bytes()).await;
            let _ = socket.shutdown().await;
        }
    });
    (address, asked)
}

fn http_ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

async fn with_jwks(source: String) -> Result<Tokens, ConfigError> {
    Tokens::load(&settings(KeySource::Jwks(source))).await
}

async fn with_keys(keys: Value) -> Result<Tokens, ConfigError> {
    let (address, _) = jwks_server(vec![http_ok(&json!({"keys": keys}).to_string())]).await;
    with_jwks(format!("http://{address}/jwks")).await
}

fn rs256(kid: Value) -> String {
    sign(&json!({"alg": "RS256", "kid": kid}).to_string(), &good().to_string(), &rsa(), Algorithm::RS256)
}

#[tokio::test]
async fn a_jwks_verifies_by_kid() {
    let keys = json!([
        jwk(&rsa(), Algorithm::RS256, json!({"kid": "a", "alg": null, "use": "sig"})),
        jwk(&p256(), Algorithm::ES256, json!({"kid": "b"})),
    ]);
    let tokens = with_keys(keys).await.unwrap();
    assert!(tokens.verify(&rs256(json!("a"))).await.is_ok());
    let es256 = |kid: &str| {
        sign(&json!({"alg": "ES256", "kid": kid}).to_string(), &good().to_string(), &p256(), Algorithm::ES256)
    };
    assert!(tokens.verify(&es256("b")).await.is_ok());
    // Signed by a key of the set, but not by the one it names.
    assert_invalid(tokens.verify(&es256("a")).await, "the other key");
    assert_eq!(tokens.describe().unwrap(), "2 key(s) of a JWKS: RS256, ES256");
}

#[tokio::test]
async fn keys_of_a_jwks_that_are_not_for_us_are_not_used() {
    for (what, changes) in [
        ("encryption", json!({"use": "enc"})),
        ("signing only", json!({"key_ops": ["sign"]})),
        ("wrong algorithm", json!({"alg": "ES256"})),
        ("symmetric algorithm", json!({"alg": "HS256"})),
        ("no signature algorithm", json!({"alg": "RSA-OAEP"})),
        ("weak", json!({"n": BASE64.encode([0xff; 128])})),
    ] {
        let error = with_keys(json!([jwk(&rsa(), Algorithm::RS256, changes)])).await.err().unwrap().to_string();
        assert!(error.contains("holds no public key to verify signatures with"), "{what}: {error}");
    }
    let oct = json!([{"kty": "oct", "kid": "a", "alg": "HS256", "k": BASE64.encode(SECRET)}]);
    assert!(with_keys(oct.clone()).await.is_err(), "a published secret is no key");
    let both = json!([oct[0], jwk(&rsa(), Algorithm::RS256, json!({"kid": "b"}))]);
    let token =
        sign(r#"{"alg":"HS256","kid":"a"}"#, &good().to_string(), &EncodingKey::from_secret(SECRET), Algorithm::HS256);
    assert_invalid(with_keys(both).await.unwrap().verify(&token).await, "oct beside another key");
}

#[tokio::test]
async fn b40_hostile_key_names() {
    let a = jwk(&rsa(), Algorithm::RS256, json!({"kid": "a"}));
    let b = jwk(&rsa(), Algorithm::RS256, json!({"kid": "b"}));
    let several = with_keys(json!([a, b])).await.unwrap();
    for kid in
        [json!("../../etc/passwd"), json!("' or 1=1 --"), json!("x".repeat(100_000)), json!(7), json!(""), json!("A")]
    {
        assert_invalid(several.verify(&rs256(kid.clone())).await, &format!("{kid:.20}"));
    }
    assert_invalid(several.verify(&rs256(Value::Null)).await, "no name, two keys");
    assert!(several.verify(&rs256(json!("a"))).await.is_ok());
    let only = with_keys(json!([a])).await.unwrap();
    assert!(only.verify(&rs256(Value::Null)).await.is_ok(), "no name, one key");
    assert_invalid(only.verify(&rs256(json!("b"))).await, "another name, one key");
    let nameless = with_keys(json!([jwk(&rsa(), Algorithm::RS256, json!({"kid": null}))])).await.unwrap();
    assert!(nameless.verify(&rs256(json!("any"))).await.is_ok(), "the only key has no name");
}

#[tokio::test]
async fn b66_a_key_is_unknown_only_once_a_fresh_set_lacks_it() {
    let keys = |kid| http_ok(&json!({"keys": [jwk(&rsa(), Algorithm::RS256, json!({"kid": kid}))]}).to_string());
    let broken = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned();
    let (address, asked) = jwks_server(vec![keys("old"), broken, keys("old"), keys("new")]).await;
    let tokens = with_jwks(format!("http://{address}/jwks")).await.unwrap();
    let verify = async |kid: &str| tokens.verify(&rs256(json!(kid))).await;
    let asked = || asked.load(Ordering::SeqCst);

    assert_eq!(verify("new").await, Err(TokenError::NoKeys), "the issuer does not answer");
    assert!(verify("old").await.is_ok(), "known keys stay in use");
    assert_eq!(verify("junk").await, Err(TokenError::Invalid("unknown key")), "the issuer says so");
    assert!(verify("new").await.is_ok(), "a new key is found at once, right after a start and after junk");
    assert_invalid(verify("old").await, "a withdrawn key is gone");
    assert_eq!(asked(), 5, "the reserve is used up");

    // A storm of junk is no reason to ask more often, nor to call a key unknown that may be there.
    let storm = (0..50).map(|n| {
        let tokens = tokens.clone();
        async move { tokens.verify(&rs256(json!(format!("k{n}")))).await }
    });
    for result in futures::future::join_all(storm).await {
        assert_eq!(result, Err(TokenError::NoKeys));
    }
    assert_eq!(asked(), 5);
    assert!(verify("new").await.is_ok(), "a token with a known key is verified all the same");
    pass(Duration::from_secs(15)).await;
    assert_invalid(verify("old").await, "one more read is in reserve");
    assert_eq!((verify("old").await, asked()), (Err(TokenError::NoKeys), 6));
}

async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn b66_tokens_that_come_together_share_one_read() {
    let keys = |kid| http_ok(&json!({"keys": [jwk(&rsa(), Algorithm::RS256, json!({"kid": kid}))]}).to_string());
    let (address, asked) = jwks_server(vec![keys("old"), keys("new")]).await;
    let tokens = with_jwks(format!("http://{address}/jwks")).await.unwrap();
    let token = rs256(json!("new"));
    let storm = (0..50).map(|_| tokens.verify(&token));
    assert!(futures::future::join_all(storm).await.iter().all(Result::is_ok));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn b66_keys_are_good_for_a_day_without_their_issuer() {
    let set = json!({"keys": [jwk(&rsa(), Algorithm::RS256, json!({"kid": "a"}))]}).to_string();
    let file = std::env::temp_dir().join(format!("b66-{}.json", std::process::id()));
    std::fs::write(&file, &set).unwrap();
    let tokens = with_jwks(file.to_string_lossy().into_owned()).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    for hours in [12, 11] {
        pass(Duration::from_secs(hours * 3600)).await;
        assert_eq!(tokens.verify(&rs256(json!("other"))).await, Err(TokenError::NoKeys));
        assert!(tokens.verify(&rs256(json!("a"))).await.is_ok());
    }
    pass(Duration::from_secs(3600)).await;
    assert_eq!(tokens.verify(&rs256(json!("a"))).await, Err(TokenError::NoKeys));
    assert!(!tokens.are_loaded(), "not ready");
    assert_eq!(tokens.describe().unwrap_err(), "could not be read for 24 hours");
}

#[tokio::test]
async fn b66_several_keys_may_have_one_name() {
    let other = EncodingKey::from_rsa_pem(&key("rsa-other.private.pem")).unwrap();
    let same = |key: &EncodingKey, algorithm| jwk(key, algorithm, json!({"kid": "a"}));
    let keys = json!([same(&other, Algorithm::RS256), same(&p256(), Algorithm::ES256), same(&rsa(), Algorithm::RS256)]);
    let tokens = with_keys(keys).await.unwrap();
    for (alg, key, algorithm) in
        [("RS256", &other, Algorithm::RS256), ("ES256", &p256(), Algorithm::ES256), ("RS256", &rsa(), Algorithm::RS256)]
    {
        let header = json!({"alg": alg, "kid": "a"}).to_string();
        let token = sign(&header, &good().to_string(), key, algorithm);
        assert!(tokens.verify(&token).await.is_ok(), "{alg}");
        let changed = format!("{}AAAA", &token[..token.len() - 4]);
        assert_eq!(tokens.verify(&changed).await, Err(TokenError::Invalid("wrong signature")), "{alg}");
    }
}

#[tokio::test]
async fn b66_unknown_entries_are_ignored_and_named() {
    let good = jwk(&rsa(), Algorithm::RS256, json!({"kid": "a"}));
    let entries = [
        (json!(null), "it is no JWK"),
        (json!({"kid": "x"}), "its kty is none of RSA, EC and OKP"),
        (json!(7), "it is no JWK"),
        (jwk(&rsa(), Algorithm::RS256, json!({"kid": 7})), "it is no JWK"),
        (json!({"kty": "PQC", "kid": "x"}), "its kty is none of RSA, EC and OKP"),
        (json!({"kty": "oct", "kid": "x", "k": "AAAA"}), "it is a shared secret"),
        (jwk(&rsa(), Algorithm::RS256, json!({"use": "enc"})), "its use is not sig"),
        (jwk(&rsa(), Algorithm::RS256, json!({"n": BASE64.encode([0xff; 128])})), "too small"),
        (jwk(&rsa(), Algorithm::RS256, json!({"kid": "x\u{1b}[31m\n", "alg": "ES256"})), "its alg is none"),
    ];
    for (entry, why) in entries {
        let tokens = with_keys(json!([entry, good])).await.unwrap_or_else(|error| panic!("{why}: {error}"));
        assert!(tokens.verify(&rs256(json!("a"))).await.is_ok(), "{why}");
        let described = tokens.describe().unwrap();
        assert!(described.contains("not used: key 1") && described.contains(why), "{described}");
        assert!(!described.contains(char::is_control), "{described:?}");
    }
}

#[tokio::test]
async fn b67_each_of_several_secrets_opens() {
    let secret = format!("{}\r\n\n{}\n", "n".repeat(32), std::str::from_utf8(SECRET).unwrap());
    let config = settings(KeySource::Secret(secret.parse().unwrap()));
    let tokens = Tokens::load(&config).await.unwrap();
    assert!(tokens.verify(&hs256(&good().to_string())).await.is_ok(), "the old one");
    let minted = mint(&config, &["t1".parse().unwrap()], None, Duration::from_secs(60)).unwrap();
    assert!(tokens.verify(&minted).await.is_ok());
    assert!(with_secret().await.verify(&minted).await.is_err(), "the first signs");
    for whole in [secret.as_bytes(), secret.trim().as_bytes(), b""] {
        let key = EncodingKey::from_secret(whole);
        let token = sign(r#"{"alg":"HS256"}"#, &good().to_string(), &key, Algorithm::HS256);
        assert_invalid(tokens.verify(&token).await, "no line is this key");
    }
}

#[tokio::test]
async fn a_token_is_explained_by_the_rule_that_it_breaks() {
    let claims = ClaimRules { issuer: Some("crechebooks".into()), ..rules() };
    let config = JwtSettings { keys: Some(secret()), claims };
    let tokens = Tokens::load(&config).await.unwrap();
    for (token, words) in [
        (hs256(&with("iss", json!("crechebooks"))), &["accepted: for t1, until 20", "sub: u1", "iss: crechebooks"][..]),
        (hs256(&with("iss", json!("else\u{1b}[2J"))), &["iss: else?[2J", "wrong issuer; JWT_ISSUER is crechebooks"]),
        (hs256(r#"{"tenantId":"t1"}"#), &["refused", "no usable exp; exp is required"]),
        (hs256(&with("exp", json!(9_999_999_999_u64))), &["JWT_MAX_LIFETIME_SECONDS is 2592000", "(2286-11-20T"]),
        (rs256(json!("k")), &["alg: RS256", "kid: k", "wrong algorithm"]),
        ("nonsense".to_owned(), &["refused: the token is invalid: not a signed token"]),
    ] {
        let (text, result) = explain(&tokens, &config, &token).await;
        assert_eq!(result.is_ok(), text.contains("accepted"), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
    }
}

#[tokio::test]
async fn unreadable_key_sets_stop_the_start() {
    let answers = [
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(), "answered 404"),
        (
            "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
            "answered 302",
        ),
        (http_ok("{}"), "is no JWKS"),
        (http_ok("<html>"), "is no JWKS"),
        (http_ok(r#"{"keys":[]}"#), "holds no public key"),
        (http_ok(&" ".repeat(1_100_000)), "is longer than 1048576 bytes"),
    ];
    for (answer, rule) in answers {
        let (address, _) = jwks_server(vec![answer]).await;
        let error = with_jwks(format!("http://{address}/jwks")).await.err().unwrap().to_string();
        assert!(error.starts_with("JWT_JWKS=http://127.0.0.1") && error.contains(rule), "{rule}: {error}");
    }
    for (source, rule) in [
        ("http://keys.example/jwks", "must be the path of a file or an https:// address"),
        ("https://user:hunter2@keys.example/jwks", "must be the path of a file or an https:// address"),
        ("ftp://keys.example/jwks", "must be the path of a file or an https:// address"),
        ("/nowhere/jwks.json", "cannot be read: No such file"),
    ] {
        let error = with_jwks(source.to_owned()).await.err().unwrap().to_string();
        assert!(error.contains(rule), "{source}: {error}");
    }
}

#[tokio::test]
async fn f66_an_issuer_that_is_away_at_the_start_is_asked_until_it_answers() {
    let keys = http_ok(&json!({"keys": [jwk(&rsa(), Algorithm::RS256, json!({"kid": "a"}))]}).to_string());
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tokens = with_jwks(format!("http://{}/jwks", silent.local_addr().unwrap())).await.unwrap();
    assert_eq!(tokens.describe().unwrap_err(), "did not answer within 1.8s");

    let broken = |status: &str| format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    // The gateway asks again, whatever the answer was.
    let answers = vec![broken("503"), String::new(), broken("429"), broken("404"), http_ok("{}"), keys];
    let (address, asked) = jwks_server(answers).await;
    let tokens = with_jwks(format!("http://{address}/jwks")).await.unwrap();
    assert!(!tokens.are_loaded());
    assert_eq!(tokens.verify(&rs256(json!("a"))).await.err(), Some(TokenError::NoKeys));
    assert_eq!(asked.load(Ordering::SeqCst), 1, "unknown keys cause no read while there are none");
    let fresh = tokens.clone();
    tokio::spawn(async move { fresh.keep_fresh().await });
    let begun = std::time::Instant::now();
    while !tokens.are_loaded() {
        assert!(begun.elapsed() < Duration::from_secs(100), "{:?}", tokens.describe());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(tokens.verify(&rs256(json!("a"))).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn b41_what_a_token_points_at_is_never_fetched() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let attacker = EncodingKey::from_rsa_pem(&key("rsa-other.private.pem")).unwrap();
    let tokens = with_public_key("rsa.public.pem").await.unwrap();
    for pointer in [
        json!({"jku": address}),
        json!({"x5u": address}),
        json!({"jwk": jwk(&attacker, Algorithm::RS256, json!({}))}),
        json!({"x5c": ["MIIB"]}),
    ] {
        let mut header = json!({"alg": "RS256"});
        header.as_object_mut().unwrap().extend(pointer.as_object().unwrap().clone());
        for key in [&attacker, &rsa()] {
            let token = sign(&header.to_string(), &good().to_string(), key, Algorithm::RS256);
            assert_invalid(tokens.verify(&token).await, &header.to_string());
        }
    }
    let connection = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(connection.is_err(), "something connected");
}

#[tokio::test]
async fn b42_headers_that_are_not_implemented() {
    let tokens = with_secret().await;
    for header in [
        r#"{"alg":"HS256","crit":["exp"]}"#,
        r#"{"alg":"HS256","crit":[]}"#,
        r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
        r#"{"alg":"HS256","zip":"DEF"}"#,
        r#"{"alg":"HS256","enc":"A256GCM"}"#,
        r#"{"alg":"HS256","typ":"JWE"}"#,
        r#"{"alg":"HS256","typ":"secevent+jwt"}"#,
        r#"{"alg":"HS256","typ":""}"#,
        r#"{"alg":"HS256","typ":7}"#,
        r#"{"alg":"HS256","alg":"HS256"}"#,
        "[]",
        "{}",
        "",
    ] {
        assert_invalid(tokens.verify(&hs256_with_header(header)).await, header);
    }
    for header in [
        r#"{"alg":"HS256"}"#,
        r#"{"alg":"HS256","typ":"jwt","cty":"x","x":1}"#,
        r#"{"alg":"HS256","typ":"AT+JWT","kid":"k"}"#,
        r#"{"alg":"HS256","typ":"application/at+jwt"}"#,
    ] {
        assert!(tokens.verify(&hs256_with_header(header)).await.is_ok(), "{header}");
    }
    assert_invalid(tokens.verify("eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..aXY.Y2lwaGVy.dGFn").await, "JWE");
}

#[tokio::test]
async fn b43_exp() {
    let tokens = with_secret().await;
    for exp in ["null", "\"2000000000\"", "-1", "-1.5", "1e400", "[]", "{}", "true"] {
        let claims = format!(r#"{{"tenantId":"t1","exp":{exp}}}"#);
        assert_invalid(tokens.verify(&hs256(&claims)).await, exp);
    }
    assert_invalid(tokens.verify(&hs256(r#"{"tenantId":"t1"}"#)).await, "missing");
    assert_invalid(tokens.verify(&hs256(r#"{"tenantId":"t1","exp":9999999999,"exp":9999999998}"#)).await, "twice");
    for exp in [json!(0), json!(1.5e9), json!(now() - 6), json!(1_000_000_000)] {
        assert_eq!(tokens.verify(&hs256(&with("exp", exp.clone()))).await, Err(TokenError::Expired), "{exp}");
    }
    for exp in [json!(now() - 3), json!(now() as f64 + 0.5), json!(now() + 30 * 24 * 3600), json!(now() + 1)] {
        assert!(tokens.verify(&hs256(&with("exp", exp.clone()))).await.is_ok(), "{exp}");
    }
    let within_leeway = tokens.verify(&hs256(&with("exp", json!(now() - 3)))).await.unwrap();
    assert_eq!(within_leeway.remaining(), Duration::ZERO);
}

#[tokio::test]
async fn b65_no_token_outlives_a_kick() {
    let tokens = with_secret().await;
    let too_far = Err(TokenError::Invalid("expires too far ahead"));
    for exp in ["18446744073709550000", "18446744073709551616", "1e30", "1e308", "9007199254740993", "4.1e9"] {
        let token = hs256(&format!(r#"{{"tenantId":"t1","exp":{exp}}}"#));
        assert_eq!(tokens.verify(&token).await, too_far, "{exp}");
    }
    let month = 30 * 24 * 3600;
    assert_eq!(tokens.verify(&hs256(&with("exp", json!(now() + month + 60)))).await, too_far);
    let claims = tokens.verify(&hs256(&with("exp", json!(now() + month)))).await.unwrap();
    assert!(claims.remaining() <= LONGEST_TIMER);
}

#[tokio::test]
async fn b65_a_token_that_does_not_tell_when_it_was_issued_is_older_than_any_kick() {
    let tokens = with_secret().await;
    let issued_at = async |iat: Value| tokens.verify(&hs256(&with("iat", iat))).await.unwrap().issued_at;
    for iat in
        [json!(null), json!("1"), json!(-1), json!(now() + 10), json!(now() * 1000), json!(u64::MAX), json!(1e300)]
    {
        assert_eq!(issued_at(iat.clone()).await, 0, "{iat}");
    }
    let now = now();
    for (iat, second) in [(json!(now), now), (json!(now + 4), now + 4), (json!(7.9), 7)] {
        assert_eq!(issued_at(iat.clone()).await, second, "{iat}");
    }
}

#[tokio::test]
async fn b45_nbf_and_iat() {
    let tokens = with_secret().await;
    for nbf in [json!(now() + 600), json!("0"), json!(null), json!(-1), json!([])] {
        assert_invalid(tokens.verify(&hs256(&with("nbf", nbf.clone()))).await, &nbf.to_string());
    }
    for nbf in [json!(now() + 4), json!(0), json!(now()), json!(1.5e9)] {
        assert!(tokens.verify(&hs256(&with("nbf", nbf.clone()))).await.is_ok(), "{nbf}");
    }
    assert!(tokens.verify(&hs256(&with("iat", json!(now() + 600)))).await.is_ok(), "iat judges nothing");
}

#[tokio::test]
async fn b46_issuer_and_audience() {
    let asking = |issuer: Option<&str>, audience: Option<&str>| {
        let (issuer, audience) = (issuer.map(str::to_owned), audience.map(str::to_owned));
        JwtSettings { keys: Some(secret()), claims: ClaimRules { issuer, audience, ..rules() } }
    };
    let issuer = Tokens::load(&asking(Some("crechebooks"), None)).await.unwrap();
    let audience = Tokens::load(&asking(None, Some("dashboard"))).await.unwrap();
    for wrong in
        [json!("other"), json!("crechebooks "), json!(""), json!(7), json!(null), json!(["crechebooks"]), json!({})]
    {
        assert_invalid(issuer.verify(&hs256(&with("iss", wrong.clone()))).await, &wrong.to_string());
    }
    for wrong in
        [json!("other"), json!(""), json!(7), json!(null), json!([]), json!(["other", 7]), json!({"dashboard": 1})]
    {
        assert_invalid(audience.verify(&hs256(&with("aud", wrong.clone()))).await, &wrong.to_string());
    }
    assert_invalid(issuer.verify(&hs256(&good().to_string())).await, "iss missing");
    assert_invalid(audience.verify(&hs256(&good().to_string())).await, "aud missing");
    assert!(issuer.verify(&hs256(&with("iss", json!("crechebooks")))).await.is_ok());
    for right in [json!("dashboard"), json!(["other", "dashboard"])] {
        assert!(audience.verify(&hs256(&with("aud", right))).await.is_ok());
    }
    for ignored in [json!("anything"), json!(7), json!(["a", "b"])] {
        assert!(with_secret().await.verify(&hs256(&with("aud", ignored.clone()))).await.is_ok());
        assert!(with_secret().await.verify(&hs256(&with("iss", ignored))).await.is_ok());
    }
}

#[tokio::test]
async fn b47_unusable_tenant_claims() {
    let tokens = with_secret().await;
    let many: Vec<String> = (0..257).map(|n| format!("t{n}")).collect();
    for claim in [
        json!(null),
        json!(7),
        json!(true),
        json!({"id": "t1"}),
        json!(""),
        json!([]),
        json!([1]),
        json!(["t1", 1]),
        json!(["t1", null]),
        json!([["t1"]]),
        json!("t".repeat(65)),
        json!(many),
    ] {
        let result = tokens.verify(&hs256(&with("tenantId", claim.clone()))).await;
        assert!(matches!(result, Err(TokenError::UnusableTenantClaim(_))), "{claim:.40}: {result:?}");
    }
    let missing = tokens.verify(&hs256(&json!({"exp": now() + 600}).to_string())).await;
    assert_eq!(missing, Err(TokenError::UnusableTenantClaim("missing")));
    assert_invalid(
        tokens.verify(&hs256(&format!(r#"{{"exp":{},"tenantId":"t1","tenantId":"t2"}}"#, now() + 600))).await,
        "twice",
    );

    let claims = tokens.verify(&hs256(&with("tenantId", json!(["b", "a", "b", "a"])))).await.unwrap();
    assert_eq!(claims.tenants[..], ["b".parse().unwrap(), "a".parse().unwrap()]);
    let claims = tokens.verify(&hs256(&with("tenantId", json!(many[..256])))).await.unwrap();
    assert_eq!(claims.tenants.len(), MOST_TENANTS);
    assert!(tokens.verify(&hs256(&with("tenantId", json!("t".repeat(64))))).await.is_ok());
}

#[tokio::test]
async fn b48_no_name_that_could_mean_something_to_redis() {
    let tokens = with_secret().await;
    for tenant in [
        "*",
        "?",
        "[a]",
        "{t1}",
        "t1}:events",
        "a b",
        "t1\r\n",
        "t1\0",
        "../t2",
        "t\u{0456}1",
        "t%31",
        "t1:state",
        " t1",
        "t1/",
    ] {
        for claim in [json!(tenant), json!(["t1", tenant])] {
            let result = tokens.verify(&hs256(&with("tenantId", claim))).await;
            assert_eq!(result, Err(TokenError::UnusableTenantClaim("not a tenant id")), "{tenant:?}");
        }
    }
}

#[tokio::test]
async fn b49_long_tokens() {
    let tokens = with_secret().await;
    assert_eq!(
        tokens.verify(&hs256(&with("pad", json!("x".repeat(45_000))))).await,
        Err(TokenError::Invalid("too long"))
    );
    assert!(tokens.verify(&hs256(&with("pad", json!("x".repeat(11_000))))).await.is_ok());
    let deep = format!(r#"{{"exp":{},"tenantId":{}"#, now() + 600, "[".repeat(10_000));
    assert_invalid(tokens.verify(&hs256(&deep)).await, "deep");
}

#[tokio::test]
async fn b50_a_token_is_good_for_its_own_tenants_only() {
    let claims = with_secret().await.verify(&hs256(&with("tenantId", json!(["t1", "t2"])))).await.unwrap();
    for (tenant, granted) in [("t1", true), ("t2", true), ("T1", false), ("t", false), ("t11", false)] {
        assert_eq!(claims.grants(&tenant.parse().unwrap()), granted, "{tenant}");
    }
}

#[tokio::test]
async fn subjects_are_text_of_bounded_length() {
    let tokens = with_secret().await;
    for sub in [json!(7.5), json!(1e300), json!(true), json!({}), json!("x".repeat(257))] {
        assert_invalid(tokens.verify(&hs256(&with("sub", sub.clone()))).await, &format!("{sub:.20}"));
    }
    for (sub, digits) in [(json!(7), "7"), (json!(-7), "-7"), (json!(u64::MAX), "18446744073709551615")] {
        assert_eq!(tokens.verify(&hs256(&with("sub", sub))).await.unwrap().subject.as_deref(), Some(digits));
    }
    assert_eq!(tokens.verify(&hs256(&with("sub", json!(null)))).await.unwrap().subject, None);
}

#[tokio::test]
async fn minted_tokens_are_accepted() {
    let claims = ClaimRules {
        issuer: Some("crechebooks".into()),
        audience: Some("dashboard".into()),
        tenant_claim: "centres".into(),
        ..rules()
    };
    let config = JwtSettings { keys: Some(secret()), claims };
    let tokens = Tokens::load(&config).await.unwrap();
    for named in [vec!["t1"], vec!["t1", "t2"]] {
        let tenants: Vec<TenantId> = named.iter().map(|name| name.parse().unwrap()).collect();
        let token = mint(&config, &tenants, Some("u1"), Duration::from_secs(60)).unwrap();
        let claims = tokens.verify(&token).await.unwrap();
        assert_eq!((&claims.tenants[..], claims.subject.as_deref()), (&tenants[..], Some("u1")));
    }
    let without = JwtSettings { keys: None, ..config };
    assert!(
        mint(&without, &[], None, Duration::ZERO).unwrap_err().to_string().starts_with("JWT_SECRET: needed to sign")
    );
}
