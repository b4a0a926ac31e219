//! The same over TCP: TLS 1.2 or 1.3, with a certificate on either side. What a client may do is told
//! by the alternative names in its certificate.
//!
//! The files are read again when they changed, as certificates are renewed while the agent runs;
//! what cannot be used then is said, and what was there goes on.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::access::{Access, Rights};
use super::{Context, connection};
use crate::config::{ApiTlsConfig, CertificateName};
use crate::error_chain::chain;
use crate::key_file::{self, KeyFileError};
use crate::pem_file::{PemFileError, Stamp, certificates, stamp};

/// Connections over TCP that are served at once, beside those over the socket; further ones wait in
/// the kernel's queue.
pub(super) const MAX_CONNECTIONS: usize = 8;
/// For the handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// The API cannot be offered over TCP.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A certificate cannot be read.
    #[error(transparent)]
    File(#[from] PemFileError),
    /// The key cannot be read.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The key's file holds none.
    #[error("the private key {0} holds no usable PEM section")]
    NoKey(PathBuf),
    /// What is in the files cannot be used.
    #[error("{what} cannot be used")]
    Unusable {
        /// What of it.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The port cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// The way in over TCP.
#[derive(Debug)]
pub struct Remote {
    listener: TcpListener,
    config: Arc<ApiTlsConfig>,
    files: Mutex<Files>,
}

#[derive(Debug)]
struct Files {
    stamps: [Stamp; 3],
    server: Arc<ServerConfig>,
    /// Whether it was said that they cannot be used as they are now.
    complained: bool,
}

impl Remote {
    /// Reads the files and listens. Called inside the async runtime.
    ///
    /// # Errors
    /// A file cannot be used, or the port cannot be had.
    pub async fn start(config: &ApiTlsConfig) -> Result<Self, RemoteError> {
        let (stamps, server) = (stamps(config)?, Arc::new(read(config)?));
        let files = Files { stamps, server, complained: false };
        let address = config.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| RemoteError::Listen { address, source })?;
        Ok(Self { listener, config: Arc::new(config.clone()), files: Mutex::new(files) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What is made of the files as they are now, or as they last could be used.
    fn acceptor(&self) -> TlsAcceptor {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let renewed = stamps(&self.config).and_then(|stamps| match stamps == files.stamps {
            true => Ok(None),
            false => Ok(Some((stamps, Arc::new(read(&self.config)?)))),
        });
        match renewed {
            Ok(None) => files.complained = false,
            Ok(Some((stamps, server))) => {
                tracing::info!("the certificates of the API were read again");
                *files = Files { stamps, server, complained: false };
            }
            Err(error) if !files.complained => {
                let error = chain(&error);
                tracing::warn!(error, "the API goes on with the certificates that it had");
                files.complained = true;
            }
            Err(_) => {}
        }
        TlsAcceptor::from(Arc::clone(&files.server))
    }
}

fn stamps(config: &ApiTlsConfig) -> Result<[Stamp; 3], RemoteError> {
    Ok([
        stamp("certificate", &config.certificate)?,
        stamp("private key", &config.key)?,
        stamp("authorities' certificates", &config.client_ca)?,
    ])
}

fn read(config: &ApiTlsConfig) -> Result<ServerConfig, RemoteError> {
    let provider = Arc::new(ring::default_provider());
    let of_clients = |source: Box<dyn std::error::Error + Send + Sync>| {
        let what = format!("a certificate in {}", config.client_ca.display());
        RemoteError::Unusable { what, source }
    };
    let mut authorities = RootCertStore::empty();
    for certificate in certificates("authorities' certificates", &config.client_ca)? {
        authorities.add(certificate).map_err(|error| of_clients(error.into()))?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider.clone())
            .build()
            .map_err(|error| of_clients(error.into()))?;
    let own = certificates("certificate", &config.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&key_file::read_given(&config.key)?)
        .map_err(|_| RemoteError::NoKey(config.key.clone()))?;
    let pair = |source: rustls::Error| {
        let (certificate, key) = (config.certificate.display(), config.key.display());
        let what = format!("the certificate {certificate} with the key {key}");
        RemoteError::Unusable { what, source: source.into() }
    };
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own, key)
        .map_err(pair)?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each connection is judged anew.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(server)
}

/// Somebody who has connected and not yet said who it is.
pub(super) struct Greeting {
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    config: Arc<ApiTlsConfig>,
}

/// Waits for somebody; for ever if there is no way in.
pub(super) async fn accept(remote: Option<&Remote>) -> io::Result<Greeting> {
    let Some(remote) = remote else { return std::future::pending().await };
    let (stream, peer) = remote.listener.accept().await?;
    let (acceptor, config) = (remote.acceptor(), Arc::clone(&remote.config));
    Ok(Greeting { stream, peer, acceptor, config })
}

/// The handshake, then one request.
pub(super) async fn serve(greeting: Greeting, context: Arc<Context>) {
    let Greeting { stream, peer, acceptor, config } = greeting;
    let stream = match timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "no TLS with an API client");
            return;
        }
        Err(_) => {
            tracing::debug!(%peer, "the TLS handshake of an API client took too long");
            return;
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let access = certificate.map_or(Access::None, |certificate| judge(certificate, &config));
    let rights = Rights {
        access,
        changers: "only those whose certificate has a name in api.tls.change",
        readers: "only those whose certificate has a name in api.tls.change or api.tls.read",
    };
    connection::serve(stream, &peer.to_string(), rights, context).await;
}

fn judge(certificate: &CertificateDer<'_>, config: &ApiTlsConfig) -> Access {
    let Ok(certificate) = ParsedCertificate::try_from(certificate) else { return Access::None };
    let has_one_of = |names: &[CertificateName]| {
        names.iter().any(|name| verify_server_name(&certificate, name.as_name()).is_ok())
    };
    if has_one_of(&config.change) {
        Access::Full
    } else if has_one_of(&config.read) {
        Access::Read
    } else {
        Access::None
    }
}
