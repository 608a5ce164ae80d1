//! Keys, each with the one algorithm it is for.

use std::path::Path;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, crypto};
use publisher::internals::sanitised;
use serde::Deserialize;
use serde_json::Value;

use crate::config::ConfigError;

/// A key and its algorithm.
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

/// Signs and verifies once. The JWT library finds its cryptography at run time, and panics when the build left it out:
/// that must happen at the start.
pub(super) fn self_test() {
    let (key, check) = (EncodingKey::from_secret(b"self-test"), DecodingKey::from_secret(b"self-test"));
    let signature = crypto::sign(b"message", &key, Algorithm::HS256).expect("HS256 signs with any key");
    let verified =
        crypto::verify(&signature, b"message", &check, Algorithm::HS256).expect("HS256 verifies with any key");
    assert!(verified, "a signature of our own must verify");
}

impl Key {
    pub(super) fn from_secret(secret: &str) -> Self {
        Self { algorithm: Algorithm::HS256, decoding: DecodingKey::from_secret(secret.as_bytes()) }
    }

    pub(super) fn from_pem_file(path: &Path) -> Result<Self, ConfigError> {
        let refuse = |rule: String| ConfigError::with_value("JWT_PUBLIC_KEY_FILE", &path.to_string_lossy(), rule);
        let pem = std::fs::read(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
        Self::from_pem(&pem).map_err(|rule| refuse(rule.to_owned()))
    }

    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        let text = String::from_utf8_lossy(pem);
        if text.contains("PRIVATE KEY-----") {
            return Err("is a private key, which must not be here; give the public one (openssl pkey -pubout)");
        }
        if text.contains("CERTIFICATE-----") {
            return Err("is a certificate; give the public key in it (openssl x509 -pubkey -noout)");
        }
        let (algorithm, decoding): (_, DecodingKey) = if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
            (Algorithm::RS256, key)
        } else if let Ok(key) = DecodingKey::from_ec_pem(pem) {
            // An uncompressed point: one byte and two coordinates.
            let algorithm = if key.try_get_as_bytes().is_ok_and(|point| point.len() == 97) {
                Algorithm::ES384
            } else {
                Algorithm::ES256
            };
            (algorithm, key)
        } else {
            (
                Algorithm::EdDSA,
                DecodingKey::from_ed_pem(pem)
                    .map_err(|_| "must be a public key in PEM: RSA, P-256, P-384 or Ed25519")?,
            )
        };
        let key = Self { algorithm, decoding };
        if key.is_usable() { Ok(key) } else { Err("must be RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519") }
    }

    /// A published key, or the reason why no token can be verified with it.
    fn from_jwk(jwk: &Jwk) -> Result<Self, &'static str> {
        const CURVES: &str = "its curve is none of P-256, P-384 and Ed25519";
        const ALGORITHM: &str = "its alg is none that its kty signs with";
        if jwk.common.public_key_use.as_ref().is_some_and(|u| *u != PublicKeyUse::Signature) {
            return Err("its use is not sig");
        }
        if jwk.common.key_operations.as_ref().is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
            return Err("its key_ops lack verify");
        }
        let (family, default) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (AlgorithmFamily::Rsa, Algorithm::RS256),
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => (AlgorithmFamily::Ec, Algorithm::ES256),
                EllipticCurve::P384 => (AlgorithmFamily::Ec, Algorithm::ES384),
                _ => return Err(CURVES),
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (AlgorithmFamily::Ed, Algorithm::EdDSA)
            }
            AlgorithmParameters::OctetKeyPair(_) => return Err(CURVES),
            AlgorithmParameters::OctetKey(_) => return Err("it is a shared secret, and published"),
            _ => return Err("its kty is none of RSA, EC and OKP"),
        };
        let algorithm = match jwk.common.key_algorithm {
            None => default,
            Some(named) => Algorithm::try_from(named).map_err(|_| ALGORITHM)?,
        };
        // RSA leaves the choice of hash and padding to `alg`; a curve has exactly one algorithm.
        if algorithm.family() != family || (family != AlgorithmFamily::Rsa && algorithm != default) {
            return Err(ALGORITHM);
        }
        let key = DecodingKey::from_jwk(jwk).ok().map(|decoding| Self { algorithm, decoding });
        key.filter(Self::is_usable).ok_or("it is broken, or too small")
    }

    /// With a weak or broken key every token would be refused, one by one: better that the gateway refuses to start.
    fn is_usable(&self) -> bool {
        let parses = |algorithm: &'static dyn VerificationAlgorithm, bytes: &[u8]| {
            ParsedPublicKey::new(algorithm, bytes).is_ok()
        };
        match (self.decoding.try_get_as_bytes(), self.algorithm) {
            (Ok(point), Algorithm::ES256) => parses(&ECDSA_P256_SHA256_FIXED, point),
            (Ok(point), Algorithm::ES384) => parses(&ECDSA_P384_SHA384_FIXED, point),
            (Ok(point), Algorithm::EdDSA) => parses(&ED25519, point),
            // Parsing does not look at the size, verifying does. 2048 bits are 256 bytes; the DER adds a dozen.
            (Ok(der), _) => (256..=1048).contains(&der.len()) && parses(&RSA_PKCS1_2048_8192_SHA256, der),
            (Err(_), _) => match self.decoding.kind() {
                jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, e } => {
                    (256..=1024).contains(&n.len()) && !e.is_empty()
                }
                jsonwebtoken::DecodingKeyKind::SecretOrDer(_) => false,
            },
        }
    }
}

