//! B38–B42: tokens whose signature, algorithm, key or header must not open anything, each by all three ways in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::admission::{accepted, refused};
use crate::harness::process::scratch;
use crate::harness::token::{SECRET, sign, sign_claims_text, signing_input};
use crate::harness::{Bring, Dashboard, Setup, Stack, Token, hostile};

fn good() -> Token {
    Token::of("t1")
}

/// [`hostile`] without bystanders, for gateways to whom the bystanders' HS256 tokens mean nothing.
async fn quietly(setup: Setup, attack: impl AsyncFnOnce(&Stack)) {
    let stack = setup.lease().await;
    attack(&stack).await;
    stack.refused(&["disconnects unauthorized", "joins unauthorized"]).await;
    stack.finish().await;
}

fn hmac() -> EncodingKey {
    EncodingKey::from_secret(SECRET.as_bytes())
}

fn key_path(name: &str) -> String {
    testkit::key(&format!("{name}.pem")).display().to_string()
}

fn pem(name: &str) -> Vec<u8> {
    std::fs::read(key_path(name)).unwrap()
}

fn rsa() -> EncodingKey {
    EncodingKey::from_rsa_pem(&pem("rsa.private")).unwrap()
}

fn ec() -> EncodingKey {
    EncodingKey::from_ec_pem(&pem("p256.private")).unwrap()
}

fn ed() -> EncodingKey {
    EncodingKey::from_ed_pem(&pem("ed25519.private")).unwrap()
}

/// Gateways that know this public key and no secret.
fn with_public_key(name: &str) -> Setup {
    Setup::new().without("JWT_SECRET").env("JWT_PUBLIC_KEY_FILE", &key_path(name))
}

/// A token whose header says one thing while the signature was made with another.
fn claiming(algorithm: &str, key: &EncodingKey, really: Algorithm) -> String {
    good().header("alg", json!(algorithm)).sign_with(key, really)
}

