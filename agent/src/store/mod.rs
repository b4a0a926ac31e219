//! What must survive a power cut: orders, histories, report sequences. LMDB through heed.
//!
//! In: accepted orders, records of containers and workloads, reservations, through a [`Store`]
//! handle. Out: [`Loaded`], once, at start; errors that name what to do. Deliberately not here:
//! signatures (whoever gets a [`Candidate`] verifies it), and any decision.
//!
//! One directory, mode 0700:
//!
//! | file | content |
//! |---|---|
//! | `store.mdb` | the LMDB file, whose records are below |
//! | `order.json`, `order.previous.json` | the two signed orders again, as plain files: the way out when `store.mdb` is lost |
//! | `store.damaged-N` | an earlier `store.mdb` that could not be used, the newest two |
//!
//! The records, each with a checksum, in one tree:
//!
//! | key | value | at most |
//! |---|---|---|
//! | `meta/schema` | version of the records | |
//! | `meta/generation` | highest generation accepted | |
//! | `meta/sequence` | report sequences handed out in this boot | |
//! | `order/current`, `order/previous` | the two newest orders | 1 MiB each |
//! | `order/kept/GENERATION` | older orders that are still needed: the last good definition of a workload is in them | 8 of 1 MiB |
//! | `history/CONTAINER` | attempts and outcomes of a container | 20,000 of 512 bytes |
//! | `workload/NAME` | a workload's last good definition, failed update, stop by hand | 2,000 of 1.5 KiB |
//! | `command/ID` | a command, and what became of it | 512 of 8 KiB |
//! | `event/SEQUENCE` | an event that the fleet has no receipt for | 1,024 of 2 KiB |
//! | `meta/commands` | the highest command that was forgotten | |
//! | `meta/backlog` | how events are numbered, how many were dropped | |
//! | `meta/usage` | what the link has used today, by kind | |
//!
//! Kept orders are in no plain file. If the LMDB file is lost they are, and so are the workloads'
//! records: then nothing is known of an update that failed, and it is tried again.
//!
//! A damaged LMDB file does not give an error but a signal (reading a map behind the end of its file
//! is SIGBUS), so a child process walks through it before every opening. Always, and not only after
//! an unclean stop: that needs no marker file to be written at each start and stop, which spares
//! flash, and it also finds what broke while the gateway was off. The file is some hundred KiB.
//!
//! LMDB runs in its default mode, durable, without a writable map: when [`Store::accept`] returns,
//! the order is on the disk. It is the first to be written and the one to be believed; the plain
//! files follow it.
//!
//! Commits happen on one thread of their own. The only unsafe code of the project is in `lmdb`.

mod check;
mod contents;
mod error;
mod handle;
mod lmdb;
mod migrations;
mod order_files;
mod orders;
mod records;
mod schema;
mod site;
mod wear;
mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;

use coracle_core::backlog::{BacklogRecord, EventRecord};
use coracle_core::budget::UsageRecord;
use coracle_core::command::{CommandRecord, CommandsRecord};
use coracle_core::digest::sha256_hex;
use coracle_core::history::{ContainerRecord, WorkloadRecord};
use coracle_core::name::{ContainerId, WorkloadName};
use coracle_protocol::CommandId;

pub use check::{CHECK_COMMAND, CheckOutcome, check, check_command, check_in_child, check_with};
pub use error::StoreError;
pub use handle::Store;
pub use lmdb::MAP_BYTES;
pub use schema::SCHEMA;
pub use wear::{StoreMetrics, Wear};

/// A signed order, byte for byte as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredOrder {
    /// Generation of the desired state inside.
    pub generation: u64,
    /// The DSSE envelope.
    pub envelope: Vec<u8>,
    /// SHA-256 of the envelope, in hexadecimal.
    pub digest: String,
}

impl StoredOrder {
    /// An order with its digest.
    pub fn new(generation: u64, envelope: Vec<u8>) -> Self {
        let digest = sha256_hex(&envelope);
        Self { generation, envelope, digest }
    }
}

/// What was there at start.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The accepted order, from the store itself. Its signature was good when it was accepted.
    pub current: Option<StoredOrder>,
    /// The accepted order before that one.
    pub previous: Option<StoredOrder>,
    /// Older orders that were to be kept, newest first, from the store itself.
    pub kept: Vec<StoredOrder>,
    /// No order with this generation or an older one is accepted any more; 0 before the first.
    pub highest_generation: u64,
    /// What is known of containers.
    pub histories: BTreeMap<ContainerId, ContainerRecord>,
    /// What is known of workloads.
    pub workloads: BTreeMap<WorkloadName, WorkloadRecord>,
    /// What is under way between gateway and fleet.
    pub talk: Talk,
    /// Only if there is no `current`: orders from plain files, best first. Each is to be verified,
    /// and given to [`Store::accept`]; the first that passes is the current one, even if storing it
    /// fails.
    pub candidates: Vec<Candidate>,
    /// Why nothing can be written, if so. Each write tries again.
    pub unwritable: Option<String>,
    /// What is wrong with the store, in words for people. The agent works all the same.
    pub trouble: Option<String>,
}

/// What is under way between gateway and fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Talk {
    /// Commands, whether they have ended or not.
    pub commands: BTreeMap<CommandId, CommandRecord>,
    /// What is known of all commands together.
    pub all_commands: CommandsRecord,
    /// Events that the fleet has no receipt for, by sequence.
    pub events: BTreeMap<u64, EventRecord>,
    /// What is known of all events together; none before the first.
    pub backlog: Option<BacklogRecord>,
    /// What the link has used; none before it was first written.
    pub usage: Option<UsageRecord>,
}

/// A signed order from a plain file. Nothing about it has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it comes from.
    pub origin: Origin,
    /// Which file.
    pub path: PathBuf,
    /// The order; its generation is read from the unverified content.
    pub order: StoredOrder,
}

/// Where an order comes from that the store itself did not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The last accepted order's plain file.
    OrderFile,
    /// The plain file of the accepted order before it.
    PreviousOrderFile,
    /// The orders that came with the OS image.
    Factory,
}
