//! What people can get wrong: a clear error, and nothing left.

use std::error::Error as _;

use coracle::containerd::LocalImage;
use coracle::runtime::{ImageProblem, Root, Runtime as _, RuntimeError, Surroundings};
use coracle_core::backoff::Retry;
use coracle_core::plan::Start;
use coracle_testbed::image::{Builder, Compression, Layer};

use crate::bed::{Bed, order};
use crate::on_every_containerd;

on_every_containerd!(
    a_start_that_fails_says_why_and_leaves_nothing,
    a_failed_restart_leaves_nothing,
    an_image_without_layers_or_users_runs,
);

async fn fails(bed: &Bed, start: &Start, image: &LocalImage) -> RuntimeError {
    let root = Root::Image(image.clone());
    let error = bed.runtime.start(start, &root, &Surroundings::default()).await.unwrap_err();
    bed.assert_empty();
    error
}

async fn a_start_that_fails_says_why_and_leaves_nothing(bed: Bed) {
    let missing = order("web", |c| c.command = Some(vec!["/no/such/program".into()]));
    let error = fails(&bed, &missing, &bed.image).await;
    let text = error.to_string();
    assert!(text.contains("web.0.main") && text.contains("/no/such/program"), "{text}");
    assert!(text.contains("no such file"), "{text}");
    assert_eq!(error.retry(), Retry::Backoff);

    let ghost = order("web", |c| c.user = Some("ghost".into()));
    let error = fails(&bed, &ghost, &bed.image).await;
    assert!(error.source().unwrap().to_string().contains("no user \"ghost\""), "{error:?}");
    assert_eq!(error.retry(), Retry::Rarely);

    let mut unknown = bed.image.clone();
    unknown.chain_id = Some(format!("sha256:{}", "0".repeat(64)));
    let error = fails(&bed, &order("web", |_| {}), &unknown).await;
    assert!(matches!(error, RuntimeError::ImageMissing { .. }), "{error:?}");

    let mut empty = bed.image.clone();
    empty.config = b"{}".to_vec();
    let error = fails(&bed, &order("web", |_| {}), &empty).await;
    let RuntimeError::Software { source, .. } = error else { panic!("{error:?}") };
    assert!(matches!(*source, ImageProblem::NoCommand), "{source:?}");
}

async fn a_failed_restart_leaves_nothing(bed: Bed) {
    let mut events = bed.follow().await;
    let web = order("web", |c| c.command = Some(vec!["/bin/true".into()]));
    bed.start(&web).await;
    assert_eq!(events.exited(&web.id).await.1.code, 0);
    let broken = order("web", |c| c.command = Some(vec!["/no/such/program".into()]));
    fails(&bed, &broken, &bed.image).await;
    bed.start(&web).await;
    events.exited(&web.id).await;
    bed.runtime.remove(&web.id).await.unwrap();
    bed.assert_empty();
}

async fn an_image_without_layers_or_users_runs(bed: Bed) {
    let mut events = bed.follow().await;
    let busybox = coracle_testbed::installed("busybox").unwrap();
    let layer = Layer::new().host_file("/busybox", &busybox).unwrap();
    let bare = Builder::new().layer(layer, Compression::Plain).user("7:8");
    let bare = bare.entrypoint(&["/busybox", "sh", "-c"]).cmd(&["exit $(/busybox id -u)"]);
    let image = bed.import(&bare.build().unwrap(), "registry.example/bare:1");
    let web = order("web", |_| {});
    bed.runtime.start(&web, &Root::Image(image.clone()), &Surroundings::default()).await.unwrap();
    assert_eq!(events.exited(&web.id).await.1.code, 7);

    let mut none = image.clone();
    none.chain_id = None;
    let error = bed
        .runtime
        .start(&web, &Root::Image(none.clone()), &Surroundings::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("/busybox"), "an empty root: {error}");
    bed.assert_empty();
}
