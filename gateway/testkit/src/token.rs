//! Tokens: good ones, and every bad one an attacker would try.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};

/// The HS256 key of every gateway in these tests.
pub const SECRET: &str = "a secret that only these tests know, 48 bytes and";

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A JWT in the making, so that a test changes the one thing it is about.
#[derive(Debug, Clone)]
pub struct Token {
    pub header: Value,
    pub claims: Value,
}

impl Token {
    /// For one tenant, an hour long.
    pub fn of(tenant: &str) -> Self {
        Self::naming(json!(tenant))
    }

    /// With this tenant claim, whatever it is.
    pub fn naming(tenants: Value) -> Self {
        Self {
            header: json!({ "alg": "HS256", "typ": "JWT" }),
            claims: json!({ "sub": "bursar", "tenantId": tenants, "exp": now() + 3600 }),
        }
    }

    pub fn expiring_in(self, seconds: i64) -> Self {
        self.claim("exp", json!(now() as i64 + seconds))
    }

    pub fn claim(mut self, name: &str, value: Value) -> Self {
        self.claims[name] = value;
        self
    }

    pub fn without_claim(mut self, name: &str) -> Self {
        self.claims.as_object_mut().unwrap().remove(name);
        self
    }

    pub fn header(mut self, name: &str, value: Value) -> Self {
        self.header[name] = value;
        self
    }

    /// `header.claims`: what a signature covers.
    pub fn unsigned(&self) -> String {
        signing_input(&self.header.to_string(), &self.claims.to_string())
    }

    /// Signed with the key the gateways know.
    pub fn sign(&self) -> String {
        self.sign_with(&EncodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256)
    }

    pub fn sign_with(&self, key: &EncodingKey, algorithm: Algorithm) -> String {
        sign(&self.unsigned(), key, algorithm)
    }
}

/// Two JSON texts as a token's first two parts; texts, since some bad tokens are no JSON at all.
pub fn signing_input(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

pub fn sign(input: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    format!("{input}.{}", crypto::sign(input.as_bytes(), key, algorithm).unwrap())
}

/// Signed by the gateways' key, with claims given as text.
pub fn sign_claims_text(claims: &str) -> String {
    let input = signing_input(r#"{"alg":"HS256","typ":"JWT"}"#, claims);
    sign(&input, &EncodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256)
}