#[tokio::test]
async fn b38_unsigned_and_mutilated_tokens_are_4401() {
    hostile(Setup::new(), &["disconnects unauthorized", "joins unauthorized"], async |stack, _| {
        let valid = good().sign();
        let [header, claims, signature] = valid.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
        let unsigned = |algorithm: Value| good().header("alg", algorithm).unsigned();
        let no_algorithm = signing_input(r#"{"typ":"JWT"}"#, &good().claims.to_string());
        let last_changed = format!("{}{}", &signature[..40], if signature.ends_with('A') { "BBB" } else { "AAA" });
        refused(
            stack,
            4401,
            &[
                ("alg none", format!("{}.", unsigned(json!("none")))),
                ("alg None", format!("{}.", unsigned(json!("None")))),
                ("alg nOnE with a signature", format!("{}.{signature}", unsigned(json!("nOnE")))),
                ("no alg", sign(&no_algorithm, &hmac(), Algorithm::HS256)),
                ("unknown alg", claiming("HS257", &hmac(), Algorithm::HS256)),
                ("alg HS384", claiming("HS384", &hmac(), Algorithm::HS384)),
                ("alg HS512", claiming("HS512", &hmac(), Algorithm::HS512)),
                ("alg null", sign(&unsigned(Value::Null), &hmac(), Algorithm::HS256)),
                ("alg array", sign(&unsigned(json!(["HS256"])), &hmac(), Algorithm::HS256)),
                ("alg lower case", claiming("hs256", &hmac(), Algorithm::HS256)),
                ("empty signature", format!("{header}.{claims}.")),
                ("no signature", format!("{header}.{claims}")),
                ("no claims", format!("{header}..{signature}")),
                ("no header", format!(".{claims}.{signature}")),
                ("4 parts", format!("{valid}.{signature}")),
                ("dots only", "..".to_owned()),
                ("a word", "token".to_owned()),
                ("nothing", String::new()),
                ("another signature", format!("{header}.{claims}.{last_changed}")),
                (
                    "another key",
                    good().sign_with(
                        &EncodingKey::from_secret(b"another secret, as long as the first one is"),
                        Algorithm::HS256,
                    ),
                ),
                (
                    "claims of another token",
                    format!("{header}.{}.{signature}", Token::of("t2").sign().split('.').nth(1).unwrap()),
                ),
                (
                    "header that is no JSON",
                    sign(&signing_input("HS256", &good().claims.to_string()), &hmac(), Algorithm::HS256),
                ),
                ("claims that are no object", sign_claims_text("[1]")),
                ("claims that are no JSON", sign_claims_text("{")),
                ("base64 with padding", format!("{header}.{claims}.{signature}=")),
                ("not base64", format!("{header}.{claims}.%%%")),
            ],
        )
        .await;
        accepted(stack, &[("the valid one", valid)]).await;
    })
    .await;
}

#[tokio::test]
async fn b39_algorithm_confusion_is_4401_against_a_secret() {
    hostile(Setup::new(), &["disconnects unauthorized", "joins unauthorized"], async |stack, _| {
        refused(
            stack,
            4401,
            &[
                ("RS256", claiming("RS256", &rsa(), Algorithm::RS256)),
                ("ES256", claiming("ES256", &ec(), Algorithm::ES256)),
                ("EdDSA", claiming("EdDSA", &ed(), Algorithm::EdDSA)),
                ("RS256 by HMAC", claiming("RS256", &hmac(), Algorithm::HS256)),
                ("HS256 by RSA", claiming("HS256", &rsa(), Algorithm::RS256)),
            ],
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn b39_algorithm_confusion_is_4401_against_an_rsa_key() {
    quietly(with_public_key("rsa.public"), async |stack| {
        let public_pem = pem("rsa.public");
        let der = {
            let text = String::from_utf8(public_pem.clone()).unwrap();
            let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
            STANDARD.decode(body).unwrap()
        };
        let by = |secret: &[u8]| claiming("HS256", &EncodingKey::from_secret(secret), Algorithm::HS256);
        refused(
            stack,
            4401,
            &[
                ("HS256 by the public PEM", by(&public_pem)),
                ("HS256 by the public PEM, trimmed", by(public_pem.trim_ascii())),
                ("HS256 by the public DER", by(&der)),
                ("PS256", claiming("PS256", &rsa(), Algorithm::PS256)),
                ("RS384", claiming("RS384", &rsa(), Algorithm::RS384)),
                ("RS512", claiming("RS512", &rsa(), Algorithm::RS512)),
                ("ES256", claiming("ES256", &ec(), Algorithm::ES256)),
                ("the tests' secret", good().sign()),
            ],
        )
        .await;
        accepted(stack, &[("RS256", claiming("RS256", &rsa(), Algorithm::RS256))]).await;
    })
    .await;
}

#[tokio::test]
async fn b39_algorithm_confusion_is_4401_against_an_ec_key() {
    quietly(with_public_key("p256.public"), async |stack| {
        let public_pem = pem("p256.public");
        let es256 = good().header("alg", json!("ES256"));
        let signed_by = |bytes: [u8; 64]| format!("{}.{}", es256.unsigned(), URL_SAFE_NO_PAD.encode(bytes));
        refused(
            stack,
            4401,
            &[
                (
                    "HS256 by the public PEM",
                    claiming("HS256", &EncodingKey::from_secret(&public_pem), Algorithm::HS256),
                ),
                ("r and s zero", signed_by([0; 64])),
                ("r and s all ones", signed_by([0xFF; 64])),
                ("RS256", claiming("RS256", &rsa(), Algorithm::RS256)),
                ("EdDSA", claiming("EdDSA", &ed(), Algorithm::EdDSA)),
            ],
        )
        .await;
        accepted(stack, &[("ES256", es256.sign_with(&ec(), Algorithm::ES256))]).await;
    })
    .await;
}

#[tokio::test]
async fn b39_ed25519_key_takes_eddsa_only() {
    quietly(with_public_key("ed25519.public"), async |stack| {
        refused(stack, 4401, &[("ES256", claiming("ES256", &ec(), Algorithm::ES256)), ("HS256", good().sign())]).await;
        accepted(stack, &[("EdDSA", claiming("EdDSA", &ed(), Algorithm::EdDSA))]).await;
    })
    .await;
}

/// A key set with one key, and a token of a tenant that it verifies.
pub fn key_set_and_token(tenant: &str) -> (String, String) {
    let set = json!({ "keys": [jwk(&rsa(), Algorithm::RS256, "first")] });
    let token = Token::of(tenant).header("alg", json!("RS256")).header("kid", json!("first"));
    (set.to_string(), token.sign_with(&rsa(), Algorithm::RS256))
}

fn jwk(key: &EncodingKey, algorithm: Algorithm, kid: &str) -> Value {
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(key, algorithm).unwrap()).unwrap();
    jwk["kid"] = json!(kid);
    jwk
}

fn with_kid(kid: Value) -> Token {
    good().header("alg", json!("RS256")).header("kid", kid)
}

#[tokio::test]
async fn b40_key_ids_choose_a_key_and_nothing_else() {
    let mut second = jwk(&ec(), Algorithm::ES256, "second");
    second["use"] = json!("sig");
    let symmetric = json!({ "kty": "oct", "kid": "symmetric", "k": URL_SAFE_NO_PAD.encode(SECRET) });
    let mut encrypting = jwk(&rsa(), Algorithm::RS256, "encrypting");
    encrypting["use"] = json!("enc");
    let set = json!({ "keys": [jwk(&rsa(), Algorithm::RS256, "first"), second, symmetric, encrypting] });
    let file = scratch("jwks").join("jwks.json");
    std::fs::write(&file, set.to_string()).unwrap();
    let setup = Setup::new().without("JWT_SECRET").env("JWT_JWKS", file.to_str().unwrap());
    quietly(setup, async |stack| {
        let by_rsa = |token: Token| token.sign_with(&rsa(), Algorithm::RS256);
        let by_ec = |kid: &str| {
            good().header("alg", json!("ES256")).header("kid", json!(kid)).sign_with(&ec(), Algorithm::ES256)
        };
        refused(
            stack,
            4401,
            &[
                ("a path", by_rsa(with_kid(json!("../../etc/passwd")))),
                ("SQL", by_rsa(with_kid(json!("' or 1=1 --")))),
                ("a number", by_rsa(with_kid(json!(1)))),
                ("empty", by_rsa(with_kid(json!("")))),
                ("unknown", by_rsa(with_kid(json!("third")))),
                ("10 KB", by_rsa(with_kid(json!("k".repeat(10_000))))),
                ("none", by_rsa(good().header("alg", json!("RS256")))),
                ("the other key's", by_rsa(with_kid(json!("second")))),
                ("the other key's, its algorithm", by_ec("first")),
                ("a symmetric key's", good().header("kid", json!("symmetric")).sign()),
                ("an encrypting key's", by_rsa(with_kid(json!("encrypting")))),
            ],
        )
        .await;
        accepted(stack, &[("the first", by_rsa(with_kid(json!("first")))), ("the second", by_ec("second"))]).await;
    })
    .await;
}

/// An HTTP server that answers everything with `body` and counts who came.
pub struct Listener {
    url: String,
    visits: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Listener {
    async fn start(body: String) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), body).await
    }

    pub async fn start_at(addr: SocketAddr, body: String) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let visits = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&visits);
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { continue };
                counted.fetch_add(1, Ordering::Relaxed);
                let _ = stream.read(&mut [0; 4096]).await;
                let length = body.len();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
                let answer = format!("{head}Content-Length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { url, visits, _task: AbortOnDropHandle::new(task) }
    }

    fn visits(&self) -> usize {
        self.visits.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn b66_an_unknown_key_id_storm_keeps_no_known_key_out() {
    let keys = json!({ "keys": [jwk(&rsa(), Algorithm::RS256, "first"), jwk(&ec(), Algorithm::ES256, "second")] });
    let listener = Listener::start(keys.to_string()).await;
    // Not leased: the address is this test's own.
    let stack = Setup::new().without("JWT_SECRET").env("JWT_JWKS", &listener.url).start().await;
    let at_start = listener.visits();
    assert!(at_start >= 1, "the keys are loaded at start");
    let known = with_kid(json!("first")).sign_with(&rsa(), Algorithm::RS256);
    accepted(&stack, &[("a known key", known.clone())]).await;
    let mut codes = Vec::new();
    for storm in 0..20 {
        let token = with_kid(json!(format!("unknown-{storm}"))).sign_with(&rsa(), Algorithm::RS256);
        let mut dashboard = Dashboard::bring(stack.addr(), Bring::Join, "t1", &token).await;
        let error = dashboard.expect("error").await;
        let code = dashboard.close_code().await;
        // Final only where the issuer has just said that there is no such key.
        assert_eq!(error.data["retryInMs"].is_u64(), code == 1013, "{}", error.raw);
        codes.push(code);
    }
    let final_ones = codes.iter().filter(|code| **code == 4401).count();
    assert!(codes.iter().all(|code| matches!(code, 4401 | 1013)), "{codes:?}");
    let refreshes = listener.visits() - at_start;
    // The storm takes less than the minutes in which the reserve would fill up again.
    assert!(refreshes == final_ones && (4..12).contains(&refreshes), "{refreshes} refreshes, {codes:?}");
    accepted(&stack, &[("a known key", known)]).await;
    stack.refused(&["disconnects keys", "disconnects unauthorized", "joins keys", "joins unauthorized"]).await;
    stack.finish().await;
}

#[tokio::test]
async fn b41_keys_a_token_points_at_are_never_fetched() {
    let listener = Listener::start(json!({ "keys": [jwk(&rsa(), Algorithm::RS256, "evil")] }).to_string()).await;
    hostile(Setup::new(), &["disconnects unauthorized", "joins unauthorized"], async |stack, _| {
        let own_key = jwk(&rsa(), Algorithm::RS256, "evil");
        let pointing = |name: &str, value: Value| {
            good()
                .header("alg", json!("RS256"))
                .header("kid", json!("evil"))
                .header(name, value)
                .sign_with(&rsa(), Algorithm::RS256)
        };
        refused(
            stack,
            4401,
            &[
                ("jku", pointing("jku", json!(listener.url))),
                ("x5u", pointing("x5u", json!(listener.url))),
                ("jwk", pointing("jwk", own_key)),
                ("x5c", pointing("x5c", json!(["MIIB"]))),
                ("kid", good().header("kid", json!(listener.url)).sign_with(&rsa(), Algorithm::RS256)),
                (
                    "iss",
                    good()
                        .header("alg", json!("RS256"))
                        .claim("iss", json!(listener.url))
                        .sign_with(&rsa(), Algorithm::RS256),
                ),
            ],
        )
        .await;
    })
    .await;
    assert_eq!(listener.visits(), 0, "a token's address was visited");
}

#[tokio::test]
async fn b42_extensions_and_other_types_are_4401() {
    hostile(Setup::new(), &["disconnects unauthorized", "joins unauthorized"], async |stack, _| {
        refused(
            stack,
            4401,
            &[
                ("crit", good().header("crit", json!(["exp"])).sign()),
                ("unknown crit", good().header("crit", json!(["b64"])).header("b64", json!(false)).sign()),
                ("empty crit", good().header("crit", json!([])).sign()),
                ("zip", good().header("zip", json!("DEF")).sign()),
                ("typ JOSE", good().header("typ", json!("JOSE")).sign()),
                ("typ of a logout token", good().header("typ", json!("logout+jwt")).sign()),
                ("typ dpop", good().header("typ", json!("dpop+jwt")).sign()),
                ("typ number", good().header("typ", json!(7)).sign()),
                ("JWE", format!("{}.b.c.d", good().sign().split('.').next().unwrap())),
                ("JWE of five", ["eyJhbGciOiJkaXIiLCJlbmMiOiJBMTI4R0NNIn0", "", "AAAA", "AAAA", "AAAA"].join(".")),
            ],
        )
        .await;
        let mut no_type = good();
        no_type.header.as_object_mut().unwrap().remove("typ");
        accepted(
            stack,
            &[
                ("at+jwt", good().header("typ", json!("at+jwt")).sign()),
                ("application/at+jwt", good().header("typ", json!("application/at+jwt")).sign()),
                ("jwt", good().header("typ", json!("jwt")).sign()),
                ("no typ", no_type.sign()),
            ],
        )
        .await;
    })
    .await;
}
