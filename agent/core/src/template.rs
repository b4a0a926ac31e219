//! Configurations and the templates that they must satisfy.
//!
//! A template can take for ever to judge by, or more memory than there is, or end the process: a
//! gateway has it done by a program of its own, `coracle-config-check`, which can be stopped. What
//! is said to it and what it says is in [`exchange`]. The judgement itself is there with the
//! feature `templates` only, so that the agent carries none of it.

use std::sync::Arc;

use serde_json::Value;

#[cfg(feature = "templates")]
mod evaluate;
pub mod exchange;

#[cfg(feature = "templates")]
pub use evaluate::{MAX_DEPTH, MAX_SCHEMA_BYTES, evaluate, evaluate_all};

/// A configuration and the template that it must satisfy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigCheck {
    /// JSON Schema; workloads of one type share it.
    pub schema: Arc<Value>,
    /// JSON Pointer of the schema in the order.
    pub schema_path: String,
    /// The configuration.
    pub value: Value,
    /// JSON Pointer of the configuration in the order.
    pub value_path: String,
}
