//! Good orders, and what becomes of them.

use serde_json::json;

use super::bad;
use super::*;
use crate::desired::{Mount, MountSource, Piece, Template};

fn accepted(document: &Value) -> Desired {
    parse(document, Reading::Strict).unwrap_or_else(|refusals| panic!("{refusals:#?}")).desired
}

fn workload<'a>(desired: &'a Desired, name: &str) -> &'a Workload {
    desired.workloads.values().find(|workload| workload.name.as_str() == name).unwrap()
}

fn text(template: &Template) -> String {
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Replica => "<replica>".into(),
        Piece::Secret(name) => format!("<secret {name}>"),
    };
    template.0.iter().map(piece).collect()
}

#[test]
fn a_workload_is_its_type_with_what_it_gives() {
    let desired = accepted(&bad::good());
    let reader = workload(&desired, "reader");
    assert_eq!(reader.stop.signal.as_deref(), Some("SIGINT"));
    assert_eq!(reader.stop.grace, Duration::from_secs(3));
    let container = &reader.pod.containers[0];
    assert_eq!(container.limits.memory_mib, Some(64), "its own limit, not the type's");
    assert_eq!(text(&container.env["ID"]), "hall-3-<replica>");
    assert_eq!(text(&container.env["PW"]), "<secret password>");
    assert_eq!(text(&container.env["TOPIC"]), "a", "from the configuration");
    let sources: Vec<_> =
        container.mounts.iter().map(|mount| (&*mount.path, &mount.source)).collect();
    let volume = MountSource::Named(ResourceName::parse("reader-data").unwrap());
    let config = MountSource::File("{\"topic\":\"a\"}\n".into());
    assert_eq!(sources, [("/data", &volume), ("/etc/coracle/config.json", &config)]);
    assert_eq!(reader.pod.ports[0].host, 8080);
    let identity = reader.pod.identity.as_ref().unwrap();
    assert_eq!(identity.project.as_deref(), Some("acme"));
    assert_eq!(
        desired.host_ports().collect::<Vec<_>>(),
        [(Protocol::Tcp, 8080), (Protocol::Tcp, 8081)]
    );
}

#[test]
fn everything_that_is_no_reference_is_literal() {
    let mut document = good();
    document["gateway_name"] = json!("hall ${project}");
    let resolved = |value: &str| {
        let mut document = document.clone();
        document["workloads"][0]["containers"][0]["env"] = json!({ "A": value });
        text(&workload(&accepted(&document), "web").pod.containers[0].env["A"])
    };
    for literal in
        ["", "$", "$$", "${", "${}", "${HOME}", "$HOME", "a${b", "${a.b}", "{replica}", "}${", "ä$"]
    {
        assert_eq!(resolved(literal), literal);
    }
    assert_eq!(resolved("${workload}.${replica}"), "web.<replica>");
    assert_eq!(resolved("x${gateway.id}y"), format!("x{GATEWAY}y"));
    assert_eq!(resolved("${HOME}${workload}${"), "${HOME}web${");
    assert_eq!(resolved("${gateway.name}"), "hall ${project}", "what is put in is not read again");
}

#[test]
fn of_an_order_that_was_accepted_by_other_rules_is_kept_what_can_be() {
    let mut document = bad::good();
    document["workloads"][0]["containers"][0]["env"] = json!({ "A": "x${endpoint.gone}y" });
    document["workloads"][2]["name"] = json!("Not A Name");
    let read = read(&document, Reading::Tolerant, None);
    let (accepted, refusals) = read.as_far_as_possible().unwrap();
    assert_eq!(refusals.len(), 2, "{refusals:?}");
    let web = workload(&accepted.desired, "web");
    assert_eq!(text(&web.pod.containers[0].env["A"]), "x${endpoint.gone}y");
    let names: Vec<_> = accepted.desired.workloads.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["gauge", "reader", "web"]);
}

