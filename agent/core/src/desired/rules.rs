//! The rules about contents: one function for each part of the document.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use coracle_protocol::desired as wire;
use coracle_protocol::limits::{MAX_ENTRIES, MAX_TEXT_BYTES, MAX_TOTAL_REPLICAS};
use coracle_protocol::{Code, GatewayId, Refusal};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::{Container, DefinitionHash, Desired, Workload};
use crate::image::ImageRef;
use crate::name::{ContainerName, WorkloadName};

/// Signals by which a container may be asked to end: all that end a process by default.
const STOP_SIGNALS: [&str; 9] = [
    "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGABRT",
    "SIGWINCH",
];

/// Applies every rule to every part of the document whose structure is right. Adds what it refuses
/// to the refusals of the structure; the result counts only if there are none.
pub(super) fn check(document: &Value, refusals: &mut Vec<Refusal>) -> Option<(GatewayId, Desired)> {
    let mut broken: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for refusal in refusals.iter() {
        if let Some((workload, path)) = within_workload(&refusal.path) {
            broken.entry(workload).or_default().push(path);
        }
    }
    let mut found = Found(refusals);
    let gateway = document.get("gateway").and_then(Value::as_str).map(GatewayId::from_str)?;
    let gateway = gateway
        .map_err(|error| found.refuse("/gateway", Code::INVALID_VALUE, error.to_string()))
        .ok();
    check_features(document, &mut found);
    let mut desired = Desired {
        generation: document.get("generation").and_then(Value::as_u64)?,
        workloads: BTreeMap::new(),
    };
    let mut replicas = 0;
    let mut names = BTreeSet::new();
    for (i, workload) in document.get("workloads")?.as_array()?.iter().enumerate() {
        let place = format!("/workloads/{i}");
        let mended = broken.get(&i).map(|paths| mend(workload, paths, i));
        let workload = mended.as_ref().unwrap_or(workload);
        let Some(workload) = decode(workload, &place, &mut found) else { continue };
        replicas += workload.replicas;
        if !names.insert(workload.name.clone()) {
            let message =
                format!("another workload is called {:?} already", shortened(&workload.name));
            found.refuse(format!("{place}/name"), Code::DUPLICATE_NAME, message);
        }
        if let Some(workload) = check_workload(workload, &place, &mut found) {
            desired.workloads.insert(workload.name.clone(), workload);
        }
    }
    if replicas > MAX_TOTAL_REPLICAS {
        let message =
            format!("{replicas} replicas in all; at most {MAX_TOTAL_REPLICAS} on one gateway");
        found.refuse("/workloads", Code::TOO_MANY, message);
    }
    Some((gateway?, desired))
}

/// Collects refusals, so that the writer of an order learns of all of them at once.
struct Found<'a>(&'a mut Vec<Refusal>);

impl Found<'_> {
    fn refuse(&mut self, path: impl Into<String>, code: Code, message: impl Into<String>) {
        self.0.push(Refusal::new(path, code, message));
    }
}

/// The workload that a JSON Pointer leads into, and the pointer from there.
fn within_workload(path: &str) -> Option<(usize, String)> {
    let rest = path.strip_prefix("/workloads/")?;
    let (index, inner) = rest.split_once('/').unwrap_or((rest, ""));
    Some((index.parse().ok()?, format!("/{inner}")))
}

