//! The agent's decisions.
//!
//! In: a desired state, what was observed, the history, the time. Out: a [`Plan`](plan::Plan) and a
//! report. Deliberately not here: async, I/O, clocks, randomness. The core cannot fail: obstacles
//! are data in the plan.

pub mod artifact;
pub mod backlog;
pub mod backoff;
pub mod budget;
pub mod command;
pub mod desired;
pub mod digest;
pub mod facts;
pub mod health;
pub mod history;
pub mod image;
pub mod key;
pub mod name;
pub mod observed;
pub mod order;
pub mod orders;
pub mod plan;
pub mod policy;
pub mod probe;
pub mod reconcile;
pub mod record;
pub mod refusals;
#[cfg(test)]
mod refused;
pub mod report;
pub mod rollout;
pub mod situation;
mod structure;
pub mod template;
pub mod text;
pub mod traffic;
mod words;
