//! A workload: what it is made from, what it gives, and what comes of both.

use std::collections::BTreeSet;
use std::sync::Arc;

use coracle_protocol::Code;
use coracle_protocol::desired as wire;
use coracle_protocol::limits::{MAX_ENTRIES, MAX_TEXT_BYTES};
use serde_json::Value;

use super::definition::{self, Definition};
use super::mounts::{self, Given};
use super::ports::Ports;
use super::shared::Shared;
use super::{
    Broken, Found, check_text, container, escaped, life, resource_name, service, shortened,
};
use crate::desired::{
    Container, Identity, Mount, MountSource, Native, Network, Piece, Pod, Stop, Template, Workload,
};
use crate::name::{ResourceName, WorkloadName};
use crate::template::ConfigCheck;

/// What a workload is made from: its type, or what it says itself.
struct Made {
    network: Network,
    network_known: bool,
    restart: wire::RestartPolicy,
    /// With the place of whatever says so.
    stop: (wire::Stop, String),
    /// With the place of whatever says so.
    update: (wire::Update, String),
    template: Option<wire::ConfigTemplate>,
    containers: Vec<wire::Container>,
    /// What the one container is made from, if it is a native service.
    service: Option<wire::Service>,
    identity: bool,
    /// Where template and containers stand in the order.
    place: String,
}

impl Made {
    /// Where a container stands in the order.
    fn container_place(&self, index: usize) -> String {
        match self.service {
            Some(_) => format!("{}/service", self.place),
            None => format!("{}/containers/{index}", self.place),
        }
    }
}

/// A workload as it stands in the order.
pub(super) struct Part<'a> {
    pub(super) wire: wire::Workload,
    /// What it was read from.
    pub(super) value: &'a Value,
    pub(super) place: &'a str,
    pub(super) broken: &'a Broken,
}

/// Judges one workload.
pub(super) fn check(
    part: Part<'_>,
    shared: &Shared<'_>,
    config_checks: &mut Vec<ConfigCheck>,
    found: &mut Found<'_>,
) -> Option<Workload> {
    let Part { wire: workload, value, place, broken } = part;
    let name = WorkloadName::parse(&workload.name).map_err(|error| {
        found.refuse(format!("{place}/name"), Code::INVALID_NAME, error.to_string())
    });
    if workload.name == "localhost" {
        let message = "localhost is what every pod calls itself";
        found.refuse(format!("{place}/name"), Code::INVALID_NAME, message);
    }
    if let Some(stop) = &workload.stop {
        life::check_stop(stop, place, found);
    }
    let made = make(&workload, value, place, shared, found)?;
    if made.network_known {
        let at = format!("{place}/network");
        found.add(shared.policy.and_then(|policy| policy.judge_network(made.network, &at)));
    }
    let config = check_config(&workload, &made, place, config_checks, found);
    // What is broken is told of; what follows from it would only confuse.
    let complete = made.network_known
        && ![place, &made.place].iter().any(|place| broken.hides_requirements(place));
    let mut given = mounts::given(&workload.mounts, complete, place, shared, found);
    let containers = check_containers(&workload, &made, &config, &mut given, place, shared, found);
    given.check_all_used(place, found);
    check_limits(&workload, &made, place, found);
    let ports = Ports {
        required: requirements(&made),
        given: &workload.ports,
        network: made.network,
        replicas: workload.replicas,
        complete,
        place,
    };
    let ports = ports.check(found);
    let update = {
        let (update, place) = &made.update;
        life::update(update, made.network, !ports.is_empty(), place, found)
    };
    let depends_on = life::dependencies(&workload.depends_on, place, found);
    let identity = check_identity(&workload, &made, place, shared, found);
    let native = check_service(&workload, &made, place, shared, found);
    let unit = workload.unit.as_deref();
    let unit = unit.and_then(|unit| resource_name(unit, format!("{place}/unit"), found));
    let sources = containers.iter().flat_map(|container| &container.mounts);
    let in_place = definition::in_place(sources.map(|mount| &mount.source));
    let whole = containers.len() == made.containers.len()
        && !containers.is_empty()
        && made.service.is_some() == native.is_some();
    let pod = Pod {
        network: made.network,
        containers: containers.into_iter().map(Arc::new).collect(),
        ports,
        identity,
        in_place,
        native,
    };
    let definition = Definition {
        network: made.network,
        containers: &made.containers,
        config: workload.config.as_ref(),
        template: made.template.as_ref(),
        mounts: &workload.mounts,
        service: made.service.as_ref(),
        coordinate: workload.coordinate.as_deref(),
        pod: &pod,
        sealed: &shared.secrets,
    };
    let definition = definition.hash();
    let mut judged = Workload {
        name: name.ok().filter(|_| whole)?,
        replicas: workload.replicas,
        restart: made.restart,
        stop: Stop::default(),
        update,
        depends_on,
        pod: Arc::new(pod),
        definition,
        unit,
    };
    let (stop, place) = &made.stop;
    judged.stop = life::stop(stop, &made.containers, judged.shares_ports(), place, found);
    Some(judged)
}

