//! The runtime on real containerds 1.6, 1.7 and 2.x.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

mod bed;
mod confinement;
mod crash;
mod exec;
mod failure;
mod life;
mod limits;
mod logs;
mod native;
mod surroundings;
