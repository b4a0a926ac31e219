//! TLS towards servers: rustls with ring, the system's root certificates and those configured.
//! Made when it is first needed and gone with what is fetched: an idle agent holds no certificates.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::{ClientConfig, Error, RootCertStore};

/// A connector that trusts the system's authorities and `own`.
pub(crate) fn connector(own: &[CertificateDer<'static>]) -> Result<TlsConnector, Error> {
    let mut roots = RootCertStore::empty();
    // What cannot be read or used does not hinder: a server vouched for by it is refused.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for certificate in own {
        roots.add(certificate.clone())?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}
