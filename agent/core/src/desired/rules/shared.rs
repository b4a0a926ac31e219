//! What workloads share: names, endpoints, config maps, secrets, types.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_protocol::desired as wire;
use coracle_protocol::limits::MAX_ENTRIES;
use coracle_protocol::{Code, GatewayId};
use serde::Deserialize as _;
use serde_json::{Map, Value};

use super::{
    Broken, Found, check_text, container, escaped, life, read_part, resource_name, service,
    workload,
};
use crate::name::ResourceName;
use crate::policy::Policy;

/// Longest name of a gateway or a project, in bytes.
const MAX_TITLE: usize = 128;

/// Longest file name in a config map, in bytes.
const MAX_FILE_NAME: usize = 128;

/// Least bytes of a sealed secret: a key and a tag.
const MIN_SEALED: usize = 64;

/// What workloads share, by name. Names that others refer to are known here even where what they
/// stand for is refused, so that one mistake is told of once.
pub(super) struct Shared<'a> {
    pub(super) gateway: Option<GatewayId>,
    pub(super) gateway_name: Option<String>,
    pub(super) project: Option<String>,
    pub(super) endpoints: BTreeMap<String, String>,
    pub(super) config_maps: BTreeMap<String, Arc<BTreeMap<String, String>>>,
    pub(super) secrets: BTreeMap<String, String>,
    pub(super) types: BTreeMap<String, Option<wire::WorkloadType>>,
    /// Of the gateway, where they are known.
    pub(super) policy: Option<&'a Policy>,
}

impl Shared<'_> {
    /// The secrets whose names are good, as they are sealed.
    pub(super) fn into_secrets(self) -> BTreeMap<ResourceName, String> {
        let named =
            |(name, sealed): (String, String)| Some((ResourceName::parse(&name).ok()?, sealed));
        self.secrets.into_iter().filter_map(named).collect()
    }
}

pub(super) fn check<'a>(
    document: &Value,
    gateway: Option<GatewayId>,
    policy: Option<&'a Policy>,
    broken: &Broken,
    found: &mut Found<'_>,
) -> Shared<'a> {
    let mut shared = Shared {
        gateway,
        gateway_name: title(document, "gateway_name", found),
        project: title(document, "project", found),
        endpoints: endpoints(document, found),
        config_maps: config_maps(document, found),
        secrets: secrets(document, found),
        types: BTreeMap::new(),
        policy,
    };
    for (name, value) in entries(document, "types", found) {
        let place = format!("/types/{}", escaped(name));
        resource_name(name, &place, found);
        let read = read_part::<wire::WorkloadType>(value, &place, broken, found);
        if let Some(of_type) = &read {
            check_type(of_type, value, &place, &shared, found);
        }
        // Without either, or with both, it cannot be told what it is.
        let is_sound = |it: &wire::WorkloadType| it.containers.is_empty() == it.service.is_some();
        shared.types.insert(name.clone(), read.filter(is_sound));
    }
    shared
}

/// What can be told of a type without a workload that is made from it.
fn check_type(
    of_type: &wire::WorkloadType,
    value: &Value,
    place: &str,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) {
    if let Some(stop) = &of_type.stop {
        life::check_stop(stop, place, found);
    }
    let mut names = std::collections::BTreeSet::new();
    for (i, container) in of_type.containers.iter().enumerate() {
        let place = format!("{place}/containers/{i}");
        container::check_name_is_new(&container.name, &mut names, &place, found);
        container::check(container.clone(), None, &place, None, shared, found);
    }
    workload::check_kind(
        (of_type.containers.is_empty(), of_type.service.is_some()),
        value,
        place,
        "",
        found,
    );
    if let Some(service) = &of_type.service {
        let place = format!("{place}/service");
        let artifact = service::artifact(service, &place, found);
        container::check(service.as_container(), Some(artifact), &place, None, shared, found);
    }
}

/// The object of this name in the document, if its size is right.
fn entries<'a>(
    document: &'a Value,
    field: &str,
    found: &mut Found<'_>,
) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    let entries: Option<&Map<String, Value>> = document.get(field).and_then(Value::as_object);
    if entries.is_some_and(|entries| entries.len() > MAX_ENTRIES) {
        let message = format!("more than {MAX_ENTRIES} entries");
        found.refuse(format!("/{field}"), Code::TOO_MANY, message);
    }
    entries.into_iter().flatten().take(MAX_ENTRIES)
}

fn title(document: &Value, field: &str, found: &mut Found<'_>) -> Option<String> {
    let title = document.get(field)?.as_str()?;
    if title.is_empty() || title.len() > MAX_TITLE || title.chars().any(char::is_control) {
        let message = format!("must be 1 to {MAX_TITLE} bytes without control characters");
        found.refuse(format!("/{field}"), Code::INVALID_VALUE, message);
    }
    Some(title.to_owned())
}

fn endpoints(document: &Value, found: &mut Found<'_>) -> BTreeMap<String, String> {
    let mut endpoints = BTreeMap::new();
    for (name, value) in entries(document, "endpoints", found) {
        let place = format!("/endpoints/{}", escaped(name));
        resource_name(name, &place, found);
        let address = value.as_str().unwrap_or_default();
        check_text(address, || place.clone(), found);
        endpoints.insert(name.clone(), address.to_owned());
    }
    endpoints
}

fn config_maps(
    document: &Value,
    found: &mut Found<'_>,
) -> BTreeMap<String, Arc<BTreeMap<String, String>>> {
    let mut maps = BTreeMap::new();
    for (name, value) in entries(document, "config_maps", found) {
        let place = format!("/config_maps/{}", escaped(name));
        resource_name(name, &place, found);
        // What is wrong with the structure was told already.
        let map = wire::ConfigMap::deserialize(value)
            .unwrap_or(wire::ConfigMap { files: BTreeMap::new() });
        if map.files.len() > MAX_ENTRIES {
            let message = format!("more than {MAX_ENTRIES} entries");
            found.refuse(format!("{place}/files"), Code::TOO_MANY, message);
        }
        for file in map.files.keys() {
            if !is_file_name(file) {
                let message = format!(
                    "a file name must be letters, digits, dots, hyphens and underscores, not begin \
                     with two dots, and be at most {MAX_FILE_NAME} long"
                );
                found.refuse(
                    format!("{place}/files/{}", escaped(file)),
                    Code::INVALID_NAME,
                    message,
                );
            }
        }
        maps.insert(name.clone(), Arc::new(map.files));
    }
    maps
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_FILE_NAME
        && name != "."
        && !name.starts_with("..")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn secrets(document: &Value, found: &mut Found<'_>) -> BTreeMap<String, String> {
    let mut secrets = BTreeMap::new();
    for (name, value) in entries(document, "secrets", found) {
        let place = format!("/secrets/{}", escaped(name));
        resource_name(name, &place, found);
        let sealed = value.get("sealed").and_then(Value::as_str);
        if let Some(sealed) = sealed.filter(|sealed| !is_sealed(sealed)) {
            let message = format!(
                "is no sealed secret ({} bytes); make one with `coracle-fleet secret seal`",
                sealed.len()
            );
            found.refuse(format!("{place}/sealed"), Code::INVALID_VALUE, message);
        }
        secrets.insert(name.clone(), sealed.unwrap_or_default().to_owned());
    }
    secrets
}

/// Whether a text can be a sealed secret: base64 (RFC 4648 section 4) of some length.
fn is_sealed(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    text.len() >= MIN_SEALED
        && text.len().is_multiple_of(4)
        && text.len() - digits.len() <= 2
        && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}
