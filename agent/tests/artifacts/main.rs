//! Artifacts and runtime directories, against a web server that fails as told, with ZIPs good and
//! bad, and after a crash at every step.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

mod bed;
mod crash;
mod disk;
mod downloading;
mod hostile;
mod installing;
mod runtime;
#[path = "../images/tls_front.rs"]
mod tls_front;
mod zips;
