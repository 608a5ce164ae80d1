//! Tokens: claims, signatures, revocation.

pub mod claims;
pub mod kicks;
pub mod signatures;
