//! Whole gateways under test. In: the shipped binaries `coracle` and `coracle-fleet`, found by
//! [`coracle_testbed::bin`], and real containerds, brokers and registries. Out: facts, as the
//! binaries tell them.
//!
//! | module | what it gives |
//! |---|---|
//! | [`bench`] | what the agent costs, against a raw floor |
//! | [`callers`] | who calls a service from near and far, and counts what is lost |
//! | [`gateway`] | one gateway with everything around it: start, kill, order, ask, wait |
//! | [`facts`] | what `coracle status --json` and `coracle events --json` print |
//! | [`orders`] | desired states written in one line, and signing them, rightly and wrongly |
//! | [`service`] | the service that tests order, and its image |
//! | [`traces`] | what workloads may leave behind on a gateway |
//!
//! Deliberately not here: the agent's and the fleet's own crates. What they share with this crate
//! is the protocol; signatures are made by code of its own.

pub mod bench;
pub mod callers;
pub mod facts;
pub mod gateway;
pub mod native;
pub mod orders;
pub mod service;
pub mod traces;

pub use facts::{Happening, Status};
pub use gateway::{Gateway, Options};
pub use orders::Signer;
pub use traces::Traces;
