//! The store against real LMDB files, real child processes and real file systems.

mod basics;
mod crash;
mod damage;
mod disk;
mod golden;
mod random;
mod scenario;
mod support;
