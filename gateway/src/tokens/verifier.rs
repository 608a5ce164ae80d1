//! Verifies a token: its header, its signature, then its claims.

use std::sync::Arc;

use jsonwebtoken::{Header, Validation, decode, decode_header, errors::ErrorKind};

use super::claims::{Claims, Rules, UniqueClaims};
use super::error::TokenError;
use super::jwks::Jwks;
use super::keys::{self, Key};
use super::parts::LONGEST_TOKEN;
use crate::config::{ConfigError, JwtSettings, KeySource};

/// What a token's `typ` may be: RFC 7519 §5.1, and an access token's of RFC 9068 §2.1.
const TYPES: [&str; 3] = ["JWT", "at+jwt", "application/at+jwt"];

/// Verifies tokens. Cheap to clone.
#[derive(Clone)]
pub struct Tokens(Arc<Verifier>);

struct Verifier {
    keys: Keys,
    rules: Rules,
}

enum Keys {
    /// Secrets or a PEM file: each of them may have signed, whatever `kid` a token names.
    Fixed(Vec<Key>),
    Set(Box<Jwks>),
}

impl Tokens {
    /// Loads the configured keys and proves that the cryptography works, so that neither can fail at the first request. Only the
    /// keys of an issuer that does not answer come later.
    ///
    /// # Errors
    /// When there is no key, or it can't be used.
    pub async fn load(jwt: &JwtSettings) -> Result<Self, ConfigError> {
        keys::self_test();
        let keys = match jwt.keys()? {
            KeySource::Secret(secret) => Keys::Fixed(secret.keys().map(Key::from_secret).collect()),
            KeySource::PublicKeyFile(path) => Keys::Fixed(vec![Key::from_pem_file(path)?]),
            KeySource::Jwks(source) => Keys::Set(Box::new(Jwks::load(source).await?)),
        };
        Ok(Self(Arc::new(Verifier { keys, rules: Rules::new(&jwt.claims) })))
    }

    /// What the token says, once it is verified. Waits only when a JWKS has to be read again for an unknown key.
    ///
    /// # Errors
    /// Why the token is refused.
    pub async fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let Verifier { keys, rules } = &*self.0;
        let header = acceptable_header(token)?;
        let set;
        let candidates: Vec<&Key> = match keys {
            Keys::Fixed(keys) => keys.iter().collect(),
            Keys::Set(jwks) => {
                set = jwks.holding(header.kid.as_deref()).await.ok_or(TokenError::NoKeys)?;
                set.find(header.kid.as_deref())
            }
        };
        let mut refusal = TokenError::Invalid(if candidates.is_empty() { "unknown key" } else { "wrong algorithm" });
        for key in candidates.into_iter().filter(|key| key.algorithm == header.alg) {
            match signed_claims(token, key) {
                Ok(claims) => return rules.check(claims),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Reads a JWKS again every few minutes, for ever; returns at once when the keys can't change.
    pub async fn keep_fresh(&self) {
        if let Keys::Set(jwks) = &self.0.keys {
            jwks.keep_fresh().await;
        }
    }

    /// Whether tokens can be checked.
    pub fn are_loaded(&self) -> bool {
        match &self.0.keys {
            Keys::Fixed(_) => true,
            Keys::Set(jwks) => jwks.is_loaded(),
        }
    }

    /// The keys in use, in words.
    ///
    /// # Errors
    /// Why there are none yet.
    pub fn describe(&self) -> Result<String, String> {
        match &self.0.keys {
            Keys::Fixed(keys) => match &keys[..] {
                [key] => Ok(format!("one {:?} key", key.algorithm)),
                keys => Ok(format!("{} HS256 keys", keys.len())),
            },
            Keys::Set(jwks) => jwks.describe(),
        }
    }
}

/// Refuses what we don't implement, instead of overlooking it (RFC 7515 §4.1.11, RFC 8725).
fn acceptable_header(token: &str) -> Result<Header, TokenError> {
    if token.len() > LONGEST_TOKEN {
        return Err(TokenError::Invalid("too long"));
    }
    // Two dots make a signed token, four an encrypted one.
    if token.bytes().filter(|b| *b == b'.').count() != 2 {
        return Err(TokenError::Invalid("not a signed token"));
    }
    let header = decode_header(token).map_err(|_| TokenError::Invalid("malformed header"))?;
    if header.crit.is_some() || header.zip.is_some() || header.enc.is_some() {
        return Err(TokenError::Invalid("unsupported header"));
    }
    // Nothing is ever fetched from where a token points, and no key it brings along is believed.
    if header.jku.is_some() || header.jwk.is_some() || header.x5u.is_some() || header.x5c.is_some() {
        return Err(TokenError::Invalid("brings its own key"));
    }
    match header.typ.as_deref() {
        None => Ok(header),
        Some(typ) if TYPES.iter().any(|known| typ.eq_ignore_ascii_case(known)) => Ok(header),
        Some(_) => Err(TokenError::Invalid("wrong type")),
    }
}

/// Checks the signature and only that: the library accepts tokens that lack a claim it was told to check, so the claims
/// are ours to judge.
fn signed_claims(token: &str, key: &Key) -> Result<UniqueClaims, TokenError> {
    let mut validation = Validation::new(key.algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    let decoded = decode::<UniqueClaims>(token, &key.decoding, &validation).map_err(|error| {
        TokenError::Invalid(match error.kind() {
            ErrorKind::InvalidSignature => "wrong signature",
            ErrorKind::Json(_) | ErrorKind::Utf8(_) => "malformed claims",
            _ => "malformed",
        })
    })?;
    Ok(decoded.claims)
}
