//! A whole gateway at the end of a serial line, emulated or real, with a hand on its power, its
//! network, its clock and its disks. In: the shipped agent in an image (or a flashed board). Out:
//! what the serial line, the broker and the network show.
//!
//! | module | what it gives |
//! |---|---|
//! | [`board`] | the gateway: boot, power cut, network, clock, disks, commands over the serial line |
//! | [`site`] | what is around it: broker, registry, certificates, its identity, orders and reports |
//! | [`field`] | both together, as tests want them |
//! | [`image`] | the read-only system it runs, built from packages, and changes to it |
//! | [`console`] | the serial line |
//! | [`qemu`] | the emulated machine |
//! | [`real`] | a board on the bench: a serial device and a command that switches its power |
//! | [`qmp`] | QEMU's control channel |
//! | [`writes`] | crash points: the data disk as it was after any flush |
//! | [`tools`] | QEMU's and the file systems' programs |
//!
//! Deliberately not here: the agent's and the fleet's own crates. Tests assert what comes over the
//! serial line, the broker or HTTP, and what `coracle --json` prints.

pub mod board;
pub mod console;
pub mod field;
pub mod image;
pub mod qemu;
pub mod qmp;
pub mod real;
pub mod site;
pub mod tools;
pub mod writes;

pub use board::{Board, Boot, LeftOut, Network};
pub use field::{Field, Wishes, hil};
pub use image::{Architecture, Change, Image};
pub use site::Site;
pub use writes::WriteLog;
