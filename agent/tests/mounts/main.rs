//! What containers find mounted: on real containerds, and after a crash at every step.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

#[path = "../runtime/bed.rs"]
#[allow(dead_code, reason = "the tests of the runtime use the rest")]
mod bed;
mod containers;
mod crash;
mod files;
mod support;
mod variables;
mod volumes;