/// What the workload is made from, with its own limits; `None` if that cannot be told.
fn make(
    workload: &wire::Workload,
    value: &Value,
    place: &str,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> Option<Made> {
    let mut made = match &workload.workload_type {
        Some(name) => from_type(workload, name, place, shared, found)?,
        None => written_out(workload, value, place, found)?,
    };
    for container in &mut made.containers {
        if let Some(own) = workload.limits.get(&container.name) {
            let of_type = container.limits;
            container.limits = wire::Limits {
                memory_mib: own.memory_mib.or(of_type.memory_mib),
                cpu_millis: own.cpu_millis.or(of_type.cpu_millis),
                pids: own.pids.or(of_type.pids),
            };
        }
    }
    Some(made)
}

fn from_type(
    workload: &wire::Workload,
    name: &str,
    place: &str,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> Option<Made> {
    let own = [
        ("containers", !workload.containers.is_empty()),
        ("config_template", workload.config_template.is_some()),
        ("service", workload.service.is_some()),
    ];
    for (field, _) in own.into_iter().filter(|(_, there)| *there) {
        let message = format!("the type {:?} says so already", shortened(name));
        found.refuse(format!("{place}/{field}"), Code::CONFLICTING_FIELD, message);
    }
    let Some(of_type) = shared.types.get(name) else {
        let message = format!("the order has no type {:?}", shortened(name));
        found.refuse(format!("{place}/type"), Code::UNKNOWN_TYPE, message);
        return None;
    };
    let of_type = of_type.clone()?;
    let Some(network) = workload.network.or(of_type.network) else {
        let message = "network is missing, in the workload and in its type";
        found.refuse(format!("{place}/network"), Code::MISSING_FIELD, message);
        return None;
    };
    let at = format!("/types/{}", escaped(name));
    Some(Made {
        network,
        network_known: true,
        restart: workload.restart.or(of_type.restart).unwrap_or_default(),
        stop: said(&workload.stop, place, of_type.stop, &at),
        update: said(&workload.update, place, of_type.update, &at),
        template: of_type.config_template,
        containers: containers_of(of_type.containers, of_type.service.as_ref()),
        service: of_type.service,
        identity: workload.identity || of_type.identity,
        place: at,
    })
}

/// What a workload says itself, or else its type, and where.
fn said<T: Clone + Default>(
    own: &Option<T>,
    place: &str,
    of_type: Option<T>,
    at: &str,
) -> (T, String) {
    match (own, of_type) {
        (None, Some(of_type)) => (of_type, at.to_owned()),
        (own, _) => (own.clone().unwrap_or_default(), place.to_owned()),
    }
}

fn written_out(
    workload: &wire::Workload,
    value: &Value,
    place: &str,
    found: &mut Found<'_>,
) -> Option<Made> {
    let kind = (workload.containers.is_empty(), workload.service.is_some());
    check_kind(kind, value, place, ", and no type is named", found);
    if workload.network.is_none() {
        let message = "network is missing, and no type is named";
        found.refuse(format!("{place}/network"), Code::MISSING_FIELD, message);
    }
    Some(Made {
        // A stand-in, so that the rest is judged.
        network: workload.network.unwrap_or(Network::Pod),
        network_known: workload.network.is_some(),
        restart: workload.restart.unwrap_or_default(),
        stop: said(&workload.stop, place, None, place),
        update: said(&workload.update, place, None, place),
        template: workload.config_template.clone(),
        containers: containers_of(workload.containers.clone(), workload.service.as_ref()),
        service: workload.service.clone(),
        identity: workload.identity,
        place: place.to_owned(),
    })
}

/// Refuses what is neither containers nor a native service, or both.
pub(super) fn check_kind(
    (no_containers, is_service): (bool, bool),
    value: &Value,
    place: &str,
    unless: &str,
    found: &mut Found<'_>,
) {
    let at = format!("{place}/containers");
    match (no_containers, is_service) {
        (false, true) => {
            let message = "there is a service already; a workload is either of the two";
            found.refuse(at, Code::CONFLICTING_FIELD, message);
        }
        (true, false) => {
            let (code, message) = match value.get("containers") {
                Some(_) => (Code::INVALID_VALUE, "must not be empty".into()),
                None => (Code::MISSING_FIELD, format!("containers is missing{unless}")),
            };
            found.refuse(at, code, message);
        }
        _ => {}
    }
}

/// The containers, one of which a native service is as well.
fn containers_of(
    containers: Vec<wire::Container>,
    service: Option<&wire::Service>,
) -> Vec<wire::Container> {
    service.map_or(containers, |service| vec![service.as_container()])
}

/// What a native service has beside its one container.
fn check_service(
    workload: &wire::Workload,
    made: &Made,
    place: &str,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> Option<Native> {
    let Some(service) = &made.service else {
        service::refuse_coordinate(workload, place, found);
        return None;
    };
    for (i, mount) in service.mounts.iter().enumerate() {
        let at = || format!("{}/mounts/{i}/path", made.container_place(0));
        service::check_mount_path(&mount.path, at, found);
    }
    let coordinate = workload.coordinate.as_deref();
    service::native(service, coordinate, place, &made.container_place(0), shared, found)
}

/// What the containers find of the workload's configuration.
#[derive(Default)]
struct Config {
    mount: Option<Mount>,
    variables: Vec<(String, String)>,
}

fn check_config(
    workload: &wire::Workload,
    made: &Made,
    place: &str,
    config_checks: &mut Vec<ConfigCheck>,
    found: &mut Found<'_>,
) -> Config {
    let Some(template) = &made.template else {
        if workload.config.is_some() {
            let message = "there is no config_template that it could satisfy";
            found.refuse(format!("{place}/config"), Code::UNEXPECTED_CONFIG, message);
        }
        return Config::default();
    };
    let at = format!("{}/config_template", made.place);
    let path = config_path(made, template, &at, found);
    if template.env.len() > MAX_ENTRIES {
        let message = format!("more than {MAX_ENTRIES} entries");
        found.refuse(format!("{at}/env"), Code::TOO_MANY, message);
    }
    for (name, pointer) in &template.env {
        let place = || format!("{at}/env/{}", escaped(name));
        container::check_variable(name, place, found);
        if !pointer.is_empty() && !pointer.starts_with('/') {
            let message = "must be a JSON Pointer, such as /broker/host";
            found.refuse(place(), Code::INVALID_VALUE, message);
        }
    }
    let Some(config) = &workload.config else {
        let message = "config is missing: there is a config_template";
        found.refuse(format!("{place}/config"), Code::MISSING_FIELD, message);
        return Config::default();
    };
    let schema_path = format!("{at}/schema");
    let known = config_checks.iter().find(|check| check.schema_path == schema_path);
    let schema = known.map(|check| check.schema.clone());
    config_checks.push(ConfigCheck {
        schema: schema.unwrap_or_else(|| Arc::new(template.schema.clone())),
        schema_path,
        value: config.clone(),
        value_path: format!("{place}/config"),
    });
    let text = format!("{config}\n");
    let source = MountSource::File(text.into());
    let variable = |(name, pointer): (&String, &String)| {
        let value = match config.pointer(pointer)? {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        // No process can be started with a variable of any length.
        if value.len() > MAX_TEXT_BYTES {
            let message = format!(
                "longer than {MAX_TEXT_BYTES} bytes, and the variable {:?} of the template",
                shortened(name)
            );
            found.refuse(format!("{place}/config{pointer}"), Code::TOO_MANY, message);
        }
        // Nothing with a NUL can be in an environment.
        (!value.contains('\0')).then(|| (name.clone(), value))
    };
    let variables = template.env.iter().filter_map(variable).collect();
    Config { mount: Some(Mount { path, read_only: true, source }), variables }
}

/// Where the containers find the configuration.
fn config_path(
    made: &Made,
    template: &wire::ConfigTemplate,
    at: &str,
    found: &mut Found<'_>,
) -> String {
    if made.service.is_some() && template.path == wire::config_path() {
        return service::CONFIG_PATH.to_owned();
    }
    let path = || format!("{at}/path");
    mounts::check_path(&template.path, path, found);
    if made.service.is_some() {
        service::check_mount_path(&template.path, path, found);
    }
    template.path.clone()
}

fn check_containers(
    workload: &wire::Workload,
    made: &Made,
    config: &Config,
    given: &mut Given,
    place: &str,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> Vec<Container> {
    let mut names = BTreeSet::new();
    let mut containers = Vec::new();
    let taken: Vec<&str> = config.mount.iter().map(|mount| mount.path.as_str()).collect();
    for (i, wire) in made.containers.iter().enumerate() {
        let at = made.container_place(i);
        container::check_name_is_new(&wire.name, &mut names, &at, found);
        let mounts = given.matched(&wire.mounts, &at, place, &taken, shared, found);
        let artifact = made.service.as_ref().map(|it| service::artifact(it, &at, found));
        let name = Some(workload.name.as_str());
        let judged = container::check(wire.clone(), artifact, &at, name, shared, found);
        let Some(mut container) = judged else { continue };
        container.mounts = mounts;
        container.mounts.extend(config.mount.clone());
        for (name, value) in &config.variables {
            let literal = || Template(vec![Piece::Text(value.clone())]);
            container.env.entry(name.clone()).or_insert_with(literal);
        }
        containers.push(container);
    }
    containers
}

fn check_limits(workload: &wire::Workload, made: &Made, place: &str, found: &mut Found<'_>) {
    for name in workload.limits.keys() {
        if !made.containers.iter().any(|container| container.name == *name) {
            let message = format!("the workload has no container {:?}", shortened(name));
            let place = format!("{place}/limits/{}", escaped(name));
            found.refuse(place, Code::UNKNOWN_CONTAINER, message);
        }
    }
}

fn requirements(made: &Made) -> Vec<(String, &wire::PortRequirement)> {
    let of = |(i, container): (usize, &'_ wire::Container)| {
        let place = format!("{}/ports", made.container_place(i));
        let at = move |j: usize| format!("{place}/{j}");
        (0..container.ports.len()).map(at).collect::<Vec<_>>()
    };
    let places = made.containers.iter().enumerate().flat_map(of);
    places.zip(made.containers.iter().flat_map(|container| &container.ports)).collect()
}

fn check_identity(
    workload: &wire::Workload,
    made: &Made,
    place: &str,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> Option<Identity> {
    let mut grants = Vec::new();
    for (i, name) in workload.grants.iter().enumerate() {
        check_text(name, || format!("{place}/grants/{i}"), found);
        if !shared.secrets.contains_key(name) {
            let message = format!("the order has no secret {:?}", shortened(name));
            found.refuse(format!("{place}/grants/{i}"), Code::UNKNOWN_SECRET, message);
        }
        grants.extend(ResourceName::parse(name).ok());
    }
    if !made.identity && !workload.grants.is_empty() {
        let message = "without identity: true there is no socket to ask for them";
        found.refuse(format!("{place}/grants"), Code::CONFLICTING_FIELD, message);
    }
    made.identity.then(|| Identity { project: shared.project.clone(), grants })
}
