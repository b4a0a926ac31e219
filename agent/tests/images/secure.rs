//! TLS and tokens, against small servers in front of the registry.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use coracle::config::{ContainerdConfig, RegistryConfig};
use coracle::images::Images;
use coracle_core::backoff::Retry;
use coracle_testbed::Pki;
use coracle_testbed::faulty::Fault;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::bed::{Bed, SHORT, chain, data_image, pull};
use crate::tls_front::tls_front;

fn images(bed: &Bed, registries: &[RegistryConfig]) -> Images {
    let address = bed.containerd.address().into();
    let config = ContainerdConfig { address, ..ContainerdConfig::default() };
    let client = coracle::containerd::Containerd::new(&config).unwrap();
    Images::new(client, registries).unwrap().with_timeouts(SHORT)
}

#[test]
fn a_registry_with_a_certificate_of_its_own_authority_is_trusted_if_configured() {
    let bed = Bed::any();
    let pki = Pki::new(&bed.place.run().join("pki")).unwrap();
    bed.registry.put(&data_image(&[1]), "app", "1");
    bed.run(async {
        let port = tls_front(&pki, bed.registry.address()).await;
        let host = format!("localhost:{port}");
        let reference = format!("{host}/app:1");
        let plain = RegistryConfig { host: bed.registry.address(), plain_http: true, ca: None };
        let with = |ca| RegistryConfig { host: host.clone(), plain_http: false, ca };

        let error = pull(&images(&bed, &[]), &reference).await.unwrap_err();
        assert!(chain(&error).contains("certificate"), "{}", chain(&error));
        assert_eq!(error.retry(), Retry::Backoff);

        let images = images(&bed, &[with(Some(pki.ca())), plain]);
        let to = format!("http://{}/v2/app/manifests/1", bed.registry.address());
        bed.registry.fail("/manifests/", 1, Fault::Redirect(to));
        let error = pull(&images, &reference).await.unwrap_err();
        assert!(error.to_string().contains("from HTTPS to plain HTTP"), "{error}");
        pull(&images, &reference).await.unwrap();
    });
}

#[test]
fn a_file_without_certificates_is_refused_at_start() {
    let bed = Bed::any();
    let path = bed.place.run().join("empty.pem");
    let config = ContainerdConfig::default();
    let result = bed.run(async {
        std::fs::write(&path, "").unwrap();
        let client = coracle::containerd::Containerd::new(&config).unwrap();
        let ca = Some(path.clone());
        Images::new(client, &[RegistryConfig { host: "r.x".into(), plain_http: false, ca }])
    });
    let text = result.unwrap_err().to_string();
    assert!(text.contains("r.x") && text.contains("empty.pem"), "{text}");
}

type Log = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// A registry that wants a token, gives one at `/token`, and has its content elsewhere.
async fn token_front(content: String, log: Log) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = move |request: Request<Incoming>| {
        let target = request.uri().to_string();
        let sent = request.headers().get("authorization");
        let sent = sent.map(|value| value.to_str().unwrap().to_owned());
        log.lock().unwrap().push((target.clone(), sent.clone()));
        let response = Response::builder();
        let response = if target.starts_with("/token") {
            response.body(r#"{"token":"t0k"}"#.to_owned())
        } else if sent.as_deref() != Some("Bearer t0k") {
            let challenge = format!(
                "Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s v\",scope=\"repository:app:pull\""
            );
            response.status(401).header("WWW-Authenticate", challenge).body(String::new())
        } else {
            let to = format!("http://{content}{target}");
            response.status(307).header("Location", to).body(String::new())
        };
        response.unwrap().map(|body| Full::new(Bytes::from(body)))
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request| {
                std::future::ready(Ok::<_, Infallible>(answer(request)))
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move { serving.await.ok() });
        }
    });
    port
}

#[test]
fn a_token_is_fetched_once_and_given_to_nobody_else() {
    let bed = Bed::any();
    bed.registry.put(&data_image(&[1]), "app", "1");
    let log = Log::default();
    bed.run(async {
        let port = token_front(bed.registry.address(), log.clone()).await;
        let plain = |host| RegistryConfig { host, plain_http: true, ca: None };
        let front = format!("127.0.0.1:{port}");
        let images = images(&bed, &[plain(front.clone()), plain(bed.registry.address())]);
        pull(&images, &format!("{front}/app:1")).await.unwrap();
    });
    let log = log.lock().unwrap();
    let tokens: Vec<_> = log.iter().filter(|(target, _)| target.starts_with("/token")).collect();
    let query = "/token?scope=repository%3Aapp%3Apull&service=s%20v".to_owned();
    assert_eq!(tokens, [&(query, None)]);
    assert_eq!(log.len(), 5, "challenge, token, manifest, configuration, layer: {log:?}");
    assert_eq!(bed.registry.requests().len(), 3);
    assert!(bed.registry.requests().iter().all(|request| request.authorization.is_none()));
}
