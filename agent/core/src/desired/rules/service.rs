//! Native services: the artifact, where the service stands, what is put into its directory.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_protocol::Code;
use coracle_protocol::desired as wire;

use super::shared::Shared;
use super::{Found, check_text, mounts, shortened};
use crate::artifact::{ArtifactId, ArtifactRef, Coordinate};
use crate::desired::{Native, RuntimeFile, RuntimeSource, Workload};
use crate::image::Digest;

/// Where something may be mounted for a service: the rest is the gateway's own and read-only.
const FREE: &str = "/run/";

/// Where a service finds its configuration if the template does not say.
pub(super) const CONFIG_PATH: &str = "/run/coracle/config.json";

/// Judges which artifact it is.
pub(super) fn artifact(
    service: &wire::Service,
    place: &str,
    found: &mut Found<'_>,
) -> Option<ArtifactRef> {
    let digest = digest(service.sha256.as_deref(), place, found);
    if let Some(url) = &service.repository {
        check_url(url, || format!("{place}/repository"), found);
    }
    let id = ArtifactId::parse(&service.artifact).map_err(|error| {
        found.refuse(format!("{place}/artifact"), Code::INVALID_ARTIFACT, error.to_string())
    });
    let repository = service.repository.as_deref().map(Into::into);
    id.ok().map(|id| ArtifactRef { id, digest, repository })
}

/// Judges what it has beside its one container. `place`: of the workload; `at`: of the service.
pub(super) fn native(
    service: &wire::Service,
    coordinate: Option<&str>,
    place: &str,
    at: &str,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> Option<Native> {
    let files = service.files.iter().enumerate();
    let files =
        files.filter_map(|(i, file)| check_file(file, &format!("{at}/files/{i}"), shared, found));
    let files = files.collect();
    let Some(coordinate) = coordinate else {
        let message =
            "coordinate is missing: a native service stands at instance.service.user.cell";
        found.refuse(format!("{place}/coordinate"), Code::MISSING_FIELD, message);
        return None;
    };
    let coordinate = Coordinate::parse(coordinate).map_err(|error| {
        found.refuse(format!("{place}/coordinate"), Code::INVALID_NAME, error.to_string())
    });
    Some(Native { coordinate: coordinate.ok()?, files })
}

/// What only a native service can have.
pub(super) fn refuse_coordinate(workload: &wire::Workload, place: &str, found: &mut Found<'_>) {
    if workload.coordinate.is_some() {
        let message = "only a native service stands at a coordinate";
        found.refuse(format!("{place}/coordinate"), Code::CONFLICTING_FIELD, message);
    }
}

/// A service's root file system is the gateway's own: only some of it is free.
pub(super) fn check_mount_path(path: &str, place: impl Fn() -> String, found: &mut Found<'_>) {
    if mounts::is_clean(path) && !path.starts_with(FREE) {
        let message =
            "must be below /run: the rest of a native service's files is the gateway's own";
        found.refuse(place(), Code::INVALID_PATH, message);
    }
}

/// No two services, nor two replicas, stand at one coordinate.
pub(super) fn check_together(judged: &[(String, Workload)], found: &mut Found<'_>) {
    let mut taken: BTreeMap<Coordinate, &Workload> = BTreeMap::new();
    for (place, workload) in judged {
        let Some(native) = &workload.pod.native else { continue };
        let all = (0..workload.max_replicas()).map(|index| native.coordinate.of_replica(index));
        for coordinate in all {
            if let Some(other) = taken.get(&coordinate) {
                let message = format!("{coordinate} is where {} stands already", other.name);
                found.refuse(format!("{place}/coordinate"), Code::DUPLICATE_NAME, message);
                break;
            }
            taken.insert(coordinate, workload);
        }
    }
}

fn check_file(
    file: &wire::RuntimeFile,
    place: &str,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> Option<RuntimeFile> {
    check_relative(&file.to, || format!("{place}/to"), found);
    let wire::RuntimeFile { artifact, config_map, url, archive, .. } = file;
    let given = [artifact, config_map, url, archive].into_iter().flatten().count();
    if given != 1 {
        let message = "must be exactly one of artifact, config_map, url and archive";
        found.refuse(place, Code::INVALID_VALUE, message);
        return None;
    }
    let (to, overwrite) = (file.to.clone(), file.overwrite);
    let source = match (artifact, config_map, url.as_ref().or(archive.as_ref())) {
        (Some(path), ..) => {
            check_relative(path, || format!("{place}/artifact"), found);
            RuntimeSource::Artifact(path.clone())
        }
        (_, Some(map), _) => {
            let Some(files) = shared.config_maps.get(map) else {
                let message = format!("the order has no config map {:?}", shortened(map));
                found.refuse(format!("{place}/config_map"), Code::UNKNOWN_CONFIG_MAP, message);
                return None;
            };
            RuntimeSource::Files(Arc::clone(files))
        }
        (_, _, fetched) => {
            let field = if archive.is_some() { "archive" } else { "url" };
            let fetched = fetched?.clone();
            check_url(&fetched, || format!("{place}/{field}"), found);
            if url.is_some() && to.is_empty() {
                let message = "to is missing: a file needs a name";
                found.refuse(format!("{place}/to"), Code::MISSING_FIELD, message);
            }
            if file.sha256.is_none() {
                let message = format!("sha256 is missing: what {field} leads to must be known");
                found.refuse(format!("{place}/sha256"), Code::MISSING_FIELD, message);
            }
            let digest = digest(file.sha256.as_deref(), place, found)?;
            match archive {
                Some(_) => RuntimeSource::Archive { url: fetched, digest },
                None => RuntimeSource::Url { url: fetched, digest },
            }
        }
    };
    Some(RuntimeFile { to, source, overwrite })
}

fn digest(hex: Option<&str>, place: &str, found: &mut Found<'_>) -> Option<Digest> {
    let digest = Digest::parse(&format!("sha256:{}", hex?)).map_err(|_| {
        let message = "must be 64 lower-case hexadecimal digits";
        found.refuse(format!("{place}/sha256"), Code::INVALID_VALUE, message);
    });
    digest.ok()
}

fn check_url(url: &str, place: impl Fn() -> String, found: &mut Found<'_>) {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let good = |rest: &str| {
        !rest.is_empty()
            && !rest.starts_with('/')
            && rest.bytes().all(|b| (0x21..0x7f).contains(&b))
    };
    if !rest.is_some_and(good) || url.contains(['@', '#']) {
        let message = "must be a URL of http or https without user, password and fragment";
        found.refuse(place(), Code::INVALID_VALUE, message);
    }
}

/// A path in a directory, or the directory itself.
fn check_relative(path: &str, place: impl Fn() -> String, found: &mut Found<'_>) {
    check_text(path, &place, found);
    if !path.is_empty() && (path.starts_with('/') || !mounts::is_clean(&format!("/{path}"))) {
        let message = "must be a relative path without . and ..";
        found.refuse(place(), Code::INVALID_PATH, message);
    }
}
