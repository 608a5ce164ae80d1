//! This machine: what its processes use, and the processes that a run starts.

pub mod child;
pub mod process;
