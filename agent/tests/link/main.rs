//! The link against a real broker with mutual TLS, and against brokers that misbehave.

#![allow(missing_docs, clippy::unwrap_used)]

mod bed;
mod documents;
mod failures;
mod files;
mod hostile;
mod orders;
