//! The runtime on real containerds 1.6, 1.7 and 2.x.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

mod bed;
mod confinement;
mod crash;
mod failure;
mod life;
