//! The store against real LMDB files, real child processes and real file systems.

#![allow(clippy::unwrap_used, reason = "a test may end at any of them")]

mod basics;
mod crash;
mod damage;
mod disk;
mod golden;
mod random;
mod room;
mod scenario;
mod support;
