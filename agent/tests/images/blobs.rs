//! Layers that come wrong, late, cut or not at all.

use coracle_core::backoff::Retry;
use coracle_testbed::faulty::Fault;

use crate::bed::{Bed, data_image};

#[test]
fn a_wrong_layer_is_never_kept() {
    let bed = Bed::any();
    let image = data_image(&[1]);
    let layer = &image.layers[0].digest;
    bed.registry.put(&image, "app", "1");
    let reference = bed.registry.reference("app", "1");
    for (fault, says) in [
        (Fault::WrongBytes, "another content, of digest sha256:"),
        (Fault::LongerThanSent(10), "bytes or more, not"),
        (Fault::Endless, "bytes or more, not"),
        (Fault::Status(500), "answered 500"),
        (Fault::Hang, "did not answer"),
        (Fault::CutAfter(0), "broke"),
    ] {
        bed.registry.fail_always(layer, fault.clone());
        let (error, text) = bed.refusal(&reference);
        assert!(text.contains(says), "{fault:?}: {text}");
        assert_eq!(error.retry(), Retry::Backoff, "{fault:?}");
        bed.registry.heal();
    }
    bed.registry.fail_always(layer, Fault::Status(404));
    let (error, text) = bed.refusal(&reference);
    assert!(text.contains("has no blob"), "{text}");
    assert_eq!(error.retry(), Retry::Rarely);
    bed.registry.heal();
    assert!(!bed.content().contains(layer));
    bed.pull(&reference).unwrap();
    bed.local(&reference).unwrap();
}

#[test]
fn a_layer_cut_again_and_again_arrives() {
    let bed = Bed::any();
    let image = data_image(&[1]);
    let layer = &image.layers[0].digest;
    bed.registry.put(&image, "app", "1");
    bed.registry.fail(layer, 4, Fault::CutAfter(100_000));
    bed.pull(&bed.registry.reference("app", "1")).unwrap();
    let expect: Vec<_> = [100_000, 200_000, 300_000, 400_000]
        .iter()
        .map(|offset| Some(format!("bytes={offset}-")))
        .collect();
    assert_eq!(bed.ranges(layer)[1..], expect);
}

#[test]
fn layers_come_chunked_and_from_elsewhere() {
    let bed = Bed::any();
    let image = data_image(&[1, 2]);
    bed.registry.put(&image, "app", "1");
    let cdn = coracle_testbed::FaultyRegistry::start().unwrap();
    cdn.put(&image, "cdn", "1");
    let images = bed.connect(&[bed.registry.address(), cdn.address()]);
    let url = format!("http://{}/v2/cdn/blobs/{}", cdn.address(), image.layers[1].digest);
    bed.registry.fail_always(&image.layers[0].digest, Fault::Chunked);
    bed.registry.fail_always(&image.layers[1].digest, Fault::Redirect(url));
    bed.run(crate::bed::pull(&images, &bed.registry.reference("app", "1"))).unwrap();
    assert_eq!(cdn.count("/blobs/"), 1);
}
