//! From a reference to a manifest: what registries do wrong, and what images are.

use std::time::Duration;

use coracle_core::backoff::Retry;
use coracle_testbed::faulty::Fault;
use coracle_testbed::image::{Blob, Builder, Compression, Platform};
use coracle_testbed::{FaultyRegistry, Image, Index};

use crate::bed::{Bed, data_image, pull};

#[test]
fn refusals_of_a_registry_are_told_and_classified() {
    let bed = Bed::any();
    let image = data_image(&[1]);
    let digest = bed.registry.put(&image, "some/app", "1");
    let other = FaultyRegistry::start().unwrap();
    let elsewhere = format!("http://{}/v2/x", other.address());
    let itself = format!("http://{}/v2/some/app/manifests/1", bed.registry.address());
    let seven = Retry::After(Duration::from_secs(7));
    for (fault, says, retry) in [
        (Fault::Unauthorized, "refused access to some/app (401); credentials", Retry::Rarely),
        (Fault::Status(403), "refused access to some/app (403)", Retry::Rarely),
        (Fault::Status(404), "has no image 127.0.0.1", Retry::Rarely),
        (Fault::Status(400), "answered 400", Retry::Rarely),
        (Fault::TooManyRequests(Some(7)), "answered 429", seven),
        (Fault::TooManyRequests(None), "answered 429", Retry::Backoff),
        (Fault::Status(500), "answered 500", Retry::Backoff),
        (Fault::Status(503), "answered 503", Retry::Backoff),
        (Fault::Hang, "did not answer within 1.5 s", Retry::Backoff),
        (Fault::StallAfter(20), "did not answer within 1.5 s", Retry::Backoff),
        (Fault::CutAfter(20), "broke", Retry::Backoff),
        (Fault::Endless, "longer than 4194304 bytes", Retry::Backoff),
        (Fault::WrongBytes, "not sha256:", Retry::Rarely),
        (Fault::Redirect(itself), "more than five redirects", Retry::Rarely),
        (Fault::Redirect(elsewhere), "plain HTTP is not configured", Retry::Rarely),
        (Fault::Redirect("ftp://x/y".into()), "not a URL", Retry::Rarely),
    ] {
        bed.registry.fail_always("/manifests/", fault.clone());
        let (error, text) = bed.refusal(&bed.registry.pinned("some/app", &digest));
        assert!(text.contains(says), "{fault:?}: {text}");
        assert_eq!(error.retry(), retry, "{fault:?}: {text}");
        assert!(!error.containerd_unreachable(), "{fault:?}");
        bed.registry.heal();
    }
    assert_eq!(other.requests().len(), 0);
    assert_eq!(bed.listed(), [""; 0]);
    bed.pull(&bed.registry.pinned("some/app", &digest)).unwrap();
}

#[test]
fn what_is_absent_is_told() {
    let bed = Bed::any();
    let (error, text) = bed.refusal(&bed.registry.reference("no/such", "1"));
    assert!(text.contains("has no image") && text.contains("no/such:1"), "{text}");
    assert_eq!(error.retry(), Retry::Rarely);
    let (error, text) = bed.refusal("127.0.0.1:1/a:1");
    assert!(text.contains("cannot connect to 127.0.0.1:1"), "{text}");
    assert_eq!(error.retry(), Retry::Backoff);
}

#[test]
fn plain_http_must_be_configured_even_for_loopback() {
    let bed = Bed::any();
    bed.registry.put(&data_image(&[1]), "app", "1");
    let images = bed.connect(&[]);
    let error = bed.run(pull(&images, &bed.registry.reference("app", "1"))).unwrap_err();
    assert_eq!(error.retry(), Retry::Backoff);
    assert_eq!(bed.registry.count("/v2/"), 0);
}

