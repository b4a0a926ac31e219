//! The gateway agent: daemon and command line in one binary.
//!
//! The house is a pyramid: `main`, `agent`, `event_loop`, `execute`, the adapters, then
//! `coracle-core` and `coracle-protocol`. The adapters (`runtime`, `images`, `store`, `link`,
//! `trust`, `api`, `cli`) never use each other; what two of them need is on the ground floor
//! (`containerd`, `config`, `clock`).

pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod containerd;
pub mod event_loop;
pub mod execute;
pub mod images;
pub mod intake;
pub mod journal;
pub mod link;
pub mod machine;
pub mod runtime;
pub mod status;
pub mod store;
pub mod trust;