/// A workload with harmless stand-ins for what is broken in it, so that the rest can be judged.
fn mend(workload: &Value, broken: &[String], index: usize) -> Value {
    let mut mended = if workload.is_object() { workload.clone() } else { json!({}) };
    for path in broken {
        let (parent, field) = path.rsplit_once('/').unwrap_or(("", ""));
        match mended.pointer_mut(parent) {
            Some(Value::Object(fields)) => drop(fields.remove(field)),
            Some(Value::Array(items)) => {
                let item = field.parse().ok().and_then(|i: usize| items.get_mut(i));
                if let Some(item) = item {
                    *item = match parent {
                        "/containers" => json!({ "name": format!("stand-in-{field}") }),
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
    stand_in(&mut mended, "name", json!(format!("stand-in-{index}")));
    stand_in(&mut mended, "network", json!("none"));
    stand_in(&mut mended, "containers", json!([{}]));
    for container in mended["containers"].as_array_mut().into_iter().flatten() {
        stand_in(container, "image", json!("stand.in/x:1"));
    }
    mended
}

/// Cannot fail after the structure was found right, save for what a schema cannot say, such as 1.0
/// for a whole number.
fn decode(value: &Value, place: &str, found: &mut Found<'_>) -> Option<wire::Workload> {
    serde_json::from_value(value.clone())
        .map_err(|error| found.refuse(place, Code::MALFORMED, error.to_string()))
        .ok()
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

fn check_workload(
    workload: wire::Workload,
    place: &str,
    found: &mut Found<'_>,
) -> Option<Workload> {
    let name = WorkloadName::parse(&workload.name).map_err(|error| {
        found.refuse(format!("{place}/name"), Code::INVALID_NAME, error.to_string())
    });
    if let Some(signal) = &workload.stop.signal {
        if !STOP_SIGNALS.contains(&signal.as_str()) {
            let message =
                format!("is {:?}; must be one of {}", shortened(signal), STOP_SIGNALS.join(", "));
            found.refuse(format!("{place}/stop/signal"), Code::INVALID_VALUE, message);
        }
    }
    if workload.containers.len() > 1 {
        let message = "several containers in one workload are not supported yet";
        found.refuse(format!("{place}/containers"), Code::UNSUPPORTED_FEATURE, message);
    }
    let definition = definition_hash(&workload);
    let mut names = BTreeSet::new();
    let mut containers = Vec::new();
    for (i, container) in workload.containers.into_iter().enumerate() {
        let place = format!("{place}/containers/{i}");
        if !names.insert(container.name.clone()) {
            let message = "another container of this workload has this name already";
            found.refuse(format!("{place}/name"), Code::DUPLICATE_NAME, message);
        }
        containers.extend(check_container(container, &place, found));
    }
    Some(Workload {
        name: name.ok()?,
        replicas: workload.replicas,
        network: workload.network,
        restart: workload.restart,
        stop_signal: workload.stop.signal,
        grace: Duration::from_secs(workload.stop.grace_seconds.into()),
        container: Arc::new(containers.into_iter().next()?),
        definition,
    })
}

fn check_container(
    container: wire::Container,
    place: &str,
    found: &mut Found<'_>,
) -> Option<Container> {
    let name = ContainerName::parse(&container.name).map_err(|error| {
        found.refuse(format!("{place}/name"), Code::INVALID_NAME, error.to_string())
    });
    let image = ImageRef::parse(&container.image).map_err(|error| {
        found.refuse(format!("{place}/image"), Code::INVALID_IMAGE, error.to_string())
    });
    for (list, field) in [(&container.command, "command"), (&container.args, "args")] {
        for (i, text) in list.iter().flatten().enumerate() {
            check_text(text, || format!("{place}/{field}/{i}"), found);
        }
    }
    if container.command.as_ref().and_then(|command| command.first()).is_some_and(String::is_empty)
    {
        found.refuse(format!("{place}/command/0"), Code::INVALID_VALUE, "must name a program");
    }
    if container.env.len() > MAX_ENTRIES {
        let message = format!("more than {MAX_ENTRIES} entries");
        found.refuse(format!("{place}/env"), Code::TOO_MANY, message);
    }
    for (key, value) in &container.env {
        let path = || format!("{place}/env/{}", key.replace('~', "~0").replace('/', "~1"));
        if key.is_empty() || key.contains(['=', '\0']) || key.len() > 256 {
            let message = "a variable's name must not be empty, hold = or NUL, or exceed 256 bytes";
            found.refuse(path(), Code::INVALID_NAME, message);
        }
        check_text(value, path, found);
    }
    if let Some(directory) = &container.working_dir {
        let path = || format!("{place}/working_dir");
        if !directory.starts_with('/') {
            found.refuse(path(), Code::INVALID_VALUE, "must be an absolute path");
        }
        check_text(directory, path, found);
    }
    if let Some(user) = &container.user {
        if !is_user(user) {
            let message = "must be USER, UID, USER:GROUP or UID:GID";
            found.refuse(format!("{place}/user"), Code::INVALID_VALUE, message);
        }
    }
    Some(Container {
        name: name.ok()?,
        image: image.ok()?,
        command: container.command,
        args: container.args,
        env: container.env,
        working_dir: container.working_dir,
        user: container.user,
        readonly_root: container.readonly_root,
    })
}

fn check_text(text: &str, place: impl Fn() -> String, found: &mut Found<'_>) {
    if text.contains('\0') {
        found.refuse(place(), Code::INVALID_VALUE, "must not hold a NUL character");
    }
    if text.len() > MAX_TEXT_BYTES {
        found.refuse(place(), Code::TOO_MANY, format!("longer than {MAX_TEXT_BYTES} bytes"));
    }
}

fn is_user(text: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.len() <= 64
            && !p.starts_with('-')
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    match text.split_once(':') {
        Some((user, group)) => part(user) && part(group),
        None => part(text),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Hashes what a running container cannot change. Fields at their default are not in the wire
/// form, so the hash of an old document stays the same when a newer version adds fields.
fn definition_hash(workload: &wire::Workload) -> DefinitionHash {
    let parts = (workload.network, &workload.containers);
    let bytes = serde_json::to_vec(&parts).expect("a definition is plain JSON");
    let hash = digest(&SHA256, &bytes);
    let hex: String = hash.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    DefinitionHash::from_label(&hex)
}
