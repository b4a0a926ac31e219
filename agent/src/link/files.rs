//! The link's certificates and key: files in, a TLS client configuration out.
//!
//! The files are looked at before every connection attempt and read again when they changed,
//! because certificates are renewed while the agent runs. Between changes the configuration stays
//! the same object, so that TLS sessions are resumed. Deliberately not here: the system's own
//! authorities, which have no say in who is our broker.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// No certificate chain and no key is larger, in bytes.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// A file cannot be read.
    #[error("cannot read the {what} {path}")]
    Read {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is larger than any certificate or key.
    #[error("the {what} {path} is larger than {MAX_FILE_BYTES} bytes")]
    TooLarge {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
    },
    /// A file holds no PEM section of the kind that is needed.
    #[error("the {what} {path} holds no usable PEM section")]
    NotPem {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
    },
    /// The authorities' certificates cannot be used.
    #[error("a certificate in {path} cannot be used as an authority")]
    Authority {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The certificate and the key do not belong together, or are of a kind that is not supported.
    #[error("the certificate {cert} and the key {key} cannot be used together")]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// What tells one version of a file from the next without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
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

/// The three files, and the configuration that they last gave.
pub(super) struct Files {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    current: Option<([Stamp; 3], Arc<ClientConfig>)>,
}

impl Files {
    pub(super) fn new(ca: PathBuf, cert: PathBuf, key: PathBuf) -> Self {
        Self { ca, cert, key, current: None }
    }

    /// The configuration made of the files as they are now.
    ///
    /// # Errors
    /// A file cannot be read or used; the earlier configuration is not used in its place.
    pub(super) fn load(&mut self) -> Result<Arc<ClientConfig>, FilesError> {
        let stamps = [
            stamp("authorities' certificates", &self.ca)?,
            stamp("certificate", &self.cert)?,
            stamp("private key", &self.key)?,
        ];
        if let Some((known, config)) = &self.current {
            if *known == stamps {
                return Ok(Arc::clone(config));
            }
        }
        self.current = None;
        let config = Arc::new(self.read()?);
        self.current = Some((stamps, Arc::clone(&config)));
        Ok(config)
    }

    fn read(&self) -> Result<ClientConfig, FilesError> {
        let mut authorities = RootCertStore::empty();
        for certificate in certificates("authorities' certificates", &self.ca)? {
            authorities
                .add(certificate)
                .map_err(|source| FilesError::Authority { path: self.ca.clone(), source })?;
        }
        let chain = certificates("certificate", &self.cert)?;
        let what = "private key";
        let key = PrivateKeyDer::from_pem_slice(&read_limited(what, &self.key)?)
            .map_err(|_| FilesError::NotPem { what, path: self.key.clone() })?;
        let pair =
            |source| FilesError::Pair { cert: self.cert.clone(), key: self.key.clone(), source };
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(pair)?
            .with_root_certificates(authorities)
            .with_client_auth_cert(chain, key)
            .map_err(pair)?;
        config.resumption = Resumption::in_memory_sessions(2);
        Ok(config)
    }
}

/// Whether the three files can be used together.
///
/// # Errors
/// Why not; nothing of their content is in it.
pub fn check_files(
    ca: &Path,
    cert: &Path,
    key: &Path,
) -> Result<(), impl std::error::Error + use<>> {
    Files::new(ca.into(), cert.into(), key.into()).load().map(drop)
}

fn stamp(what: &'static str, path: &Path) -> Result<Stamp, FilesError> {
    let unreadable = |source| FilesError::Read { what, path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        // A FIFO would be waited for without end.
        let kind = std::io::ErrorKind::InvalidInput;
        return Err(unreadable(std::io::Error::new(kind, "it is not a regular file")));
    }
    Ok(metadata.into())
}

fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, FilesError> {
    let bytes = read_limited(what, path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(FilesError::NotPem { what, path: path.into() }),
    }
}

fn read_limited(what: &'static str, path: &Path) -> Result<Vec<u8>, FilesError> {
    let unreadable = |source| FilesError::Read { what, path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(FilesError::TooLarge { what, path: path.into() });
    }
    Ok(bytes)
}
