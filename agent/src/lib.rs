//! The gateway agent: daemon and command line in one binary.
//!
//! The house is a pyramid: `main`, `agent`, `event_loop`, `execute`, the adapters, then
//! `coracle-core` and `coracle-protocol`. The adapters (`runtime`, `images`, `artifacts`, `mounts`, `network`,
//! `store`, `link`, `trust`, `health`, `output`, `api`, `cli`) never use each other; what two of them need is
//! on the ground floor (`containerd`, `config`, `clock`).

pub mod agent;
pub mod api;
pub mod artifacts;
pub mod cli;
pub mod clock;
pub mod config;
pub mod config_check;
pub mod conflist;
pub mod containerd;
pub mod error_chain;
pub mod event_loop;
pub mod execute;
pub mod fault;
pub mod file_system;
mod file_tree;
pub mod health;
pub mod http_client;
pub mod http_reply;
pub mod identity;
pub mod images;
pub mod intake;
pub mod journal;
pub mod key_file;
pub mod large_orders;
pub mod link;
mod locks;
pub mod logs;
pub mod machine;
pub mod mounts;
pub mod native_status;
pub mod network;
pub mod output;
pub mod pem_file;
pub mod policy;
pub mod ports;
pub mod preflight;
pub mod probes;
pub mod progress;
pub mod provision;
pub mod readiness;
pub mod reboot;
pub mod runtime;
pub mod seccomp_profile;
pub mod secret_env;
pub mod secrets;
pub mod status;
pub mod store;
pub mod systemd;
pub mod trust;
pub mod workload_identity;
