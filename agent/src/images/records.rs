//! Image records in containerd: one for each complete image of ours, named by its reference.
//!
//! A record is written last, when content and snapshots are complete, and keeps both from garbage
//! collection through the labels on the content. Records without our label are left alone.

use std::collections::BTreeMap;

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
    UpdateImageRequest,
};
use containerd_client::tonic::Code;
use containerd_client::types;
use coracle_core::image::{Digest, ImageRef};
use prost_types::FieldMask;

use super::error::ImageError;
use super::manifest::Descriptor;
use crate::containerd::Containerd;

/// Marks an image as ours.
const OURS: &str = "io.coracle/image";
/// Digest of the image configuration for this machine.
const CONFIG: &str = "io.coracle/config";

/// What a record says.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) digest: Digest,
    pub(crate) config: Digest,
}

pub(crate) async fn list(
    containerd: &Containerd,
) -> Result<BTreeMap<ImageRef, Digest>, ImageError> {
    let filters = vec![format!("labels.\"{OURS}\"==1")];
    let mut client = ImagesClient::new(containerd.channel());
    let listed = client.list(containerd.request(ListImagesRequest { filters })).await;
    let images = listed.map_err(ImageError::containerd("list images"))?.into_inner().images;
    let read = |image: Image| Some((ImageRef::parse(&image.name).ok()?, record(image)?.digest));
    Ok(images.into_iter().filter_map(read).collect())
}

pub(crate) async fn get(
    containerd: &Containerd,
    image: &ImageRef,
) -> Result<Option<Record>, ImageError> {
    let request = containerd.request(GetImageRequest { name: image.to_string() });
    match ImagesClient::new(containerd.channel()).get(request).await {
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(ImageError::containerd("get an image")(status)),
        Ok(found) => Ok(found.into_inner().image.and_then(record)),
    }
}

fn record(image: Image) -> Option<Record> {
    image.labels.get(OURS)?;
    let config = Digest::parse(image.labels.get(CONFIG)?).ok()?;
    Some(Record { digest: Digest::parse(&image.target?.digest).ok()?, config })
}

/// Writes the record, in place of one that was there.
pub(crate) async fn put(
    containerd: &Containerd,
    image: &ImageRef,
    target: &Descriptor,
    config: &Digest,
) -> Result<(), ImageError> {
    let target = types::Descriptor {
        media_type: target.media_type.clone(),
        digest: target.digest.to_string(),
        size: i64::try_from(target.size).unwrap_or(i64::MAX),
        ..types::Descriptor::default()
    };
    let labels = [(OURS.to_owned(), "1".to_owned()), (CONFIG.to_owned(), config.to_string())];
    let image = Image {
        name: image.to_string(),
        labels: labels.into(),
        target: Some(target),
        ..Image::default()
    };
    let mut client = ImagesClient::new(containerd.channel());
    let request =
        CreateImageRequest { image: Some(image.clone()), ..CreateImageRequest::default() };
    let create = match client.create(containerd.request(request)).await {
        Err(status) if status.code() == Code::AlreadyExists => {
            let paths = ["target".into(), format!("labels.{OURS}"), format!("labels.{CONFIG}")];
            let request = UpdateImageRequest {
                image: Some(image),
                update_mask: Some(FieldMask { paths: paths.into() }),
                ..UpdateImageRequest::default()
            };
            client.update(containerd.request(request)).await.map(drop)
        }
        created => created.map(drop),
    };
    create.map_err(ImageError::containerd("record an image"))
}

/// Deletes the record, if it is ours; containerd then collects what nothing else needs.
pub(crate) async fn delete(containerd: &Containerd, image: &ImageRef) -> Result<(), ImageError> {
    if get(containerd, image).await?.is_none() {
        return Ok(());
    }
    let name = image.to_string();
    // Synchronous: otherwise containerd may put the collection off for a long time.
    let request = DeleteImageRequest { name, sync: true, ..DeleteImageRequest::default() };
    let mut request = containerd.endless(request);
    request.set_timeout(super::COLLECT);
    match ImagesClient::new(containerd.channel()).delete(request).await {
        Err(status) if status.code() != Code::NotFound => {
            Err(ImageError::containerd("delete an image")(status))
        }
        _ => Ok(()),
    }
}
