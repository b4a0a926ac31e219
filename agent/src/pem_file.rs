//! Files with certificates and keys: read within limits, and told from their next version.
//!
//! In: paths. Out: DER, or which file cannot be used and why, with nothing of its content.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// No certificate chain and no key is larger, in bytes.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// A file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PemFileError {
    /// It cannot be read.
    #[error("cannot read the {what} {path}")]
    Read {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is larger than any certificate or key.
    #[error("the {what} {path} is larger than {MAX_FILE_BYTES} bytes")]
    TooLarge {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
    },
    /// It holds no PEM section of the kind that is needed.
    #[error("the {what} {path} holds no usable PEM section")]
    NotPem {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
    },
}

/// What tells one version of a file from the next without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    length: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl From<Metadata> for Stamp {
    fn from(metadata: Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            length: metadata.len(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        }
    }
}

/// The stamp of a regular file.
///
/// # Errors
/// There is none.
pub fn stamp(what: &'static str, path: &Path) -> Result<Stamp, PemFileError> {
    let unreadable = |source| PemFileError::Read { what, path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        // A FIFO would be waited for without end.
        let kind = std::io::ErrorKind::InvalidInput;
        return Err(unreadable(std::io::Error::new(kind, "it is not a regular file")));
    }
    Ok(metadata.into())
}

/// The certificates in a file, at least one.
///
/// # Errors
/// The file cannot be read, or holds none.
pub fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, PemFileError> {
    let bytes = read_limited(what, path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(PemFileError::NotPem { what, path: path.into() }),
    }
}

/// All of a file.
///
/// # Errors
/// It cannot be read, or is too large.
pub fn read_limited(what: &'static str, path: &Path) -> Result<Vec<u8>, PemFileError> {
    let unreadable = |source| PemFileError::Read { what, path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(PemFileError::TooLarge { what, path: path.into() });
    }
    Ok(bytes)
}
