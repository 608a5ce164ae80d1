//! Verifies the JWT that CrecheBooks issues: it says which tenants a client may see.
//!
//! The algorithm belongs to the key, and the key to the configuration. A token chooses, at most, which of the
//! configured keys signed it.

mod claims;
mod error;
mod explain;
mod jwks;
mod keys;
mod mint;
mod parts;
mod verifier;

pub(crate) use claims::kick_lifetime;
pub use claims::{Claims, LEEWAY, LONGEST_SUBJECT, LONGEST_TIMER, MOST_TENANTS};
pub use error::TokenError;
pub use explain::explain;
pub use mint::mint;
pub use parts::{Hints, LONGEST_TOKEN};
pub use verifier::Tokens;

#[cfg(test)]
mod tests;
