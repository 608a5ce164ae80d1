//! Operation: configuration, check, logs, metrics, documents, processes and balancers.

pub mod balancers;
pub mod check;
pub mod configuration;
pub mod demo;
pub mod documents;
pub mod gateway_faults;
pub mod log_lines;
pub mod node;
pub mod observability;
pub mod process_faults;
pub mod warnings;