#[test]
fn what_replaces_a_container_and_what_does_not() {
    let hash = |document: &Value, name: &str| {
        workload(&accepted(document), name).definition.as_str().to_owned()
    };
    let changed = |pointer: &str, value: Value| {
        let mut document = bad::good();
        *document.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
        document
    };
    let [reader, pod] = ["reader", "pod"].map(|name| hash(&bad::good(), name));
    for (pointer, value) in [
        ("/gateway_name", json!("hall-4")),
        ("/project", json!("other")),
        ("/secrets/password/sealed", json!("QUJE".repeat(20))),
        ("/types/reader/containers/0/image", json!("registry.example/reader:1.1")),
        ("/types/reader/config_template/env", json!({})),
        ("/workloads/1/config/topic", json!("b")),
        ("/workloads/1/mounts/data", json!({ "anonymous": true })),
        ("/workloads/1/ports/http/host", json!(8082)),
        ("/workloads/1/grants", json!([])),
    ] {
        assert_ne!(hash(&changed(pointer, value), "reader"), reader, "{pointer}");
    }
    for (pointer, value) in [
        ("/generation", json!(8)),
        ("/endpoints/mqtt", json!("other")),
        ("/config_maps/broker/files/mosquitto.conf", json!("other")),
        ("/workloads/0/containers/0/image", json!("registry.example/web:2")),
        ("/types/reader/stop/grace_seconds", json!(30)),
        ("/workloads/1/limits/main/memory_mib", json!(65)),
        ("/types/reader/config_template/schema", json!(true)),
    ] {
        let document = changed(pointer, value);
        assert_eq!(hash(&document, "reader"), reader, "{pointer}");
        assert_eq!(hash(&document, "pod"), pod, "{pointer}");
    }
    let mut document = bad::good();
    document["types"]["reader"]["containers"][0]["probes"] =
        json!({ "liveness": { "tcp": { "port": 80 } } });
    document["workloads"][1]["replicas"] = json!(3);
    document["workloads"][1]["update"] = json!({ "strategy": "blue-green" });
    document["workloads"][1]["depends_on"] = json!({ "pod": { "condition": "healthy" } });
    assert_eq!(hash(&document, "reader"), reader, "how it lives");
    let in_place = |document: &Value| workload(&accepted(document), "pod").pod.in_place.clone();
    let other = changed("/config_maps/broker/files/mosquitto.conf", json!("other"));
    assert_ne!(in_place(&other), in_place(&bad::good()), "changed under the running container");
    let document = changed("/workloads/2/containers/1/mounts/0/in_place", json!(false));
    let replaced = hash(&document, "pod");
    let mut document = document;
    document["config_maps"]["broker"]["files"]["mosquitto.conf"] = json!("other");
    assert_ne!(hash(&document, "pod"), replaced, "without in_place the container is replaced");
}

