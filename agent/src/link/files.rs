//! The link's certificates and key: files in, a TLS client configuration out.
//!
//! The files are looked at before every connection attempt and read again when they changed,
//! because certificates are renewed while the agent runs. Between changes the configuration stays
//! the same object, so that TLS sessions are resumed. Deliberately not here: the system's own
//! authorities, which have no say in who is our broker.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::pem_file::{PemFileError, Stamp, certificates, read_limited, stamp};

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] PemFileError),
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
        let stamps = self.stamps()?;
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

    /// Whether the files are others than those of the last configuration.
    pub(super) fn changed(&self) -> bool {
        match (&self.current, self.stamps()) {
            (Some((known, _)), Ok(stamps)) => *known != stamps,
            (None, Ok(_)) => true,
            (_, Err(_)) => false,
        }
    }

    fn stamps(&self) -> Result<[Stamp; 3], PemFileError> {
        Ok([
            stamp("authorities' certificates", &self.ca)?,
            stamp("certificate", &self.cert)?,
            stamp("private key", &self.key)?,
        ])
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
            .map_err(|_| PemFileError::NotPem { what, path: self.key.clone() })?;
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
