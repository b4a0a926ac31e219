//! How far the fetching of an image or an artifact is.

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes downloaded (or found here), or unpacked, according to the phase; of an image, compressed.
    pub bytes_done: u64,
    /// Bytes of the phase; unknown while resolving.
    pub bytes_total: Option<u64>,
    /// Layers of an image, or files of an artifact, downloaded or unpacked.
    pub layers_done: usize,
    /// How many there are; 0 while that is not known.
    pub layers_total: usize,
}

/// Its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Finding out what the name stands for.
    #[default]
    Resolving,
    /// Fetching it.
    Downloading,
    /// Comparing it with what it must be.
    Verifying,
    /// Making files of it.
    Unpacking,
}
