//! The rules about contents: one file for each part of the document.
//!
//! | file | judges |
//! |---|---|
//! | `container` | what a container says for itself |
//! | `definition` | nothing: hashes what a running container cannot change |
//! | `environment` | references in variables |
//! | `life` | how replicas are replaced and stopped, and what they wait for |
//! | `mounts` | what containers require and workloads give, paths |
//! | `ports` | the same of ports, and clashes |
//! | `probes` | what is asked of containers, and done in them |
//! | `service` | what only native services have |
//! | `shared` | what workloads share: names, endpoints, config maps, secrets |
//! | `workload` | a workload, and what it is made from |

mod container;
mod definition;
mod environment;
mod life;
mod mounts;
mod ports;
mod probes;
mod service;
mod shared;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use coracle_protocol::desired as wire;
use coracle_protocol::limits::{MAX_TEXT_BYTES, MAX_TOTAL_REPLICAS};
use coracle_protocol::{Code, GatewayId, Refusal};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use container::CAPABILITIES;

use super::{Desired, Workload};
use crate::facts::GatewayFacts;
use crate::name::ResourceName;
use crate::template::ConfigCheck;

/// What came of the rules.
#[derive(Debug, Default)]
pub(super) struct Judged {
    pub(super) order: Option<(GatewayId, Desired)>,
    pub(super) config_checks: Vec<ConfigCheck>,
    pub(super) secrets: BTreeMap<ResourceName, String>,
}

/// Applies every rule to every part of the document whose structure is right. Adds what it refuses
/// to the refusals of the structure; the order counts only if there are none.
pub(super) fn check(
    document: &Value,
    facts: Option<&GatewayFacts>,
    refusals: &mut Vec<Refusal>,
) -> Judged {
    let broken = Broken::new(refusals);
    let mut found = Found(refusals);
    let gateway = document.get("gateway").and_then(Value::as_str).map(GatewayId::from_str);
    let Some(gateway) = gateway else { return Judged::default() };
    let gateway = gateway
        .map_err(|error| found.refuse("/gateway", Code::INVALID_VALUE, error.to_string()))
        .ok();
    check_features(document, &mut found);
    let (Some(generation), Some(workloads)) = (
        document.get("generation").and_then(Value::as_u64),
        document.get("workloads").and_then(Value::as_array),
    ) else {
        return Judged::default();
    };
    let shared = {
        let policy = facts.map(|facts| &facts.policy);
        shared::check(document, gateway, policy, &broken, &mut found)
    };
    let mut config_checks = Vec::new();
    let mut replicas = 0;
    let mut names = BTreeSet::new();
    let mut judged: Vec<(String, Workload)> = Vec::new();
    let mut depends_on = Vec::new();
    for (i, value) in workloads.iter().enumerate() {
        let place = format!("/workloads/{i}");
        let Some(wire) = read_part::<wire::Workload>(value, &place, &broken, &mut found) else {
            continue;
        };
        replicas += wire.replicas;
        if !names.insert(wire.name.clone()) {
            let message = format!("another workload is called {:?} already", shortened(&wire.name));
            found.refuse(format!("{place}/name"), Code::DUPLICATE_NAME, message);
        }
        depends_on.push((place.clone(), wire.depends_on.keys().cloned().collect()));
        let workload = {
            let part = workload::Part { wire, value, place: &place, broken: &broken };
            workload::check(part, &shared, &mut config_checks, &mut found)
        };
        judged.extend(workload.map(|workload| (place, workload)));
    }
    if replicas > MAX_TOTAL_REPLICAS {
        let message =
            format!("{replicas} replicas in all; at most {MAX_TOTAL_REPLICAS} on one gateway");
        found.refuse("/workloads", Code::TOO_MANY, message);
    }
    ports::check_together(&judged, facts, &mut found);
    mounts::check_together(&judged, &mut found);
    service::check_together(&judged, &mut found);
    let named: Vec<_> = workloads.iter().filter_map(|w| w.get("name")?.as_str()).collect();
    life::check_together(&judged, &depends_on, &named, &mut found);
    if let Some(facts) = facts {
        check_memory(&judged, facts, &mut found);
    }
    found.say_each_once();
    let secrets = shared.into_secrets();
    let workloads = judged.into_iter().map(|(_, workload)| (workload.name.clone(), workload));
    let desired = Desired { generation, workloads: workloads.collect(), secrets: secrets.clone() };
    Judged { order: gateway.map(|gateway| (gateway, desired)), config_checks, secrets }
}