/// A change of these values would restart every container of every gateway that is upgraded.
#[test]
fn definition_hashes_of_what_is_new_never_change() {
    let desired = accepted(&bad::good());
    let hash = |name| workload(&desired, name).definition.as_str().to_owned();
    expect_test::expect![[r#"
        6ee42a4e28d040af440d90ad112dcb5e
        9bef19fa3a90a418b5a5675642d8887b
        b38330e95b97645b1f084b2ee50f36ca"#]]
    .assert_eq(&["web", "reader", "pod"].map(hash).join("\n"));
}

#[test]
fn config_maps_and_secrets_are_never_written_to() {
    let mut document = bad::good();
    document["workloads"][1]["mounts"]["key"] = json!({ "secret": "password" });
    let desired = accepted(&document);
    let read_only = |name, path| {
        let containers = &workload(&desired, name).pod.containers;
        let mut mounts = containers.iter().flat_map(|container| &container.mounts);
        let found: Option<&Mount> = mounts.find(|mount| mount.path == path);
        found.unwrap().read_only
    };
    assert!(read_only("reader", "/run/key"));
    assert!(read_only("pod", "/etc/broker"));
    assert!(!read_only("reader", "/data"));
}

#[test]
fn how_a_workload_lives_has_the_defaults_of_its_documentation() {
    let desired = accepted(&bad::good());
    let web = workload(&desired, "web");
    let seconds = Duration::from_secs;
    let rolling = Update {
        strategy: UpdateStrategy::Rolling,
        max_unavailable: 1,
        surge: 0,
        healthy_within: seconds(300),
        min_ready: seconds(5),
    };
    assert_eq!(web.update, rolling);
    assert_eq!((web.stop.drain, web.stop.grace), (seconds(0), seconds(10)));
    assert!(!web.shares_ports() && web.depends_on.is_empty());
    let mut document = bad::good();
    document["workloads"][1]["replicas"] = json!(2);
    document["types"]["reader"]["stop"]["pre_stop"] = json!({ "http": { "port": 80 } });
    document["types"]["reader"]["containers"][0]["probes"]["readiness"] =
        json!({ "tcp": { "port": 80 } });
    let desired = accepted(&document);
    let reader = workload(&desired, "reader");
    assert!(reader.shares_ports(), "two replicas with one port of the gateway");
    assert_eq!(reader.stop.drain, seconds(2), "what a port led to is drained");
    let hook = reader.stop.pre_stop.as_ref().unwrap();
    let root = Check::Http { port: 80, path: "/".into(), headers: BTreeMap::new() };
    assert_eq!((hook.container.as_str(), &hook.check), ("main", &root));
    let readiness = reader.pod.containers[0].probes.readiness.as_ref().unwrap();
    let tcp = Probe {
        check: Check::Tcp { port: 80 },
        initial_delay: seconds(0),
        period: seconds(10),
        timeout: seconds(1),
        failure_threshold: 3,
        success_threshold: 1,
    };
    assert_eq!(readiness, &tcp);
}

#[test]
fn a_circle_of_dependencies_is_shown() {
    let mut document = bad::good();
    document["workloads"][0]["depends_on"] = json!({ "pod": {} });
    document["workloads"][1]["depends_on"] = json!({ "web": { "condition": "healthy" } });
    document["workloads"][2]["depends_on"] = json!({ "reader": {} });
    let refusals = parse(&document, Reading::Strict).unwrap_err();
    let messages: Vec<_> = refusals.iter().map(|refusal| refusal.message.as_str()).collect();
    assert_eq!(messages, ["waits for itself: pod -> reader -> web -> pod"]);
}

#[test]
fn a_native_service_is_one_container_of_an_artifact() {
    let desired = accepted(&bad::good());
    let gauge = workload(&desired, "gauge");
    assert_eq!(gauge.unit.as_ref().map(|unit| unit.as_str()), Some("plant"));
    let [container] = &gauge.pod.containers[..] else { panic!("{:?}", gauge.pod) };
    let artifact = container.software.artifact().unwrap();
    assert_eq!(artifact.id.to_string(), "org.example:gauge:1.4.2");
    assert_eq!(artifact.digest.as_ref().unwrap().hex(), "ab".repeat(32));
    assert_eq!(artifact.repository.as_deref(), Some("https://repo.example/releases"));
    assert!(container.readonly_root && container.user.is_none());
    let paths: Vec<_> = container.mounts.iter().map(|mount| &*mount.path).collect();
    assert_eq!(paths, ["/run/state", "/run/coracle/config.json"]);
    let native = gauge.pod.native.as_ref().unwrap();
    assert_eq!(native.coordinate.to_string(), "a.gauge.alice.line-1");
    let kinds: Vec<_> = native.files.iter().map(|file| (&*file.to, file.overwrite)).collect();
    assert_eq!(kinds, [("", false), ("conf", false), ("table.csv", false), ("", true)]);
}

#[test]
fn another_artifact_or_coordinate_or_content_is_another_definition() {
    let hash = |place: &str, value: Value| {
        let mut document = bad::good();
        *document.pointer_mut(place).unwrap() = value;
        workload(&accepted(&document), "gauge").definition.clone()
    };
    let service = "/workloads/3/service";
    let same = hash("/workloads/3/unit", json!("other"));
    assert_eq!(same, workload(&accepted(&bad::good()), "gauge").definition, "the unit alone");
    let others = [
        hash(&format!("{service}/artifact"), json!("org.example:gauge:1.4.3")),
        hash(&format!("{service}/sha256"), json!("ac".repeat(32))),
        hash(&format!("{service}/files/0/artifact"), json!("others")),
        hash("/workloads/3/coordinate", json!("b.gauge.alice.line-1")),
        hash("/config_maps/broker/files/mosquitto.conf", json!("listener 1884")),
    ];
    let different: std::collections::BTreeSet<_> = others.iter().chain([&same]).collect();
    assert_eq!(different.len(), others.len() + 1);
}
