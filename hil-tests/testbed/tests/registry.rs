//! Registries: the real one keeps what is pushed, the faulty one fails as told.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

use std::time::{Duration, Instant};

use coracle_testbed::faulty::Fault;
use coracle_testbed::http::{get, request};
use coracle_testbed::image::{Platform, digest};
use coracle_testbed::{FaultyRegistry, Image, Index, Place, Registry};

#[test]
fn the_registry_keeps_what_is_pushed_over_a_restart() {
    let place = Place::new().unwrap();
    let mut registry = Registry::start(&place).unwrap();
    let image = Image::busybox().unwrap();
    let index = Index::new(vec![image.clone()]);
    assert_eq!(image.platform, Platform::here());
    assert_eq!(registry.push(&index, "some/name", "1").unwrap(), index.manifest.digest);
    registry.push(&image, "some/name", "single").unwrap();
    registry.kill().unwrap();
    let url = |what: &str| format!("http://{}/v2/some/name/{what}", registry.address());
    let layer = url(&format!("blobs/{}", image.layers[0].digest));
    let single = url("manifests/single");
    assert!(get(&single).is_err());
    registry.start_again().unwrap();
    assert_eq!(digest(&get(&layer).unwrap().body), image.layers[0].digest);
    let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
    let manifest = request("GET", &single, &accept, &[]).unwrap();
    assert_eq!(manifest.body, &*image.manifest.bytes);
}

struct Faulty {
    registry: FaultyRegistry,
    image: Image,
}

impl Faulty {
    fn new() -> Self {
        let registry = FaultyRegistry::start().unwrap();
        let image = Image::busybox().unwrap();
        assert_eq!(registry.put(&image, "busybox", "1"), image.manifest.digest);
        Self { registry, image }
    }

    fn manifest(&self) -> String {
        format!("http://{}/v2/busybox/manifests/1", self.registry.address())
    }

    fn layer(&self) -> String {
        let digest = &self.image.layers[0].digest;
        format!("http://{}/v2/busybox/blobs/{digest}", self.registry.address())
    }
}

#[test]
fn without_faults_it_is_a_registry() {
    let bed = Faulty::new();
    let manifest = get(&bed.manifest()).unwrap();
    assert_eq!(manifest.body, &*bed.image.manifest.bytes);
    assert_eq!(manifest.header("content-type"), Some(bed.image.manifest.media_type.as_str()));
    let bytes = &bed.image.layers[0].bytes;
    assert_eq!(get(&bed.layer()).unwrap().body, &**bytes);
    let part = request("GET", &bed.layer(), &[("Range", "bytes=1000-")], &[]).unwrap();
    assert_eq!((part.status, &part.body[..]), (206, &bytes[1000..]));
    let beyond = format!("bytes={}-", bytes.len());
    assert_eq!(request("GET", &bed.layer(), &[("Range", &beyond)], &[]).unwrap().status, 416);
    assert_eq!(request("HEAD", &bed.layer(), &[], &[]).unwrap().body, b"");
    assert_eq!(get(&bed.manifest().replace("busybox", "other")).unwrap().status, 404);
    let seen = bed.registry.requests();
    assert_eq!(seen.len(), 6);
    assert_eq!(seen[2].range.as_deref(), Some("bytes=1000-"));
    assert_eq!(bed.registry.count("/blobs/"), 4);
}

#[test]
fn statuses_come_as_often_as_told() {
    let bed = Faulty::new();
    bed.registry.fail("/manifests/", 2, Fault::TooManyRequests(Some(7)));
    bed.registry.fail("/manifests/", 1, Fault::Status(500));
    bed.registry.fail("/manifests/", 1, Fault::Unauthorized);
    let answers: Vec<_> = (0..5).map(|_| get(&bed.manifest()).unwrap()).collect();
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [429, 429, 500, 401, 200]);
    assert_eq!(answers[0].header("retry-after"), Some("7"));
    assert!(answers[3].header("www-authenticate").unwrap().starts_with("Basic"));
    bed.registry.fail_always("/manifests/", Fault::Redirect("http://127.0.0.1:1/".to_owned()));
    assert_eq!(get(&bed.manifest()).unwrap().status, 307);
    bed.registry.heal();
    assert_eq!(get(&bed.manifest()).unwrap().status, 200);
}

#[test]
fn bodies_are_cut_wrong_or_odd_as_told() {
    let bed = Faulty::new();
    let right = &bed.image.layers[0].bytes;
    let one = |fault| {
        bed.registry.fail("/blobs/", 1, fault);
        get(&bed.layer())
    };
    assert!(format!("{:#}", one(Fault::CutAfter(100)).unwrap_err()).contains("after 100 of"));
    assert!(one(Fault::LongerThanSent(5)).is_err());
    let wrong = one(Fault::WrongBytes).unwrap().body;
    assert_eq!(wrong.len(), right.len());
    assert_ne!(digest(&wrong), bed.image.layers[0].digest);
    assert_eq!(one(Fault::Chunked).unwrap().body, &**right);
    bed.registry.fail("/blobs/", 1, Fault::NoRanges);
    let whole = request("GET", &bed.layer(), &[("Range", "bytes=5-")], &[]).unwrap();
    assert_eq!((whole.status, whole.body.len()), (200, right.len()));
    let began = Instant::now();
    assert_eq!(one(Fault::Slow(right.len() * 4)).unwrap().body, &**right);
    assert!(began.elapsed() > Duration::from_millis(150));
}

#[test]
fn it_hangs_and_stops_while_hanging() {
    let bed = Faulty::new();
    bed.registry.fail("/manifests/", 1, Fault::Hang);
    let url = bed.manifest();
    let asked = std::thread::spawn(move || get(&url));
    coracle_testbed::wait_for("the request", Duration::from_secs(5), || {
        (bed.registry.count("/manifests/") == 1).then_some(())
    })
    .unwrap();
    assert!(!asked.is_finished());
    drop(bed);
    assert!(asked.join().unwrap().is_err(), "the connection closes with the server");
}
