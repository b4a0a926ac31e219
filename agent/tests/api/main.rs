//! The API over a real Unix socket: what it answers, and whom it lets in.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

mod access;
#[path = "../api_support/mod.rs"]
mod api_support;
mod document;
mod events;
mod idempotency;
mod limits;
mod logs;
mod native;
mod resources;
mod tls;
