//! Redis: its faults, one server, Sentinels and a Cluster.

pub mod access;
pub mod cluster;
pub mod faults;
pub mod sentinel;
pub mod way;
