//! Keeping what containers say, on the gateway: the format of a line, the files, and the program
//! `coracle-log`, one process for each container.
//!
//! `main` (signals, pipes) - `pump` (bytes to lines) - `writer` (lines to files, whatever the disk
//! does) - `files` (numbers, the cap of the gateway) - `line`. The agent reads with `line` and `files`.
//! Deliberately not here: threads, an async runtime, anything of the agent. One such process runs for
//! each container, so each page that it touches counts.

mod clock;
pub mod files;
pub mod line;
pub mod pump;
pub mod writer;
