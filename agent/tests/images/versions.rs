//! What must hold on every supported containerd.

use coracle::images::{Phase, Progress};
use coracle_core::backoff::Retry;
use coracle_core::image::ImageRef;
use coracle_testbed::faulty::Fault;
use coracle_testbed::image::{Builder, Compression, Content as _, Layer, Platform};
use coracle_testbed::{Index, Registry, Version};
use tokio::sync::watch;

use crate::bed::{Bed, NAMESPACE, chain, data_image, noisy, pull};

macro_rules! on_each_version {
    ($($name:ident),* $(,)?) => {
        mod v1_6 { $(#[test] fn $name() { super::$name(super::Version::V1_6); })* }
        mod v1_7 { $(#[test] fn $name() { super::$name(super::Version::V1_7); })* }
        mod v2_1 { $(#[test] fn $name() { super::$name(super::Version::V2_1); })* }
    };
}

on_each_version!(
    an_index_is_pulled_by_tag_and_digest_run_and_removed,
    garbage_collection_in_the_middle_takes_nothing,
    a_dropped_pull_goes_on_where_it_was,
    a_pull_survives_containerds_death,
    a_server_without_ranges_sends_it_all_again,
    a_download_that_goes_on_wrongly_is_discarded,
    concurrent_pulls_share_their_layers,
    what_is_damaged_is_noticed_and_mended,
    images_of_others_are_left_alone,
);

fn an_index_is_pulled_by_tag_and_digest_run_and_removed(version: Version) {
    let bed = Bed::new(version);
    let registry = Registry::start(&bed.place).unwrap();
    let images = bed.connect(&[registry.address()]);
    let lower = Layer::new().file("/a/gone", 0o644, b"x").file("/b/hidden", 0o644, b"x");
    let upper = Layer::new().whiteout("/a/gone").opaque("/b").file("/b/new", 0o644, b"x");
    let here = Builder::busybox(Compression::Gzip).unwrap();
    let here = here.layer(lower, Compression::Zstd).layer(upper, Compression::Plain);
    let here = here.build().unwrap();
    let other = Builder::busybox(Compression::Gzip).unwrap().platform(Platform::linux("s390x"));
    let index = Index::new(vec![other.build().unwrap(), here.clone()]);
    let digest = registry.push(&index, "some/app", "1").unwrap();

    let tag = registry.reference("some/app", "1");
    assert_eq!(bed.listed(), [""; 0], "not even our namespace is there");
    assert!(bed.local(&tag).is_err());
    assert_eq!(bed.run(pull(&images, &tag)).unwrap().as_str(), digest);
    assert_eq!(bed.listed(), [&*tag]);
    assert_eq!(bed.output(&tag, &["sh", "-c", "echo $(ls /a /b)"]), "/a: /b: new");
    assert_eq!(bed.leases(), [""; 0]);
    assert_eq!(bed.snapshots().len(), 3);
    // The other platform's content is not here.
    assert_eq!(bed.content().len(), 2 + here.blobs().len());

    let pinned = registry.pinned("some/app", &digest);
    drop(registry);
    // All is there: no registry is needed.
    assert_eq!(bed.run(pull(&images, &pinned)).unwrap().as_str(), digest);
    let local = bed.run(images.local(&ImageRef::parse(&pinned).unwrap())).unwrap();
    assert_eq!(local.config, here.config.bytes.to_vec());
    assert!(bed.snapshots().contains(&local.chain_id.unwrap()));

    bed.remove(&tag);
    assert_eq!(bed.output(&pinned, &["ls", "/b"]), "new");
    bed.remove(&pinned);
    bed.remove(&pinned);
    assert_eq!((bed.listed().len(), bed.content().len(), bed.snapshots().len()), (0, 0, 0));
}

fn garbage_collection_in_the_middle_takes_nothing(version: Version) {
    let bed = Bed::new(version);
    let image = noisy(Builder::busybox(Compression::Gzip).unwrap(), 1, 600_000);
    let image = image.build().unwrap();
    bed.registry.put(&image, "app", "1");
    bed.registry.fail(&image.layers[1].digest, 1, Fault::StallAfter(300_000));
    let reference = bed.registry.reference("app", "1");
    let parsed = ImageRef::parse(&reference).unwrap();
    let (progress, mut seen) = watch::channel(Progress::default());
    let first = image.layers[0].bytes.len() as u64;
    bed.run(async {
        let reached =
            |p: &Progress| p.phase == Phase::Downloading && p.bytes_done > first + 200_000;
        let collect = async {
            seen.wait_for(reached).await.unwrap();
            // Blocks the pull as well: nothing moves between the two.
            bed.collect_garbage();
            assert_eq!(bed.leases().len(), 1);
        };
        tokio::join!(bed.images.pull(&parsed, &progress), collect).0.unwrap();
    });
    let ranges = bed.ranges(&image.layers[1].digest);
    assert!(matches!(&*ranges, [None, Some(range)] if range != "bytes=0-"), "{ranges:?}");
    assert_eq!(bed.ranges(&image.layers[0].digest).len(), 1);
    assert_eq!(bed.output(&reference, &["ls", "/noise"]), "1");
    let done = *seen.borrow();
    assert_eq!((done.phase, done.bytes_total), (Phase::Unpacking, Some(done.bytes_done)));
}

fn a_dropped_pull_goes_on_where_it_was(version: Version) {
    let bed = Bed::new(version);
    let image = data_image(&[1]);
    let layer = &image.layers[0].digest;
    bed.registry.put(&image, "app", "1");
    bed.registry.fail(layer, 1, Fault::StallAfter(400_000));
    let reference = bed.registry.reference("app", "1");
    let parsed = ImageRef::parse(&reference).unwrap();
    let (progress, mut seen) = watch::channel(Progress::default());
    bed.run(async {
        tokio::select! {
            _ = bed.images.pull(&parsed, &progress) => panic!("it cannot have ended"),
            _ = seen.wait_for(|p| p.bytes_done > 300_000) => {}
        }
    });
    assert!(bed.local(&reference).is_err());
    assert_eq!(bed.listed(), [""; 0]);
    bed.collect_garbage();
    let lease = bed.leases();
    bed.pull(&reference).unwrap();
    let ranges = bed.ranges(layer);
    assert!(matches!(&*ranges, [None, Some(_)]), "{ranges:?}");
    assert_eq!((lease.len(), bed.leases().len()), (1, 0));
    bed.collect_garbage();
    bed.local(&reference).unwrap();
    assert_eq!(bed.snapshots().len(), 1);
    assert_eq!(bed.ctr(&["content", "active"]).len(), 1, "only the heading");
}

fn a_pull_survives_containerds_death(version: Version) {
    let mut bed = Bed::new(version);
    let image = data_image(&[1]);
    let layer = &image.layers[0].digest;
    bed.registry.put(&image, "app", "1");
    bed.registry.fail(layer, 1, Fault::StallAfter(400_000));
    let reference = bed.registry.reference("app", "1");
    let parsed = ImageRef::parse(&reference).unwrap();
    let (progress, mut seen) = watch::channel(Progress::default());
    let images = bed.images.clone();
    let mut pulling = None;
    bed.run(async {
        pulling = Some(tokio::spawn(async move { images.pull(&parsed, &progress).await }));
        seen.wait_for(|p| p.bytes_done > 300_000).await.unwrap();
    });
    bed.containerd.kill().unwrap();
    let error = bed.run(pulling.unwrap()).unwrap().unwrap_err();
    assert!(error.containerd_unreachable(), "{}", chain(&error));
    assert_eq!(error.retry(), Retry::Backoff);
    let (error, text) = bed.refusal(&reference);
    assert!(error.containerd_unreachable(), "{text}");
    bed.containerd.start_again().unwrap();
    bed.pull(&reference).unwrap();
    let ranges = bed.ranges(layer);
    assert!(ranges.last().unwrap().is_some(), "{ranges:?}");
}

fn a_server_without_ranges_sends_it_all_again(version: Version) {
    let bed = Bed::new(version);
    let image = data_image(&[1]);
    let layer = &image.layers[0].digest;
    bed.registry.put(&image, "app", "1");
    bed.registry.fail(layer, 1, Fault::CutAfter(300_000));
    bed.registry.fail(layer, 1, Fault::NoRanges);
    let reference = bed.registry.reference("app", "1");
    bed.pull(&reference).unwrap();
    bed.local(&reference).unwrap();
    assert_eq!(bed.ranges(layer), [None, Some("bytes=300000-".into())]);
}

fn a_download_that_goes_on_wrongly_is_discarded(version: Version) {
    let bed = Bed::new(version);
    let image = data_image(&[1]);
    let layer = &image.layers[0].digest;
    bed.registry.put(&image, "app", "1");
    let reference = bed.registry.reference("app", "1");
    // Begun by one pull and ended wrongly by the next: containerd alone sees the whole.
    bed.registry.fail(layer, 1, Fault::CutAfter(200_000));
    bed.registry.fail(layer, 1, Fault::Status(500));
    bed.registry.fail(layer, 1, Fault::WrongBytes);
    bed.refusal(&reference);
    let (error, text) = bed.refusal(&reference);
    assert!(text.contains("came out wrong and was discarded"), "{text}");
    assert_eq!(error.retry(), Retry::Backoff);
    bed.pull(&reference).unwrap();
    assert_eq!(bed.ranges(layer).last(), Some(&None), "from the start again");
    bed.local(&reference).unwrap();
}

fn concurrent_pulls_share_their_layers(version: Version) {
    let bed = Bed::new(version);
    let (one, two) = (data_image(&[1, 2, 3]), data_image(&[1, 2, 4]));
    bed.registry.put(&one, "one", "1");
    bed.registry.put(&two, "two", "1");
    bed.registry.put(&two, "two", "2");
    let names = [("one", "1"), ("two", "1"), ("two", "2")];
    let names = names.map(|(name, tag)| bed.registry.reference(name, tag));
    // As another process would: it knows nothing of the first one's pulls.
    let other = bed.connect(&[bed.registry.address()]);
    bed.run(async {
        let (a, b, c, d) = tokio::join!(
            pull(&bed.images, &names[0]),
            pull(&bed.images, &names[1]),
            pull(&bed.images, &names[0]),
            pull(&other, &names[2]),
        );
        for result in [&a, &b, &c, &d] {
            assert!(result.is_ok(), "{}", chain(result.as_ref().unwrap_err()));
        }
    });
    bed.collect_garbage();
    for name in &names {
        bed.local(name).unwrap();
    }
    assert_eq!((bed.snapshots().len(), bed.leases().len()), (4, 0));
    assert_eq!(bed.registry.count(&one.layers[2].digest), 1);
    bed.remove(&names[0]);
    bed.local(&names[1]).unwrap();
    assert_eq!(bed.snapshots().len(), 3);
}

fn what_is_damaged_is_noticed_and_mended(version: Version) {
    let bed = Bed::new(version);
    let image = data_image(&[1, 2]);
    let digest = bed.registry.put(&image, "app", "1");
    let reference = bed.registry.pinned("app", &digest);
    bed.pull(&reference).unwrap();
    let requests = bed.registry.requests().len();
    let local = bed.run(bed.images.local(&ImageRef::parse(&reference).unwrap())).unwrap();
    bed.ctr(&["snapshots", "rm", &local.chain_id.unwrap()]);
    let text = chain(&bed.local(&reference).unwrap_err());
    assert!(text.contains("snapshot missing"), "{text}");
    bed.pull(&reference).unwrap();
    bed.local(&reference).unwrap();
    assert_eq!(bed.registry.requests().len(), requests, "it was all here");

    bed.ctr(&["content", "rm", &image.config.digest]);
    assert!(bed.local(&reference).is_err());
    bed.pull(&reference).unwrap();
    bed.local(&reference).unwrap();
    assert_eq!(bed.registry.requests().len(), requests + 1);
}

fn images_of_others_are_left_alone(version: Version) {
    let bed = Bed::new(version);
    let image = data_image(&[1]);
    let reference = bed.registry.reference("app", "1");
    bed.containerd.import(NAMESPACE, &image, &reference).unwrap();
    assert_eq!(bed.listed(), [""; 0]);
    assert!(bed.local(&reference).is_err());
    bed.remove(&reference);
    assert_eq!(bed.containerd.images(NAMESPACE).unwrap(), [&*reference]);

    // Asked for by us it becomes ours; only manifests are asked of the registry.
    bed.registry.put(&image, "app", "1");
    bed.pull(&reference).unwrap();
    assert_eq!(bed.listed(), [reference]);
    assert_eq!(bed.registry.count("/blobs/"), 0);
}
