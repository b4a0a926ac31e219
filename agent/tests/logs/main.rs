//! What containers say, on real containerds 1.6, 1.7 and 2.x: `coracle-log` started by their shims,
//! `coracle logs` reading.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

mod bed;
mod command;
mod disk;
mod life;
mod loud;
mod process;
