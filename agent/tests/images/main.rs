//! Images against real containerds of each supported version, a real registry, and one that fails
//! as told.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

mod bed;
mod blobs;
mod resolving;
mod secure;
mod tls_front;
mod versions;
