//! The same over TCP: whom a certificate lets in, and to what.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use coracle::api::Remote;
use coracle::config::{ApiConfig, ApiTlsConfig};
use coracle_testbed::Pki;
use coracle_testbed::pki::Identity;
use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

use crate::api_support::{Answer, FakeAgent, SOON};

struct Site {
    _dir: TempDir,
    pki: Pki,
    tls: ApiTlsConfig,
}

fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(&dir.path().join("pki")).unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let name = |name: &str| name.to_owned().try_into().unwrap();
    let tls = ApiTlsConfig {
        listen,
        certificate: pki.server().cert.clone(),
        key: pki.server().key.clone(),
        client_ca: pki.ca(),
        change: vec![name("ops.example")],
        read: vec![name("monitor.example")],
    };
    Site { _dir: dir, pki, tls }
}

fn agent(site: &Site) -> FakeAgent {
    FakeAgent::configured(ApiConfig { tls: Some(site.tls.clone()), ..ApiConfig::default() })
}

/// One request with this certificate, if any.
fn ask(site: &Site, with: Option<&Identity>, line: &str) -> io::Result<Answer> {
    let mut stream = connect(site.tls.listen, &site.pki.ca(), with)?;
    stream
        .write_all(format!("{line} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
}

fn connect(
    address: SocketAddr,
    ca: &Path,
    with: Option<&Identity>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match with {
        Some(Identity { cert, key }) => {
            let chain = vec![CertificateDer::from_pem_file(cert).unwrap()];
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
                .unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, stream))
}

#[test]
fn names_in_certificates_decide() {
    let site = site();
    let agent = agent(&site);
    let named = |name: &str| site.pki.named_client(name).unwrap();
    let (ops, monitor, other) =
        (named("ops.example"), named("monitor.example"), named("x.example"));
    let stop = "POST /v1/workloads/web/stop";
    assert_eq!(ask(&site, Some(&ops), "GET /v1/status").unwrap().status, 200);
    assert_eq!(ask(&site, Some(&ops), stop).unwrap().status, 200);
    assert_eq!(ask(&site, Some(&monitor), "GET /v1/openapi.json").unwrap().status, 200);
    let denied = ask(&site, Some(&monitor), stop).unwrap().problem();
    let who = "only those whose certificate has a name in api.tls.change may start and stop";
    assert!(denied.0 == 403 && denied.2.starts_with(who), "{denied:?}");
    // Its common name is no name.
    for stranger in [&other, &site.pki.client("ops.example").unwrap()] {
        let denied = ask(&site, Some(stranger), "GET /v1/status").unwrap().problem();
        assert!(denied.0 == 403 && denied.2.contains("may use this API"), "{denied:?}");
    }
    assert_eq!(agent.facts.lock().unwrap().operated.len(), 1);
    assert_eq!(agent.ask("GET", "/v1/status", b"").status, 200);
}

#[test]
fn without_a_good_certificate_there_is_no_tls() {
    let site = site();
    let _agent = agent(&site);
    let bad = [
        None,
        Some(site.pki.expired("ops.example").unwrap()),
        Some(site.pki.not_yet_valid("ops.example").unwrap()),
        Some(site.pki.foreign("ops.example").unwrap()),
    ];
    for identity in &bad {
        let answer = ask(&site, identity.as_ref(), "GET /v1/status");
        assert!(answer.is_err(), "{answer:?}");
    }
    let mut plain = TcpStream::connect(site.tls.listen).unwrap();
    plain.set_read_timeout(Some(SOON)).unwrap();
    plain.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut text = Vec::new();
    drop(plain.read_to_end(&mut text));
    assert!(!text.starts_with(b"HTTP"), "{text:?}");
}

#[test]
fn who_says_nothing_is_cut_off_and_holds_up_nobody() {
    let site = site();
    let agent = agent(&site);
    // All places over TCP, and more.
    let mut silent: Vec<_> =
        (0..12).map(|_| TcpStream::connect(site.tls.listen).unwrap()).collect();
    assert_eq!(agent.ask("GET", "/v1/status", b"").status, 200);
    silent[0].set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0);
    let ops = site.pki.named_client("ops.example").unwrap();
    assert_eq!(ask(&site, Some(&ops), "GET /v1/status").unwrap().status, 200);
}

#[test]
fn renewed_certificates_are_taken_and_damaged_ones_are_not() {
    let site = site();
    let _agent = agent(&site);
    let ops = site.pki.named_client("ops.example").unwrap();
    let foreign = site.pki.foreign("ops.example").unwrap();
    let ca = std::fs::read(site.pki.ca()).unwrap();
    let copy = site.tls.client_ca.clone();
    std::fs::write(&copy, "damaged").unwrap();
    // The client needs the true one.
    let asked = |with: &Identity| {
        let trusted = copy.with_file_name("trusted.pem");
        std::fs::write(&trusted, &ca).unwrap();
        let mut stream = connect(site.tls.listen, &trusted, Some(with))?;
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok::<_, io::Error>(text.split(' ').nth(1).map(str::to_owned))
    };
    assert_eq!(asked(&ops).unwrap().as_deref(), Some("200"));
    std::fs::copy(site.pki.foreign_ca(), &copy).unwrap();
    // Another authority: its certificates are in, without a name that is listed, and others out.
    assert_eq!(asked(&foreign).unwrap().as_deref(), Some("403"));
    assert!(asked(&ops).is_err());
}

#[test]
fn what_cannot_be_used_is_named() {
    let site = site();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = |tls: &ApiTlsConfig| {
        let error = runtime.block_on(Remote::start(tls)).unwrap_err();
        coracle::error_chain::chain(&error)
    };
    let missing = ApiTlsConfig { certificate: "/no/such.pem".into(), ..site.tls.clone() };
    assert!(refused(&missing).contains("cannot read the certificate /no/such.pem: No such file"));
    let others = site.pki.client("x").unwrap().key;
    let unfit = ApiTlsConfig { key: others, ..site.tls.clone() };
    assert!(refused(&unfit).contains("cannot be used"), "{}", refused(&unfit));
    let link = site.tls.key.with_file_name("link.key");
    std::os::unix::fs::symlink(&site.tls.key, &link).unwrap();
    let linked = ApiTlsConfig { key: link, ..site.tls.clone() };
    assert!(refused(&linked).contains("cannot read the key file"), "{}", refused(&linked));
    let no_ca = ApiTlsConfig { client_ca: site.tls.key.clone(), ..site.tls.clone() };
    assert!(refused(&no_ca).contains("holds no usable PEM section"), "{}", refused(&no_ca));
    let taken = TcpListener::bind(site.tls.listen).unwrap();
    assert!(refused(&site.tls).contains("cannot listen on 127.0.0.1:"));
    drop(taken);
}
