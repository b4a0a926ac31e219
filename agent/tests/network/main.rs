//! Networks of pods with the real plugins, each test on a "host" of its own: a network and a mount
//! namespace, so that the machine stays as it is. Needs root.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

mod crash;
mod host;
mod many;
mod names;
mod peers;
mod plugins;
mod ports;
mod removal;
mod share;
mod update;