/// Collects refusals, so that the writer of an order learns of all of them at once.
struct Found<'a>(&'a mut Vec<Refusal>);

impl Found<'_> {
    #[cfg_attr(test, track_caller)]
    fn refuse(&mut self, path: impl Into<String>, code: Code, message: impl Into<String>) {
        #[cfg(test)]
        crate::refused::record();
        self.0.push(Refusal::new(path, code, message));
    }

    /// What others refuse, where nothing is refused yet.
    fn add(&mut self, refusals: impl IntoIterator<Item = Refusal>) {
        for refusal in refusals {
            if self.0.iter().all(|known| known.path != refusal.path) {
                self.0.push(refusal);
            }
        }
    }

    /// A type is judged once for each workload that is made from it.
    fn say_each_once(&mut self) {
        let mut known = BTreeSet::new();
        self.0.retain(|refusal| known.insert((refusal.path.clone(), refusal.code.clone())));
    }
}

/// Where the structure is wrong: paths within each type and workload, by its place.
struct Broken(BTreeMap<String, Vec<String>>);

impl Broken {
    fn new(refusals: &[Refusal]) -> Self {
        let mut parts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for refusal in refusals {
            let mut steps = refusal.path.splitn(4, '/').skip(1);
            let (Some(list @ ("workloads" | "types")), Some(part)) = (steps.next(), steps.next())
            else {
                continue;
            };
            let inner = format!("/{}", steps.next().unwrap_or_default());
            parts.entry(format!("/{list}/{part}")).or_default().push(inner);
        }
        Self(parts)
    }

    /// Whether it cannot be told what the part at `place` requires or gives.
    fn hides_requirements(&self, place: &str) -> bool {
        let hides = |path: &String| {
            let steps: Vec<_> = path.split('/').skip(1).collect();
            match steps[..] {
                ["network" | "type" | "mounts" | "ports", ..] | ["containers" | "service" | ""] => {
                    true
                }
                ["service", "mounts" | "ports", ..] => true,
                ["containers", _, ref rest @ ..] => {
                    matches!(rest, [] | ["mounts" | "ports", ..])
                }
                _ => false,
            }
        };
        self.0.get(place).is_some_and(|paths| paths.iter().any(hides))
    }
}

/// A workload or a type, with harmless stand-ins for what is broken in it, so that the rest can be
/// judged.
fn read_part<T: DeserializeOwned>(
    value: &Value,
    place: &str,
    broken: &Broken,
    found: &mut Found<'_>,
) -> Option<T> {
    let mended = broken.0.get(place).map(|paths| mend(value, paths, place));
    // Cannot fail after the structure was found right, save for what a schema cannot say, such as
    // 1.0 for a whole number.
    T::deserialize(mended.as_ref().unwrap_or(value))
        .map_err(|error| found.refuse(place, Code::MALFORMED, error.to_string()))
        .ok()
}

/// Of a place within a probe or a hook, the probe or the hook: without a part it is none.
fn whole_question(path: &str) -> &str {
    if path.contains("/probes/") || path.contains("/pre_stop/") {
        let ends = ["/exec/", "/http/", "/tcp/"].iter().filter_map(|part| path.find(part));
        return ends.min().map_or(path, |end| &path[..end]);
    }
    path
}