/// The usable keys of a JWKS, with their names.
pub(super) struct KeySet {
    keys: Vec<(Option<String>, Key)>,
    /// Its other entries as text, each with the reason why it is ignored.
    pub(super) passed_over: Vec<String>,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// An issuer has no more keys than this.
    const MOST_KEYS: usize = 64;

    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let set: Document = serde_json::from_slice(json).map_err(|error| format!("is no JWKS: {error}"))?;
        if set.keys.len() > Self::MOST_KEYS {
            return Err(format!("holds more than {} keys", Self::MOST_KEYS));
        }
        let (mut keys, mut passed_over) = (Vec::new(), Vec::new());
        for (index, entry) in set.keys.iter().enumerate() {
            let jwk = Jwk::deserialize(entry).map_err(|error| format!("it is no JWK: {error}"));
            match jwk.and_then(|jwk| Ok((Key::from_jwk(&jwk)?, jwk.common.key_id))) {
                Ok((key, name)) => keys.push((name, key)),
                Err(why) => {
                    let name = entry.get("kid").and_then(Value::as_str).map(|kid| format!(" ({})", sanitised(kid)));
                    passed_over.push(format!("key {}{}: {}", index + 1, name.unwrap_or_default(), sanitised(&why)));
                }
            }
        }
        if keys.is_empty() {
            let why: String = passed_over.iter().take(3).map(|entry| format!("; {entry}")).collect();
            return Err(format!("holds no public key to verify signatures with (RSA, P-256, P-384 or Ed25519){why}"));
        }
        Ok(Self { keys, passed_over })
    }

    /// The keys with this name; RFC 7517 §4.5 allows several. When the token or the key has no name, the set's only key is meant.
    pub(super) fn find(&self, kid: Option<&str>) -> Vec<&Key> {
        match (kid, self.keys.as_slice()) {
            (None, [(_, only)]) | (Some(_), [(None, only)]) => vec![only],
            (None, _) => Vec::new(),
            (Some(_), keys) => keys.iter().filter(|(name, _)| name.as_deref() == kid).map(|(_, key)| key).collect(),
        }
    }

    pub(super) fn describe(&self) -> String {
        let algorithms: Vec<_> = self.keys.iter().map(|(_, key)| format!("{:?}", key.algorithm)).collect();
        let others: String = self.passed_over.iter().map(|entry| format!("; not used: {entry}")).collect();
        format!("{} key(s) of a JWKS: {}{others}", algorithms.len(), algorithms.join(", "))
    }
}
