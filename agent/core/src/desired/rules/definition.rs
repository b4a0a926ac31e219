//! The hash of what a running container cannot change.

use std::collections::BTreeMap;

use coracle_protocol::desired as wire;
use ring::digest::{SHA256, digest};
use serde::Serialize;

use crate::desired::{DefinitionHash, Identity, MountSource, Piece, Pod, RuntimeSource, Template};

/// All that a workload's replicas are, beside network and containers as they are written. Left out
/// where it is at its default, so that the hash of an old document stays the same.
#[derive(Default, PartialEq, Serialize)]
struct Extras<'a> {
    config: Option<&'a serde_json::Value>,
    template: Option<(&'a str, &'a BTreeMap<String, String>)>,
    mounts: Option<&'a BTreeMap<String, wire::MountSource>>,
    ports: Vec<(&'a str, u16, Option<String>)>,
    identity: Option<(Option<&'a str>, Vec<&'a str>)>,
    /// Files of the config maps that are not changed in place.
    config_maps: BTreeMap<&'a str, &'a BTreeMap<String, String>>,
    /// Artifact, its digest, its repository, where it stands, what is put into its directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<ServiceParts<'a>>,
    /// As sealed: a secret that is sealed anew is a new one.
    secrets: BTreeMap<&'a str, &'a str>,
}

/// What a native service is beside its container.
#[derive(PartialEq, Serialize)]
struct ServiceParts<'a> {
    artifact: &'a str,
    sha256: Option<&'a str>,
    repository: Option<&'a str>,
    coordinate: Option<&'a str>,
    files: &'a [wire::RuntimeFile],
    config_maps: Vec<&'a BTreeMap<String, String>>,
}

/// The parts of a workload, written out in full, that decide.
pub(super) struct Definition<'a> {
    pub(super) network: wire::Network,
    pub(super) containers: &'a [wire::Container],
    pub(super) config: Option<&'a serde_json::Value>,
    pub(super) template: Option<&'a wire::ConfigTemplate>,
    pub(super) mounts: &'a BTreeMap<String, wire::MountSource>,
    pub(super) service: Option<&'a wire::Service>,
    pub(super) coordinate: Option<&'a str>,
    pub(super) pod: &'a Pod,
    pub(super) sealed: &'a BTreeMap<String, String>,
}

impl Definition<'_> {
    /// Fields at their default are not in the wire form, so the hash of an old document stays the
    /// same when a newer version adds fields.
    pub(super) fn hash(&self) -> DefinitionHash {
        let mut containers = self.containers.to_vec();
        for (container, judged) in containers.iter_mut().zip(&self.pod.containers) {
            // Changed in place.
            container.probes = wire::Probes::default();
            container.limits = wire::Limits::default();
            container.env =
                judged.env.iter().map(|(name, value)| (name.clone(), plain(value))).collect();
        }
        let extras = self.extras();
        let bytes = if extras == Extras::default() {
            serde_json::to_vec(&(self.network, &containers))
        } else {
            serde_json::to_vec(&(self.network, &containers, &extras))
        };
        hash(&bytes.expect("a definition is plain JSON"))
    }

    fn extras(&self) -> Extras<'_> {
        let pod = self.pod;
        let mut extras = Extras {
            config: self.config,
            template: self.template.map(|template| (template.path.as_str(), &template.env)),
            mounts: Some(self.mounts).filter(|mounts| !mounts.is_empty()),
            identity: pod.identity.as_ref().map(|Identity { project, grants }| {
                (project.as_deref(), grants.iter().map(|grant| grant.as_str()).collect())
            }),
            service: self.service.map(|service| self.service_parts(service)),
            ..Extras::default()
        };
        for port in &pod.ports {
            // On the gateway's own network a port is only a promise.
            if pod.network == wire::Network::Pod {
                let address = port.address.map(|address| address.to_string());
                extras.ports.push((port.name.as_str(), port.host, address));
            }
        }
        let mut secrets = Vec::new();
        for container in &pod.containers {
            for mount in &container.mounts {
                match &mount.source {
                    MountSource::ConfigMap { name, files, in_place: false } => {
                        extras.config_maps.insert(name.as_str(), files);
                    }
                    MountSource::Secret(name) => secrets.push(name.as_str()),
                    _ => {}
                }
            }
            secrets.extend(container.env.values().flat_map(|text| &text.0).filter_map(|piece| {
                match piece {
                    Piece::Secret(name) => Some(name.as_str()),
                    _ => None,
                }
            }));
        }
        let sealed = |name| Some((name, self.sealed.get(name)?.as_str()));
        extras.secrets = secrets.into_iter().filter_map(sealed).collect();
        extras
    }
}

impl<'a> Definition<'a> {
    fn service_parts(&self, service: &'a wire::Service) -> ServiceParts<'a> {
        let files = self.pod.native.iter().flat_map(|native| &native.files);
        let maps = files.filter_map(|file| match &file.source {
            RuntimeSource::Files(files) => Some(files.as_ref()),
            _ => None,
        });
        ServiceParts {
            artifact: &service.artifact,
            sha256: service.sha256.as_deref(),
            repository: service.repository.as_deref(),
            coordinate: self.coordinate,
            files: &service.files,
            config_maps: maps.collect(),
        }
    }
}

/// Fits the content of those config maps that are changed in place; empty if there are none.
pub(super) fn in_place<'a>(mounts: impl Iterator<Item = &'a MountSource>) -> Box<str> {
    let mut maps = BTreeMap::new();
    for source in mounts {
        if let MountSource::ConfigMap { name, files, in_place: true } = source {
            maps.insert(name.as_str(), files.as_ref());
        }
    }
    if maps.is_empty() {
        return "".into();
    }
    let bytes = serde_json::to_vec(&maps).expect("config maps are plain JSON");
    hash(&bytes).as_str().into()
}

/// A template as text, with what is known only later as it was written.
fn plain(template: &Template) -> String {
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Replica => "${replica}".into(),
        Piece::Secret(name) => format!("${{secret.{name}}}"),
    };
    template.0.iter().map(piece).collect()
}

fn hash(bytes: &[u8]) -> DefinitionHash {
    let hash = digest(&SHA256, bytes);
    let hex: String = hash.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    DefinitionHash::from_label(&hex)
}
