//! The vocabulary that gateways and the fleet share: wire documents, the signed envelope, topics,
//! limits and refusals.
//!
//! In: bytes of a document. Out: typed values, or an error that names the place. Deliberately not
//! here: I/O, signature arithmetic, rules that need to know a gateway (see `coracle-core`).
//!
//! Inside one schema major version changes are additive only: unknown fields are tolerated on the
//! wire, so that old agents and new fleets can live together for years.

pub mod command;
pub mod desired;
pub mod envelope;
pub mod event;
pub mod health;
pub mod id;
pub mod limits;
pub mod piece;
pub mod pointer;
pub mod presence;
pub mod receipt;
pub mod refusal;
pub mod reported;
pub mod request;
pub mod time;
pub mod topic;

pub use command::{Command, CommandId, CommandResult, CommandState};
pub use desired::DesiredState;
pub use envelope::Envelope;
pub use health::{Health, Pulse};
pub use id::GatewayId;
pub use presence::Presence;
pub use refusal::{Code, Refusal};
pub use reported::ReportedState;
pub use time::Timestamp;
pub use topic::Topic;
