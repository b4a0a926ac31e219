//! Probes of real servers in real network namespaces. Needs root.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

mod bed;
mod commands;
mod cost;
mod hostile;
mod verdicts;