fn mend(part: &Value, broken: &[String], place: &str) -> Value {
    let mut mended = if part.is_object() { part.clone() } else { json!({}) };
    for path in broken {
        let (parent, field) = whole_question(path).rsplit_once('/').unwrap_or(("", ""));
        match mended.pointer_mut(parent) {
            Some(Value::Object(fields)) => drop(fields.remove(&unescaped(field))),
            Some(Value::Array(items)) => {
                let item = field.parse().ok().and_then(|i: usize| items.get_mut(i));
                if let Some(item) = item {
                    *item = match parent {
                        "/containers" => json!({ "name": format!("stand-in-{field}") }),
                        _ if item.is_object() || parent.ends_with("/devices") => json!({}),
                        _ if parent.ends_with("/mounts") || parent.ends_with("/ports") => json!({}),
                        _ if parent.ends_with("/kinds") => json!("named"),
                        _ => json!("x"),
                    };
                }
            }
            _ => {}
        }
    }
    let stand_in = |value: &mut Value, field: &str, with: Value| {
        if let Some(fields) = value.as_object_mut() {
            fields.entry(field).or_insert(with);
        }
    };
    let index = place.rsplit('/').next().unwrap_or_default();
    stand_in(&mut mended, "name", json!(format!("stand-in-{index}")));
    for (field, with) in [("network", json!("none")), ("containers", json!([{}]))] {
        if broken.iter().any(|path| path == "/" || path[1..] == *field) {
            stand_in(&mut mended, field, with);
        }
    }
    if let Some(service) = mended.get_mut("service") {
        stand_in(service, "artifact", json!("stand.in:x:1"));
        stand_in(service, "command", json!(["x"]));
        retain_whole(service);
    }
    if let Some(template) = mended.get_mut("config_template") {
        stand_in(template, "schema", json!(true));
    }
    for ports in mended.get_mut("ports").and_then(Value::as_object_mut).into_iter() {
        ports.retain(|_, port| port.get("host").is_some());
    }
    for container in
        mended.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten()
    {
        stand_in(container, "image", json!("stand.in/x:1"));
        retain_whole(container);
    }
    mended
}

/// What of its requirements has a name and a place.
fn retain_whole(container: &mut Value) {
    for (list, needed) in [("mounts", ["name", "path"]), ("ports", ["name", "port"])] {
        if let Some(items) = container.get_mut(list).and_then(Value::as_array_mut) {
            items.retain(|item| needed.iter().all(|field| item.get(field).is_some()));
        }
    }
}

fn check_features(document: &Value, found: &mut Found<'_>) {
    let Some(features) = document.get("requires").and_then(Value::as_array) else { return };
    for (i, feature) in features.iter().enumerate() {
        let Some(feature) = feature.as_str() else { continue };
        if !wire::FEATURES.contains(&feature) {
            let message = format!("this agent lacks the feature {:?}", shortened(feature));
            found.refuse(format!("/requires/{i}"), Code::UNSUPPORTED_FEATURE, message);
        }
    }
}

/// The sum of all memory limits must fit the gateway, also with all the replicas that an update
/// adds. A container without one counts as nothing.
fn check_memory(judged: &[(String, Workload)], facts: &GatewayFacts, found: &mut Found<'_>) {
    let Some(there) = facts.policy.memory_mib(facts.memory_mib) else { return };
    let of = |workload: &Workload| {
        let limits = workload.pod.containers.iter().filter_map(|c| c.limits.memory_mib);
        limits.sum::<u64>() * u64::from(workload.max_replicas())
    };
    let sum: u64 = judged.iter().map(|(_, workload)| of(workload)).sum();
    if sum > there {
        let mut largest: Vec<_> =
            judged.iter().map(|(_, workload)| (of(workload), &workload.name)).collect();
        largest.sort_by(|a, b| b.cmp(a));
        let shown: Vec<_> =
            largest.iter().take(3).map(|(mib, name)| format!("{name} {mib}")).collect();
        let message = format!(
            "the memory limits come to {sum} MiB; this gateway has {there} MiB for workloads \
             (largest: {})",
            shown.join(", ")
        );
        found.refuse("/workloads", Code::NOT_ENOUGH_MEMORY, message);
    }
}

fn check_text(text: &str, place: impl Fn() -> String, found: &mut Found<'_>) {
    if text.contains('\0') {
        found.refuse(place(), Code::INVALID_VALUE, "must not hold a NUL character");
    }
    if text.len() > MAX_TEXT_BYTES {
        found.refuse(place(), Code::TOO_MANY, format!("longer than {MAX_TEXT_BYTES} bytes"));
    }
}

fn resource_name(
    text: &str,
    place: impl Into<String>,
    found: &mut Found<'_>,
) -> Option<ResourceName> {
    ResourceName::parse(text)
        .map_err(|error| found.refuse(place, Code::INVALID_NAME, error.to_string()))
        .ok()
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

/// A field's name as a JSON Pointer token (RFC 6901).
fn escaped(field: &str) -> String {
    field.replace('~', "~0").replace('/', "~1")
}

fn unescaped(field: &str) -> String {
    field.replace("~1", "/").replace("~0", "~")
}
