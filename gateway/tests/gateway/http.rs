//! HTTP: both ports.

pub mod billing_api;
pub mod cross_origin;
pub mod internal;
pub mod publish_api;
pub mod strict;
