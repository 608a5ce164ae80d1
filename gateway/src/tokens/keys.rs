//! Keys, each with the one algorithm it is for.

use std::path::Path;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, crypto};

use crate::config::{ConfigError, Secret};

/// A key and its algorithm.
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

/// Signs and verifies once. The JWT library finds its cryptography at run time, and panics when the build left it out:
/// that shall happen here.
pub(super) fn self_test() {
    let (key, check) = (EncodingKey::from_secret(b"self-test"), DecodingKey::from_secret(b"self-test"));
    let signature = crypto::sign(b"message", &key, Algorithm::HS256).expect("HS256 signs with any key");
    let verified =
        crypto::verify(&signature, b"message", &check, Algorithm::HS256).expect("HS256 verifies with any key");
    assert!(verified, "a signature of our own must verify");
}

impl Key {
    pub(super) fn from_secret(secret: &Secret) -> Self {
        Self { algorithm: Algorithm::HS256, decoding: DecodingKey::from_secret(secret.expose().as_bytes()) }
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

    /// Whether a published key is one we verify with; the others of a set are none of our business.
    fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let signs = jwk.common.public_key_use.as_ref().is_none_or(|u| *u == PublicKeyUse::Signature)
            && jwk.common.key_operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        let (family, default) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (AlgorithmFamily::Rsa, Algorithm::RS256),
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => (AlgorithmFamily::Ec, Algorithm::ES256),
                EllipticCurve::P384 => (AlgorithmFamily::Ec, Algorithm::ES384),
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (AlgorithmFamily::Ed, Algorithm::EdDSA)
            }
            // A shared secret in a public document is none.
            _ => return None,
        };
        let algorithm = match jwk.common.key_algorithm {
            None => default,
            Some(named) => Algorithm::try_from(named).ok()?,
        };
        // RSA leaves the choice of hash and padding to `alg`; a curve has exactly one algorithm.
        let fits = algorithm.family() == family && (family == AlgorithmFamily::Rsa || algorithm == default);
        let key = Self { algorithm, decoding: DecodingKey::from_jwk(jwk).ok()? };
        (signs && fits && key.is_usable()).then_some(key)
    }

    /// A weak or broken key would refuse every token, later and one by one.
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
pub(super) struct KeySet(Vec<(Option<String>, Key)>);

impl KeySet {
    /// More is no set of one issuer's keys.
    const MOST_KEYS: usize = 64;

    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let set: JwkSet = serde_json::from_slice(json).map_err(|error| format!("is no JWKS: {error}"))?;
        if set.keys.len() > Self::MOST_KEYS {
            return Err(format!("holds more than {} keys", Self::MOST_KEYS));
        }
        let keys: Vec<_> =
            set.keys.iter().filter_map(|jwk| Some((jwk.common.key_id.clone(), Key::from_jwk(jwk)?))).collect();
        if keys.is_empty() {
            return Err("holds no public key to verify signatures with (RSA, P-256, P-384 or Ed25519)".to_owned());
        }
        Ok(Self(keys))
    }

    /// The key of that name. Without a name to go by, on either side, only an only key can be meant.
    pub(super) fn find(&self, kid: Option<&str>) -> Option<&Key> {
        match (kid, self.0.as_slice()) {
            (None, [(_, only)]) | (Some(_), [(None, only)]) => Some(only),
            (None, _) => None,
            (Some(_), keys) => keys.iter().find(|(name, _)| name.as_deref() == kid).map(|(_, key)| key),
        }
    }

    pub(super) fn describe(&self) -> String {
        let algorithms: Vec<_> = self.0.iter().map(|(_, key)| format!("{:?}", key.algorithm)).collect();
        format!("{} key(s) of a JWKS: {}", algorithms.len(), algorithms.join(", "))
    }
}