#[test]
fn an_image_for_other_machines_is_refused_with_the_list() {
    let bed = Bed::any();
    let on = |architecture| {
        let platform = Platform::linux(architecture);
        Builder::busybox(Compression::Gzip).unwrap().platform(platform).build().unwrap()
    };
    bed.registry.put(&Index::new(vec![on("s390x"), on("riscv64")]), "app", "index");
    bed.registry.put(&on("s390x"), "app", "single");
    for (tag, list) in [("index", "only for linux/riscv64, linux/s390x"), ("single", "linux/s390x")]
    {
        let (error, text) = bed.refusal(&bed.registry.reference("app", tag));
        assert!(text.contains("is not for linux/") && text.contains(list), "{text}");
        assert_eq!(error.retry(), Retry::Rarely);
    }
    assert_eq!(bed.registry.count("/blobs/sha256:"), 1, "only the single image's configuration");
}

/// An image whose manifest and configuration are changed as text.
fn changed(image: &Image, manifest: (&str, &str), config: (&str, &str)) -> Image {
    let edit = |blob: &Blob, (from, to): (&str, &str)| {
        let text = String::from_utf8(blob.bytes.to_vec()).unwrap();
        assert!(text.contains(from), "{text}");
        Blob::new(&blob.media_type, text.replace(from, to).into_bytes())
    };
    let new = edit(&image.config, config);
    let text = String::from_utf8(image.manifest.bytes.to_vec()).unwrap();
    let text = text.replace(&image.config.digest, &new.digest);
    let text = text.replace(
        &format!("\"size\":{}", image.config.bytes.len()),
        &format!("\"size\":{}", new.bytes.len()),
    );
    let named = Blob::new(&image.manifest.media_type, text.into_bytes());
    Image { manifest: edit(&named, manifest), config: new, ..image.clone() }
}

#[test]
fn images_that_cannot_be_run_are_refused() {
    let bed = Bed::any();
    let image = data_image(&[1]);
    let same = ("{", "{");
    let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
    let wrong = format!("sha256:{}", "0".repeat(64));
    for (name, manifest, config, says) in [
        ("encrypted", (layer, "x/y+encrypted"), same, "of type \"x/y+encrypted\""),
        ("artifact", ("image.config.v1", "other.v1"), same, "which cannot be run"),
        ("broken", ("schemaVersion\":2", "schemaVersion\":2x"), same, "manifest of image"),
        ("no-rootfs", same, ("rootfs", "rotfs"), "configuration of image"),
        ("wrong-diff", same, (&*image.diff_ids[0], &*wrong), "unpacks to sha256:"),
    ] {
        bed.registry.put(&changed(&image, manifest, config), name, "1");
        let (error, text) = bed.refusal(&bed.registry.reference(name, "1"));
        assert!(text.contains(says), "{name}: {text}");
        assert_eq!(error.retry(), Retry::Rarely, "{name}: {text}");
    }
    assert_eq!((bed.listed().len(), bed.snapshots().len()), (0, 0));
}

#[test]
fn an_image_without_layers_is_an_image() {
    let bed = Bed::any();
    bed.registry.put(&Builder::new().build().unwrap(), "empty", "1");
    let reference = bed.registry.reference("empty", "1");
    bed.pull(&reference).unwrap();
    bed.local(&reference).unwrap();
}

#[test]
fn a_tag_that_moves_is_followed_and_one_that_stays_costs_a_head_request() {
    let bed = Bed::any();
    let reference = bed.registry.reference("app", "1");
    let first = bed.registry.put(&data_image(&[1, 2]), "app", "1");
    assert_eq!(bed.pull(&reference).unwrap().as_str(), first);
    let before = bed.registry.requests().len();
    bed.pull(&reference).unwrap();
    let asked = bed.registry.requests().split_off(before);
    assert_eq!((asked.len(), &*asked[0].method), (1, "HEAD"));

    let image = data_image(&[1, 3]);
    let second = bed.registry.put(&image, "app", "1");
    assert_eq!(bed.pull(&reference).unwrap().as_str(), second);
    assert_eq!(bed.registry.count(&image.layers[0].digest), 1, "the shared layer came once");
    bed.collect_garbage();
    assert_eq!((bed.snapshots().len(), bed.listed().len()), (2, 1));
}
