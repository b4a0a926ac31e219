//! Mounts: what containers require, matched to what the workload gives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coracle_protocol::Code;
use coracle_protocol::desired::{self as wire, MountKind};

use super::shared::Shared;
use super::{Found, escaped, resource_name, shortened};
use crate::desired::{Mount, MountSource, Workload};
use crate::name::ResourceName;
use crate::policy::Policy;

/// Longest path, in bytes (`PATH_MAX` with its end).
const MAX_PATH: usize = 4095;

/// Where a workload with an identity finds its socket.
pub(crate) const IDENTITY_DIR: &str = "/run/coracle/identity";

/// What is the kernel's, or the runtime's, in every container.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Where within [`RESERVED`] something may be mounted all the same.
const FREE: &str = "/dev/shm";

/// What a workload gives, judged once for all of its containers.
pub(super) struct Given {
    sources: BTreeMap<String, Option<MountSource>>,
    used: BTreeSet<String>,
    /// Whether all that is given and required is known.
    complete: bool,
}

/// Judges what a workload gives.
pub(super) fn given(
    mounts: &BTreeMap<String, wire::MountSource>,
    complete: bool,
    place: &str,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> Given {
    let mut sources = BTreeMap::new();
    for (name, source) in mounts {
        let place = format!("{place}/mounts/{}", escaped(name));
        let named = resource_name(name, &*place, found);
        sources.insert(name.clone(), check_source(named, source, &place, shared, found));
    }
    Given { sources, used: BTreeSet::new(), complete }
}

fn check_source(
    name: Option<ResourceName>,
    source: &wire::MountSource,
    place: &str,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> Option<MountSource> {
    let wire::MountSource { anonymous, named, host, config_map, secret } = source;
    let given =
        [*anonymous, named.is_some(), host.is_some(), config_map.is_some(), secret.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        let message = "must be exactly one of anonymous: true, named, host, config_map and secret";
        found.refuse(place, Code::INVALID_VALUE, message);
        return None;
    }
    if let Some(volume) = named {
        return resource_name(volume, format!("{place}/named"), found).map(MountSource::Named);
    }
    if let Some(path) = host {
        if !is_clean(path) {
            let message = "must be an absolute path without . and ..";
            found.refuse(format!("{place}/host"), Code::INVALID_PATH, message);
            return None;
        }
        return Some(MountSource::Host(path.clone()));
    }
    if let Some(map) = config_map {
        let Some(files) = shared.config_maps.get(map) else {
            let message = format!("the order has no config map {:?}", shortened(map));
            found.refuse(format!("{place}/config_map"), Code::UNKNOWN_CONFIG_MAP, message);
            return None;
        };
        let name = ResourceName::parse(map).ok()?;
        return Some(MountSource::ConfigMap { name, files: Arc::clone(files), in_place: false });
    }
    if let Some(secret) = secret {
        if !shared.secrets.contains_key(secret) {
            let message = format!("the order has no secret {:?}", shortened(secret));
            found.refuse(format!("{place}/secret"), Code::UNKNOWN_SECRET, message);
            return None;
        }
        return ResourceName::parse(secret).ok().map(MountSource::Secret);
    }
    name.map(MountSource::Anonymous)
}

impl Given {
    /// The mounts of one container. `taken` are paths where something else is mounted.
    pub(super) fn matched(
        &mut self,
        requirements: &[wire::MountRequirement],
        place: &str,
        given_place: &str,
        taken: &[&str],
        shared: &Shared<'_>,
        found: &mut Found<'_>,
    ) -> Vec<Mount> {
        let mut mounts = Vec::new();
        let mut names = BTreeSet::new();
        let mut paths: BTreeSet<&str> = taken.iter().copied().collect();
        for (i, requirement) in requirements.iter().enumerate() {
            let place = format!("{place}/mounts/{i}");
            let name = &requirement.name;
            resource_name(name, format!("{place}/name"), found);
            if !names.insert(name) {
                let message = "another mount of this container has this name already";
                found.refuse(format!("{place}/name"), Code::DUPLICATE_NAME, message);
            }
            check_path(&requirement.path, || format!("{place}/path"), found);
            if !paths.insert(&requirement.path) {
                let message = "something else is mounted there already";
                found.refuse(format!("{place}/path"), Code::INVALID_PATH, message);
            }
            self.used.insert(name.clone());
            mounts.extend(self.matched_one(requirement, given_place, shared, found));
        }
        mounts
    }

    fn matched_one(
        &self,
        requirement: &wire::MountRequirement,
        given_place: &str,
        shared: &Shared<'_>,
        found: &mut Found<'_>,
    ) -> Option<Mount> {
        let name = &requirement.name;
        let place = || format!("{given_place}/mounts/{}", escaped(name));
        let Some(source) = self.sources.get(name) else {
            if !requirement.optional && self.complete {
                let message = format!(
                    "the mount {:?} is required (at {}) and not given",
                    shortened(name),
                    shortened(&requirement.path)
                );
                found.refuse(place(), Code::MISSING_MOUNT, message);
            }
            return None;
        };
        let mut source = source.clone()?;
        let kind = kind_of(&source);
        if !requirement.kinds.is_empty() && !requirement.kinds.contains(&kind) {
            let wanted: Vec<_> = requirement.kinds.iter().map(|kind| word(*kind)).collect();
            let message = format!(
                "the mount {:?} is {}; the container requires {}",
                shortened(name),
                word(kind),
                wanted.join(" or ")
            );
            found.refuse(place(), Code::MISMATCHED_MOUNT, message);
        }
        let mut read_only = requirement.read_only;
        match &mut source {
            MountSource::ConfigMap { in_place, .. } => {
                *in_place = requirement.in_place;
                read_only = true;
            }
            MountSource::Secret(_) => read_only = true,
            MountSource::Host(path) => {
                let at = format!("{}/host", place());
                let judge = |policy: &Policy| policy.judge_host_path(path, read_only, &at);
                found.add(shared.policy.and_then(judge));
            }
            _ => {}
        }
        Some(Mount { path: requirement.path.clone(), read_only, source })
    }

    /// Refuses what no container requires.
    pub(super) fn check_all_used(&self, place: &str, found: &mut Found<'_>) {
        let unused = |name: &&String| self.complete && !self.used.contains(*name);
        for name in self.sources.keys().filter(unused) {
            let message = format!("no container requires a mount {:?}", shortened(name));
            found.refuse(format!("{place}/mounts/{}", escaped(name)), Code::UNKNOWN_MOUNT, message);
        }
    }
}

fn kind_of(source: &MountSource) -> MountKind {
    match source {
        MountSource::Anonymous(_) => MountKind::Anonymous,
        MountSource::Named(_) => MountKind::Named,
        MountSource::Host(_) => MountKind::Host,
        MountSource::ConfigMap { .. } | MountSource::File(_) => MountKind::ConfigMap,
        MountSource::Secret(_) => MountKind::Secret,
    }
}

fn word(kind: MountKind) -> &'static str {
    match kind {
        MountKind::Anonymous => "anonymous",
        MountKind::Named => "named",
        MountKind::Host => "host",
        MountKind::ConfigMap => "config-map",
        MountKind::Secret => "secret",
    }
}

/// A path of the gateway below one that some container may write to could be made to lead elsewhere
/// between its check and its mount, by whoever writes there.
pub(super) fn check_together(judged: &[(String, Workload)], found: &mut Found<'_>) {
    let hosts = |workload: &Workload| -> Vec<(String, bool)> {
        let containers = workload.pod.containers.iter();
        let mounts = containers.flat_map(|container| &container.mounts);
        let host = |mount: &Mount| match &mount.source {
            MountSource::Host(path) => Some((path.clone(), mount.read_only)),
            _ => None,
        };
        mounts.filter_map(host).collect()
    };
    let all: Vec<_> = judged.iter().flat_map(|(_, workload)| hosts(workload)).collect();
    let below = |path: &str, parent: &str| {
        path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/'))
    };
    for (place, workload) in judged {
        for (path, _) in hosts(workload) {
            let parent = all.iter().find(|(parent, ro)| !ro && below(&path, parent));
            if let Some((parent, _)) = parent {
                let message = format!(
                    "{} lies below {}, which a container may write to",
                    shortened(&path),
                    shortened(parent)
                );
                found.refuse(format!("{place}/mounts"), Code::MISMATCHED_MOUNT, message);
            }
        }
    }
}

/// A path in a container where something may be mounted.
pub(super) fn check_path(path: &str, place: impl Fn() -> String, found: &mut Found<'_>) {
    if !is_clean(path) || path == "/" {
        let message = "must be an absolute path without . and .., and not the root";
        return found.refuse(place(), Code::INVALID_PATH, message);
    }
    let within = |parent: &str| {
        path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if !within(FREE) && (RESERVED.iter().any(|dir| within(dir)) || within(IDENTITY_DIR)) {
        let message = format!("{path} is the runtime's own in every container");
        found.refuse(place(), Code::INVALID_PATH, message);
    }
}

/// Whether a path is absolute and every component a plain name.
pub(super) fn is_clean(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= MAX_PATH
        && !path.contains('\0')
        && (path == "/" || path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(plain)))
}
