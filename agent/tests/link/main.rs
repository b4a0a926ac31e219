//! The link against a real broker with mutual TLS, and against brokers that misbehave.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

mod addresses;
mod bed;
mod counting;
mod documents;
mod failures;
mod faults;
mod files;
mod hostile;
mod memory;
mod orders;
mod proxies;
mod reasons;
mod scripted;
mod storm;
mod websockets;
