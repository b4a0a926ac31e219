//! A bad order for every rule: what is changed in a good one, and what is refused for it.
//!
//! Every place in the code that refuses something must be reached by one of them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::desired::{Protocol, Reading, read};
use crate::facts::{GatewayFacts, TakenPort};
use crate::name::WorkloadName;
use crate::policy::{HostPath, Policy, Resource};
use crate::refused::{places_reached, start_recording};

/// Where a bad order differs from the good one: JSON Pointer and new value; null removes a field,
/// and a place one past the end of a list is added.
type Change = (&'static str, Value);

/// Changes, and what is refused for them: place and code.
type Case = (Vec<Change>, Vec<(String, &'static str)>);

/// A workload of each kind.
pub(super) fn good() -> Value {
    json!({
        "schema": 1,
        "gateway": "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11",
        "generation": 7,
        "requires": ["pods"],
        "gateway_name": "hall-3",
        "project": "acme",
        "endpoints": { "mqtt": "mqtts://broker.example:8883" },
        "config_maps": { "broker": { "files": { "mosquitto.conf": "listener 1883\n" } } },
        "secrets": { "password": { "sealed": "QUJD".repeat(20) } },
        "types": {
            "reader": {
                "network": "pod",
                "stop": { "signal": "SIGINT", "grace_seconds": 3 },
                "config_template": {
                    "schema": { "type": "object", "required": ["topic"] },
                    "env": { "TOPIC": "/topic" }
                },
                "containers": [{
                    "image": "registry.example/reader:1.0",
                    "env": { "ID": "${gateway.name}-${replica}", "PW": "${secret.password}" },
                    "mounts": [
                        { "name": "data", "path": "/data", "kinds": ["named", "anonymous"] },
                        { "name": "key", "path": "/run/key", "optional": true }
                    ],
                    "ports": [{ "name": "http", "port": 80 }]
                }]
            }
        },
        "workloads": [
            {
                "name": "web", "network": "host",
                "containers": [{ "image": "registry.example/web:1.2",
                                 "ports": [{ "name": "http", "port": 8081 }] }]
            },
            {
                "name": "reader", "type": "reader",
                "config": { "topic": "a" },
                "mounts": { "data": { "named": "reader-data" } },
                "ports": { "http": { "host": 8080 } },
                "limits": { "main": { "memory_mib": 64 } },
                "identity": true, "grants": ["password"]
            },
            {
                "name": "pod", "network": "pod",
                "containers": [
                    { "image": "registry.example/one:1",
                      "devices": [{ "path": "/dev/ttyS0" }, { "resource": "gps" }],
                      "capabilities": { "add": ["CAP_NET_ADMIN"], "drop": ["ALL"] },
                      "seccomp": "mine" },
                    { "name": "two", "image": "registry.example/two:1",
                      "mounts": [{ "name": "conf", "path": "/etc/broker", "in_place": true }] }
                ],
                "mounts": { "conf": { "config_map": "broker" } }
            },
            {
                "name": "gauge", "network": "host", "coordinate": "a.gauge.alice.line-1",
                "unit": "plant",
                "config_template": { "schema": {} }, "config": {},
                "service": {
                    "artifact": "org.example:gauge:1.4.2", "sha256": "ab".repeat(32),
                    "repository": "https://repo.example/releases",
                    "command": ["bin/gauge"], "args": ["--data=${runtime}"],
                    "mounts": [{ "name": "state", "path": "/run/state" }],
                    "files": [
                        { "artifact": "defaults" }, { "to": "conf", "config_map": "broker" },
                        { "to": "table.csv", "url": "https://files.example/t.csv", "sha256": "cd".repeat(32) },
                        { "archive": "https://files.example/backup.zip", "sha256": "ef".repeat(32), "overwrite": true }
                    ]
                },
                "mounts": { "state": { "named": "gauge-state" } }
            }
        ]
    })
}

fn facts() -> GatewayFacts {
    let policy = Policy {
        host_paths: vec![
            HostPath { path: "/srv".into(), read_only: true },
            HostPath { path: "/media".into(), read_only: false },
        ],
        devices: vec!["/dev/ttyS*".into()],
        resources: [(
            "gps".into(),
            Resource { devices: vec!["/dev/gps0".into()], access: "r".into() },
        )]
        .into(),
        capabilities: ["CAP_NET_ADMIN".into()].into(),
        seccomp_profiles: ["mine".into()].into(),
        ..Policy::default()
    };
    GatewayFacts {
        policy,
        memory_mib: Some(512),
        on_host_network: Default::default(),
        taken_ports: vec![
            TakenPort { protocol: Protocol::Tcp, address: "0.0.0.0".parse().unwrap(), port: 22 },
            TakenPort { protocol: Protocol::Udp, address: "10.1.1.1".parse().unwrap(), port: 53 },
        ],
    }
}

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    // One change, refused at the same place.
    let here = |place: &'static str, value: Value, code| {
        (vec![(place, value)], vec![(place.to_owned(), code)])
    };
    // One change, refused at another place.
    let there = |place: &'static str, value: Value, at: &str, code| {
        (vec![(place, value)], vec![(at.to_owned(), code)])
    };
    let long = || "x".repeat(9000);
    let many = |n: usize| (0..n).map(|i| (format!("n{i}"), json!("x"))).collect::<serde_json::Map<_, _>>();

    // The document.
    cases.extend([
        here("/schema", json!(2), "unknown-schema"),
        here("/schema", json!("1"), "wrong-type"),
        here("/schema", json!(-1), "invalid-value"),
        here("/schema", Value::Null, "missing-field"),
        here("/gateway", json!("gw-1"), "invalid-value"),
        here("/gateway", json!(7), "wrong-type"),
        here("/generation", json!(0), "invalid-value"),
        here("/generation", json!(9007199254740992u64), "invalid-value"),
        here("/generation", json!(-1), "invalid-value"),
        here("/generation", json!("7"), "wrong-type"),
        here("/workloads", Value::Null, "missing-field"),
        here("/workloads", json!({}), "wrong-type"),
        here("/workload", json!([]), "unknown-field"),
        here("/requires/1", json!("teleport"), "unsupported-feature"),
        there("/requires", json!(vec!["pods"; 65]), "/requires", "too-many"),
        here("/gateway_name", json!(""), "invalid-value"),
        here("/gateway_name", json!("a\nb"), "invalid-value"),
        here("/project", json!("x".repeat(129)), "invalid-value"),
        here("/project", json!(["acme"]), "wrong-type"),
        here("/endpoints/Bad_Name", json!("x"), "invalid-name"),
        here("/endpoints/mqtt", json!("a\0b"), "invalid-value"),
        here("/endpoints/mqtt", json!(long()), "too-many"),
        here("/endpoints/mqtt", json!(1), "wrong-type"),
        here("/endpoints", Value::Object(many(257)), "too-many"),
        here("/config_maps/Bad", json!({ "files": {} }), "invalid-name"),
        there("/config_maps/other", json!({}), "/config_maps/other/files", "missing-field"),
        here("/config_maps/broker/files/a~1b", json!("x"), "invalid-name"),
        here("/config_maps/broker/files/..data", json!("x"), "invalid-name"),
        here("/config_maps/broker/files/mosquitto.conf", json!(7), "wrong-type"),
        here("/config_maps/broker/files", Value::Object(many(257)), "too-many"),
        here("/secrets/Bad", json!({ "sealed": "QUJD".repeat(20) }), "invalid-name"),
        here("/secrets/password/sealed", json!("hunter2"), "invalid-value"),
        here("/secrets/password/sealed", json!("ü".repeat(80)), "invalid-value"),
        here("/secrets/password/plain", json!("hunter2"), "unknown-field"),
    ]);

    // Types.
    cases.extend([
        here("/types/Bad", json!({ "network": "none", "containers": [{ "image": "r.x/a:1" }] }), "invalid-name"),
        here("/types/reader/containers", json!([]), "invalid-value"),
        here("/types/reader/containers", Value::Null, "missing-field"),
        here("/types/reader/replicas", json!(2), "unknown-field"),
        here("/types/reader/stop/signal", json!("SIGSTOP"), "invalid-value"),
        there("/types/reader/network", Value::Null, "/workloads/1/network", "missing-field"),
        here("/types/reader/config_template/schema", Value::Null, "missing-field"),
        here("/types/reader/config_template/path", json!("etc/x"), "invalid-path"),
        here("/types/reader/config_template/path", json!("/data"), "invalid-path").with_place("/types/reader/containers/0/mounts/0/path"),
        here("/types/reader/config_template/env/A=B", json!("/topic"), "invalid-name"),
        here("/types/reader/config_template/env/TOPIC", json!("topic"), "invalid-value"),
        here("/types/reader/config_template/env", Value::Object((0..257).map(|i| (format!("n{i}"), json!("/x"))).collect()), "too-many"),
        here("/types/reader/containers/0/image", json!("reader"), "invalid-image"),
        here("/types/reader/containers/0/env/ID", json!("${gateway.nam}"), "unknown-reference"),
        here("/types/reader/containers/0/env/ID", json!("${endpoint.amqp}"), "unknown-reference"),
        here("/types/reader/containers/0/env/ID", json!("${secret.other}"), "unknown-secret"),
        there("/gateway_name", Value::Null, "/types/reader/containers/0/env/ID", "unknown-reference"),
        (vec![("/project", Value::Null), ("/types/reader/containers/0/env/ID", json!("${project}"))],
         vec![("/types/reader/containers/0/env/ID".into(), "unknown-reference")]),
        there("/types/reader/containers/1", json!({ "image": "r.x/b:1" }), "/types/reader/containers/1/name", "duplicate-name"),
    ]);

    // Workloads.
    cases.extend([
        here("/workloads/0/name", json!("Web"), "invalid-name"),
        here("/workloads/0/name", json!(""), "invalid-name"),
        here("/workloads/0/name", json!("../etc"), "invalid-name"),
        here("/workloads/0/name", json!("localhost"), "invalid-name"),
        here("/workloads/0/name", json!("pod"), "duplicate-name").with_place("/workloads/2/name"),
        here("/workloads/0/replicas", json!(0), "invalid-value"),
        here("/workloads/0/replicas", json!(65), "invalid-value"),
        here("/workloads/0/network", json!("bridge"), "invalid-value"),
        here("/workloads/0/network", Value::Null, "missing-field"),
        here("/workloads/0/restart", json!("sometimes"), "invalid-value"),
        there("/workloads/0/stop", json!({ "signal": "SIGSTOP" }), "/workloads/0/stop/signal", "invalid-value"),
        there("/workloads/0/stop", json!({ "grace_seconds": 3601 }), "/workloads/0/stop/grace_seconds", "invalid-value"),
        here("/workloads/0/containers", json!([]), "invalid-value"),
        here("/workloads/0/containers", Value::Null, "missing-field"),
        here("/workloads/0/containers", json!(vec![json!({ "image": "r.x/a:1" }); 17]), "too-many"),
        here("/workloads/3", json!(5), "wrong-type"),
        here("/workloads/1/type", json!("writer"), "unknown-type"),
        here("/workloads/1/containers", json!([{ "image": "r.x/a:1" }]), "conflicting-field"),
        here("/workloads/1/config_template", json!({ "schema": true }), "conflicting-field"),
        here("/workloads/1/config", Value::Null, "missing-field"),
        here("/workloads/1/config/topic", json!(long()), "too-many"),
        there("/workloads/1/config/topic", json!([long()]), "/workloads/1/config/topic", "too-many"),
        here("/workloads/0/config", json!({ "a": 1 }), "unexpected-config"),
        here("/workloads/1/limits/side", json!({ "pids": 9 }), "unknown-container"),
        here("/workloads/1/limits/main/memory_mib", json!(1), "invalid-value"),
        here("/workloads/1/limits/main/cpu_millis", json!(0), "invalid-value"),
        here("/workloads/1/limits/main/pids", json!("many"), "wrong-type"),
        here("/workloads/1/grants/0", json!("other"), "unknown-secret"),
        here("/workloads/1/grants/0", json!(long()), "too-many").and("/workloads/1/grants/0", "unknown-secret"),
        here("/workloads/1/identity", json!(false), "conflicting-field").with_place("/workloads/1/grants"),
        here("/workloads/1/identity", json!("yes"), "wrong-type").and("/workloads/1/grants", "conflicting-field"),
        here("/workloads", json!((0..257).map(|i| json!({ "name": format!("w{i}"), "network": "none", "containers": [{ "image": "r.x/a:1" }] })).collect::<Vec<_>>()), "too-many"),
        here("/workloads", json!((0..5).map(|i| json!({ "name": format!("w{i}"), "replicas": 64, "network": "none", "containers": [{ "image": "r.x/a:1" }] })).collect::<Vec<_>>()), "too-many"),
    ]);

    // Containers.
    cases.extend([
        here("/workloads/0/containers/0/name", json!("Main"), "invalid-name"),
        here("/workloads/2/containers/1/name", json!("main"), "duplicate-name"),
        here("/workloads/0/containers/0/image", json!("nginx"), "invalid-image"),
        here("/workloads/0/containers/0/image", Value::Null, "missing-field"),
        here("/workloads/0/containers/0/image", json!("r.x/a:1:2"), "invalid-image"),
        here("/workloads/0/containers/0/readonly_rot", json!(true), "unknown-field"),
        here("/workloads/0/containers/0/readonly_root", json!("yes"), "wrong-type"),
        here("/workloads/0/containers/0/command", json!("sh -c true"), "wrong-type"),
        here("/workloads/0/containers/0/command", json!([]), "invalid-value"),
        there("/workloads/0/containers/0/command", json!([""]), "/workloads/0/containers/0/command/0", "invalid-value"),
        here("/workloads/0/containers/0/args", json!(vec!["x"; 257]), "too-many"),
        there("/workloads/0/containers/0/args", json!(["a\0b"]), "/workloads/0/containers/0/args/0", "invalid-value"),
        there("/workloads/0/containers/0/args", json!([long()]), "/workloads/0/containers/0/args/0", "too-many"),
        there("/workloads/0/containers/0/args", json!([1]), "/workloads/0/containers/0/args/0", "wrong-type"),
        here("/workloads/0/containers/0/working_dir", json!("srv"), "invalid-value"),
        here("/workloads/0/containers/0/user", json!("a b"), "invalid-value"),
        here("/workloads/0/containers/0/user", json!("a:"), "invalid-value"),
        here("/workloads/0/containers/0/user", json!(0), "wrong-type"),
        here("/workloads/0/containers/0/env", json!(["A=1"]), "wrong-type"),
        here("/workloads/0/containers/0/env", Value::Object(many(257)), "too-many"),
        there("/workloads/0/containers/0/env", json!({ "": "x" }), "/workloads/0/containers/0/env/", "invalid-name"),
        there("/workloads/0/containers/0/env", json!({ "A=B/C": "x" }), "/workloads/0/containers/0/env/A=B~1C", "invalid-name"),
        there("/workloads/0/containers/0/env", json!({ "A": "\0" }), "/workloads/0/containers/0/env/A", "invalid-value"),
        there("/workloads/0/containers/0/env", json!({ "A": 1 }), "/workloads/0/containers/0/env/A", "wrong-type"),
        here("/workloads/2/containers/0/seccomp", json!("No Such"), "invalid-name"),
        here("/workloads/2/containers/0/capabilities/add/0", json!("NET_ADMIN"), "invalid-value"),
        here("/workloads/2/containers/0/capabilities/add/0", json!("ALL"), "invalid-value"),
        here("/workloads/2/containers/0/capabilities/drop/0", json!("CAP_NOTHING"), "invalid-value"),
        here("/workloads/2/containers/0/devices/0", json!({}), "invalid-value"),
        here("/workloads/2/containers/0/devices/0", json!({ "path": "/dev/a", "resource": "gps" }), "invalid-value"),
        here("/workloads/2/containers/0/devices/1", json!({ "resource": "gps", "to": "/dev/x" }), "conflicting-field"),
        here("/workloads/2/containers/0/devices/1/resource", json!("G P S"), "invalid-name"),
        here("/workloads/2/containers/0/devices/0/path", json!("/etc/passwd"), "invalid-path").and("/workloads/2/containers/0/devices/0/to", "invalid-path"),
        here("/workloads/2/containers/0/devices/0/to", json!("/dev/../etc"), "invalid-path"),
        here("/workloads/2/containers/0/devices/0/to", json!("/dev/pts/0"), "invalid-path"),
        here("/workloads/2/containers/0/devices/0/to", json!("/dev/shm"), "invalid-path"),
        here("/workloads/2/containers/0/devices/0/to", json!("/dev/mqueue/x"), "invalid-path"),
        here("/workloads/2/containers/0/devices/0/to", json!("/dev/null"), "invalid-path"),
        here("/workloads/2/containers/0/devices/0/to", json!("/dev/ptmx"), "invalid-path"),
        there("/workloads/2/containers/0/devices/2", json!({ "path": "/dev/ttyS1", "to": "/dev/ttyS0" }), "/workloads/2/containers/0/devices/2/to", "invalid-path"),
        here("/workloads/2/containers/0/devices/0/access", json!("rx"), "invalid-value"),
        here("/workloads/2/containers/0/devices/0/access", json!("rr"), "invalid-value"),
        here("/workloads/2/containers/0/devices/0/access", json!(""), "invalid-value"),
    ]);

    // Mounts.
    cases.extend([
        here("/workloads/1/mounts/data", Value::Null, "missing-mount"),
        here("/workloads/1/mounts/extra", json!({ "anonymous": true }), "unknown-mount"),
        here("/workloads/1/mounts/Data", json!({ "anonymous": true }), "invalid-name").and("/workloads/1/mounts/Data", "unknown-mount"),
        here("/workloads/1/mounts/data", json!({ "host": "/srv" }), "mismatched-mount").and("/workloads/1/mounts/data/host", "not-allowed"),
        here("/workloads/1/mounts/data", json!({ "secret": "password" }), "mismatched-mount"),
        here("/workloads/1/mounts/data", json!({}), "invalid-value"),
        here("/workloads/1/mounts/data", json!({ "anonymous": true, "named": "x" }), "invalid-value"),
        here("/workloads/1/mounts/data", json!("named"), "wrong-type"),
        here("/workloads/1/mounts/data/named", json!("../../etc"), "invalid-name"),
        there("/workloads/1/mounts/key", json!({ "host": "srv" }), "/workloads/1/mounts/key/host", "invalid-path"),
        there("/workloads/1/mounts/key", json!({ "host": "/srv/../etc" }), "/workloads/1/mounts/key/host", "invalid-path"),
        there("/workloads/1/mounts/key", json!({ "secret": "other" }), "/workloads/1/mounts/key/secret", "unknown-secret"),
        here("/workloads/2/mounts/conf/config_map", json!("other"), "unknown-config-map"),
        here("/workloads/2/containers/1/mounts/0/name", json!("Conf"), "invalid-name").and("/workloads/2/mounts/Conf", "missing-mount").and("/workloads/2/mounts/conf", "unknown-mount"),
        here("/workloads/2/containers/1/mounts/0/path", json!("etc"), "invalid-path"),
        here("/workloads/2/containers/1/mounts/0/path", json!("/"), "invalid-path"),
        here("/workloads/2/containers/1/mounts/0/path", json!("/etc//x"), "invalid-path"),
        here("/workloads/2/containers/1/mounts/0/path", json!("/proc/1"), "invalid-path"),
        here("/workloads/2/containers/1/mounts/0/path", json!("/run/coracle/identity"), "invalid-path"),
        here("/workloads/2/containers/1/mounts/0/kinds", json!(["floppy"]), "invalid-value").with_place("/workloads/2/containers/1/mounts/0/kinds/0").and("/workloads/2/mounts/conf", "mismatched-mount"),
        here("/types/reader/containers/0/mounts/1/path", json!("/data"), "invalid-path"),
        here("/types/reader/containers/0/mounts/1/name", json!("data"), "duplicate-name"),
    ]);

    // Ports.
    cases.extend([
        here("/workloads/1/ports/http", Value::Null, "missing-port"),
        here("/workloads/1/ports/extra", json!({ "host": 9000 }), "unknown-port"),
        here("/workloads/1/ports/http/host", json!(0), "invalid-value"),
        here("/workloads/1/ports/http/host", json!(65536), "invalid-value"),
        here("/workloads/1/ports/http/address", json!("gateway"), "invalid-value"),
        here("/workloads/1/ports/http/host", json!(8081), "port-clash").with_place("/workloads/1/ports/http"),
        here("/workloads/1/ports/http/host", json!(22), "port-in-use").with_place("/workloads/1/ports/http"),
        (vec![("/workloads/1/ports/http", json!({ "host": 53, "address": "10.1.1.1" })), ("/types/reader/containers/0/ports/0/protocol", json!("udp"))],
         vec![("/workloads/1/ports/http".into(), "port-in-use")]),
        here("/workloads/0/replicas", json!(2), "port-clash").with_place("/workloads/0/ports/http"),
        there("/workloads/0/ports", json!({ "http": { "host": 9 } }), "/workloads/0/ports/http/host", "invalid-value"),
        there("/workloads/1/network", json!("none"), "/workloads/1/ports/http", "conflicting-field"),
        here("/types/reader/containers/0/ports/0/name", json!("HTTP"), "invalid-name").and("/workloads/1/ports/HTTP", "missing-port").and("/workloads/1/ports/http", "unknown-port"),
        here("/types/reader/containers/0/ports/0/port", json!(70000), "invalid-value"),
        here("/types/reader/containers/0/ports/0/protocol", json!("sctp"), "invalid-value"),
        (vec![("/types/reader/containers/0/ports/1", json!({ "name": "http", "port": 81 }))],
         vec![("/types/reader/containers/0/ports/1/name".into(), "duplicate-name"), ("/workloads/1/ports/http".into(), "port-clash")]).only_first(),
        there("/types/reader/containers/0/ports/1", json!({ "name": "again", "port": 80, "optional": true }), "/types/reader/containers/0/ports/1/port", "port-clash"),
    ]);

    // The gateway and its policy.
    cases.extend([
        (vec![("/workloads/1/mounts/key", json!({ "host": "/media" })), ("/workloads/0/mounts", json!({ "sub": { "host": "/media/usb" } })),
              ("/workloads/0/containers/0/mounts", json!([{ "name": "sub", "path": "/sub" }]))],
         vec![("/workloads/0/mounts".into(), "mismatched-mount")]),
        here("/workloads/2/containers/0/devices/0/path", json!("/dev/mem"), "not-allowed"),
        here("/workloads/2/containers/0/devices/0/path", json!("/dev/ttyS*"), "invalid-path"),
        here("/workloads/2/containers/0/devices/1/resource", json!("modem"), "unknown-resource"),
        here("/workloads/2/containers/0/capabilities/add/0", json!("CAP_SYS_ADMIN"), "not-allowed"),
        here("/workloads/2/containers/0/seccomp", json!("unconfined"), "not-allowed"),
        here("/workloads/2/containers/0/seccomp", json!("other"), "unknown-resource"),
        there("/workloads/1/mounts/key", json!({ "host": "/etc" }), "/workloads/1/mounts/key/host", "not-allowed"),
        there("/workloads/1/mounts/key", json!({ "host": "/srv/data" }), "/workloads/1/mounts/key/host", "not-allowed"),
        there("/workloads/1/mounts/key", json!({ "host": "/srvdata" }), "/workloads/1/mounts/key/host", "not-allowed"),
    ]);
    cases.push(here("/workloads/1/limits/main/memory_mib", json!(513), "not-enough-memory").with_place("/workloads"));

    // Probes and hooks.
    let probe = "/workloads/0/containers/0/probes";
    let with = |probe: Value| json!({ "liveness": probe });
    let at = |rest: &str| format!("{probe}/liveness{rest}");
    let tcp = || json!({ "port": 80 });
    cases.extend([
        there("/workloads/0/containers/0/probes", with(json!({})), &at(""), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "tcp": tcp(), "exec": { "command": ["x"] } })), &at(""), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "tcp": { "port": 0 } })), &at("/tcp/port"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "tcp": {} })), &at("/tcp/port"), "missing-field"),
        there("/workloads/0/containers/0/probes", with(json!({ "tcp": tcp(), "period_seconds": 0 })), &at("/period_seconds"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "tcp": tcp(), "timeout_seconds": 301 })), &at("/timeout_seconds"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "tcp": tcp(), "failure_threshold": 0 })), &at("/failure_threshold"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "tcp": tcp(), "success_threshold": 2 })), &at("/success_threshold"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "tcp": tcp(), "initial_delay_seconds": 3601 })), &at("/initial_delay_seconds"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "grpc": tcp() })), &at(""), "invalid-value").and(&at("/grpc"), "unknown-field"),
        there("/workloads/0/containers/0/probes", json!({ "ready": { "tcp": tcp() } }), "/workloads/0/containers/0/probes/ready", "unknown-field"),
        there("/workloads/0/containers/0/probes", with(json!({ "exec": { "command": [] } })), &at("/exec/command"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "exec": { "command": [""] } })), &at("/exec/command/0"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "exec": { "command": ["a", "b\0"] } })), &at("/exec/command/1"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "http": { "port": 80, "path": "healthz" } })), &at("/http/path"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "http": { "port": 80, "path": "/a b" } })), &at("/http/path"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "http": { "port": 80, "path": "/a\r\nX: y" } })), &at("/http/path"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "http": { "port": 80, "headers": { "A B": "x" } } })), &at("/http/headers/A B"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "http": { "port": 80, "headers": { "A": "x\r\nB: y" } } })), &at("/http/headers/A"), "invalid-value"),
        there("/workloads/0/containers/0/probes", with(json!({ "http": { "port": 80, "headers": many(17) } })), &at("/http/headers"), "too-many"),
        there("/workloads/0/stop", json!({ "drain_seconds": 3601 }), "/workloads/0/stop/drain_seconds", "invalid-value"),
        there("/workloads/0/stop", json!({ "pre_stop": {} }), "/workloads/0/stop/pre_stop", "invalid-value"),
        there("/workloads/0/stop", json!({ "pre_stop": { "exec": { "command": [""] } } }), "/workloads/0/stop/pre_stop/exec/command/0", "invalid-value"),
        there("/workloads/0/stop", json!({ "pre_stop": { "container": "two", "http": { "port": 80 } } }), "/workloads/0/stop/pre_stop/container", "unknown-container"),
        there("/types/reader/stop", json!({ "pre_stop": { "container": "two", "http": { "port": 80 } } }), "/types/reader/stop/pre_stop/container", "unknown-container"),
    ]);

    // Updates.
    cases.extend([
        there("/workloads/0/update", json!({ "max_unavailable": 0 }), "/workloads/0/update/max_unavailable", "invalid-value"),
        there("/workloads/0/update", json!({ "strategy": "recreate" }), "/workloads/0/update/strategy", "invalid-value"),
        there("/workloads/0/update", json!({ "surge": 65 }), "/workloads/0/update/surge", "invalid-value"),
        there("/workloads/0/update", json!({ "healthy_within_seconds": 0 }), "/workloads/0/update/healthy_within_seconds", "invalid-value"),
        there("/workloads/0/update", json!({ "min_ready_seconds": 3601 }), "/workloads/0/update/min_ready_seconds", "invalid-value"),
        there("/workloads/0/update", json!({ "surge": 1 }), "/workloads/0/update", "port-clash"),
        there("/workloads/0/update", json!({ "strategy": "blue-green" }), "/workloads/0/update", "port-clash"),
        there("/workloads/1/update", json!({ "strategy": "blue-green", "surge": 1 }), "/workloads/1/update/surge", "conflicting-field"),
        there("/types/reader/update", json!({ "strategy": "blue-green", "max_unavailable": 2 }), "/types/reader/update/max_unavailable", "conflicting-field"),
        (vec![("/workloads/1/update", json!({ "surge": 3 })), ("/workloads/1/limits/main/memory_mib", json!(200))],
         vec![("/workloads".into(), "not-enough-memory")]),
    ]);

    // Dependencies.
    let on = |name: &str| json!({ name: {} });
    cases.extend([
        there("/workloads/0/depends_on", on("db"), "/workloads/0/depends_on/db", "unknown-workload"),
        there("/workloads/0/depends_on", on("No Name"), "/workloads/0/depends_on/No Name", "unknown-workload"),
        there("/workloads/0/depends_on", json!(["pod"]), "/workloads/0/depends_on", "wrong-type"),
        there("/workloads/0/depends_on", json!({ "pod": { "condition": "ready" } }), "/workloads/0/depends_on/pod/condition", "invalid-value"),
        there("/workloads/0/depends_on", json!({ "pod": { "condition": "completed" } }), "/workloads/0/depends_on/pod/condition", "conflicting-field"),
        there("/workloads/0/depends_on", on("web"), "/workloads/0/depends_on", "dependency-cycle"),
        (vec![("/workloads/0/depends_on", on("pod")), ("/workloads/2/depends_on", on("reader")), ("/workloads/1/depends_on", on("web"))],
         vec![("/workloads/2/depends_on".into(), "dependency-cycle")]),
        (vec![("/workloads/0/depends_on", Value::Object((0..65).map(|i| (format!("w{i}"), json!({}))).collect()))],
         std::iter::once(("/workloads/0/depends_on".to_owned(), "too-many"))
             .chain((0..65).map(|i| (format!("/workloads/0/depends_on/w{i}"), "unknown-workload"))).collect()),
    ]);
    // Native services. Another one, of the same coordinate.
    let another = |coordinate: &str, replicas: u32| json!({
        "name": "gauge-b", "network": "host", "coordinate": coordinate, "replicas": replicas,
        "service": { "artifact": "org.example:gauge:1", "command": ["x"] }
    });
    let service = || good()["workloads"][3]["service"].clone();
    cases.extend([
        here("/workloads/3/coordinate", Value::Null, "missing-field"),
        here("/workloads/3/coordinate", json!("a.b.c"), "invalid-name"),
        here("/workloads/0/coordinate", json!("a.b.c.d"), "conflicting-field"),
        (vec![("/workloads/4", another("a.gauge.alice.line-1", 1))],
         vec![("/workloads/4/coordinate".into(), "duplicate-name")]),
        (vec![("/workloads/3/coordinate", json!("a-1.gauge.alice.line-1")), ("/workloads/4", another("a.gauge.alice.line-1", 2))],
         vec![("/workloads/4/coordinate".into(), "duplicate-name")]),
        (vec![("/workloads/0/service", another("", 1)["service"].clone()), ("/workloads/0/coordinate", json!("b.gauge.alice.line-1"))],
         vec![("/workloads/0/containers".into(), "conflicting-field")]),
        (vec![("/workloads/1/service", service())],
         vec![("/workloads/1/service".into(), "conflicting-field")]),
        here("/workloads/3/unit", json!("No Unit"), "invalid-name"),
        here("/workloads/3/service/artifact", json!("gauge"), "invalid-artifact"),
        here("/workloads/3/service/sha256", json!("AB"), "invalid-value"),
        here("/workloads/3/service/repository", json!("ftp://repo.example"), "invalid-value"),
        here("/workloads/3/service/repository", json!("https://me:secret@repo.example"), "invalid-value"),
        here("/workloads/3/service/command/0", json!(""), "invalid-value"),
        here("/workloads/3/service/user", json!("root"), "not-allowed"),
        here("/workloads/3/service/user", json!("nobody:shadow"), "not-allowed"),
        here("/workloads/3/service/user", json!("1000:0"), "not-allowed"),
        here("/workloads/3/service/capabilities", json!({ "add": ["CAP_NET_RAW", "CAP_SETUID"] }), "not-allowed")
            .with_place("/workloads/3/service/capabilities/add/1"),
        here("/workloads/3/service/mounts/0/path", json!("/etc/state"), "invalid-path"),
        here("/workloads/3/config_template/path", json!("/etc/gauge.json"), "invalid-path"),
        here("/workloads/3/service/files/0", json!({}), "invalid-value"),
        here("/workloads/3/service/files/0", json!({ "artifact": "a", "config_map": "broker" }), "invalid-value"),
        here("/workloads/3/service/files/0/artifact", json!("../x"), "invalid-path"),
        here("/workloads/3/service/files/0/to", json!("/etc"), "invalid-path"),
        here("/workloads/3/service/files/1/config_map", json!("other"), "unknown-config-map"),
        here("/workloads/3/service/files/2/url", json!("file:///etc/passwd"), "invalid-value"),
        here("/workloads/3/service/files/2/to", Value::Null, "missing-field"),
        here("/workloads/3/service/files/2/sha256", Value::Null, "missing-field"),
        here("/workloads/3/service/files/3/archive", json!("https://"), "invalid-value"),
        (vec![("/types/reader/containers/1", json!({ "name": "x", "image": "registry.example/x:1" })), ("/types/reader/service", json!({ "artifact": "gauge", "command": ["x"] }))],
         vec![("/types/reader/containers".into(), "conflicting-field"), ("/types/reader/service/artifact".into(), "invalid-artifact")]),
    ]);
    cases
}

/// Variations of a case.
trait Vary {
    fn with_place(self, place: &str) -> Case;
    fn and(self, place: &str, code: &'static str) -> Case;
    fn only_first(self) -> Case;
}

impl Vary for Case {
    fn with_place(mut self, place: &str) -> Case {
        self.1[0].0 = place.to_owned();
        self
    }

    fn and(mut self, place: &str, code: &'static str) -> Case {
        self.1.push((place.to_owned(), code));
        self
    }

    fn only_first(mut self) -> Case {
        self.1.truncate(1);
        self
    }
}

fn change(document: &mut Value, (place, value): &Change) {
    let (parent, field) = place.rsplit_once('/').unwrap();
    let field = field.replace("~1", "/").replace("~0", "~");
    match document.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}")) {
        Value::Array(list) => match list.get_mut(field.parse::<usize>().unwrap()) {
            Some(there) => *there = value.clone(),
            None => list.push(value.clone()),
        },
        object if value.is_null() => {
            assert!(object.as_object_mut().unwrap().remove(&field).is_some(), "{place}");
        }
        object => object[field] = value.clone(),
    }
}

#[test]
fn every_rule_refuses_with_place_and_code() {
    let cases = cases();
    assert!(cases.len() >= 120, "{} bad orders", cases.len());
    let mut wrong = Vec::new();
    for (changes, mut expected) in cases {
        let mut document = good();
        changes.iter().for_each(|one| change(&mut document, one));
        let read = read(&document, Reading::Strict, Some(&facts()));
        let mut found: Vec<_> =
            read.refusals.iter().map(|r| (r.path.clone(), r.code.as_str())).collect();
        found.sort();
        expected.sort();
        let shown: String = format!("{changes:?}").chars().take(200).collect();
        if found != expected {
            wrong.push(format!("{shown}\n  found    {found:?}\n  expected {expected:?}"));
        }
        assert!(read.refusals.iter().all(|r| r.message.len() > 5), "{:?}", read.refusals);
        assert!(read.verdict(Vec::new()).is_err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_strictest_policy_gives_nothing_of_the_gateway() {
    let facts = GatewayFacts { policy: Policy::strictest(), ..facts() };
    let refusals = read(&good(), Reading::Strict, Some(&facts)).refusals;
    let mut found: Vec<_> = refusals.iter().map(|r| (r.path.as_str(), r.code.as_str())).collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            ("/workloads/0/network", "not-allowed"),
            ("/workloads/2/containers/0/capabilities/add/0", "not-allowed"),
            ("/workloads/2/containers/0/devices/0/path", "not-allowed"),
            ("/workloads/2/containers/0/devices/1/resource", "unknown-resource"),
            ("/workloads/2/containers/0/seccomp", "unknown-resource"),
            ("/workloads/3/network", "not-allowed"),
            ("/workloads/3/service", "not-allowed"),
        ]
    );
}

#[test]
fn the_good_order_is_good() {
    let read = read(&good(), Reading::Strict, Some(&facts()));
    assert_eq!(read.refusals, []);
    assert!(read.verdict(Vec::new()).is_ok());
}

/// Every place in the code that refuses something is reached by a bad order above.
#[test]
fn no_rule_is_without_a_bad_order() {
    start_recording();
    every_rule_refuses_with_place_and_code();
    let reached = places_reached();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut missing = BTreeSet::new();
    for file in ["structure.rs", "desired/rules.rs"] {
        missing.extend(unreached(&source.join(file), &reached));
    }
    for file in std::fs::read_dir(source.join("desired/rules")).unwrap() {
        missing.extend(unreached(&file.unwrap().path(), &reached));
    }
    assert!(missing.is_empty(), "rules without a bad order:\n{missing:#?}");
}

/// Lines of a source file that refuse something and were not reached.
fn unreached(file: &Path, reached: &BTreeSet<(String, u32)>) -> Vec<String> {
    let name = file.file_name().unwrap().to_str().unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    let calls = ["found.refuse(", "self.refuse("];
    // A guard against what a schema cannot say. No such value is known.
    let guard = "found.refuse(place, Code::MALFORMED, error.to_string())";
    let lines = (1..).zip(text.lines());
    lines
        .filter(|(_, line)| calls.iter().any(|call| line.contains(call)) && !line.contains(guard))
        .filter(|(number, _)| !reached.iter().any(|(of, at)| of.ends_with(name) && at == number))
        .map(|(number, line)| format!("{name}:{number}: {}", line.trim()))
        .collect()
}

#[test]
fn addresses_that_do_not_meet_do_not_clash() {
    let mut document = good();
    let loopback: IpAddr = "127.0.0.1".parse().unwrap();
    change(&mut document, &("/workloads/1/ports/http", json!({ "host": 53, "address": loopback })));
    change(&mut document, &("/types/reader/containers/0/ports/0/protocol", json!("udp")));
    assert_eq!(read(&document, Reading::Strict, Some(&facts())).refusals, []);
}

#[test]
fn what_a_workload_listens_on_already_is_its_own() {
    let mut document = good();
    change(&mut document, &("/workloads/0/containers/0/ports/0/port", json!(22)));
    let mut facts = facts();
    let refusals = read(&document, Reading::Strict, Some(&facts)).refusals;
    assert_eq!(refusals[0].code.as_str(), "port-in-use");
    facts.on_host_network.insert(WorkloadName::parse("web").unwrap());
    assert_eq!(read(&document, Reading::Strict, Some(&facts)).refusals, []);
}

#[test]
fn all_refusals_come_in_one_answer() {
    let mut document = good();
    let changes: [Change; 7] = [
        ("/workloads/0/name", json!("Web")),
        ("/workloads/1/config", Value::Null),
        ("/workloads/1/mounts/data", Value::Null),
        ("/workloads/1/limits/main/memory_mib", json!(9000)),
        ("/workloads/2/containers/0/image", json!("nginx")),
        ("/types/reader/containers/0/image", json!(7)),
        ("/secrets/password/sealed", json!("x")),
    ];
    changes.iter().for_each(|one| change(&mut document, one));
    let refusals = read(&document, Reading::Strict, Some(&facts())).refusals;
    let mut places: Vec<_> = refusals.iter().map(|refusal| refusal.path.as_str()).collect();
    places.sort_unstable();
    let expected = [
        "/secrets/password/sealed",
        "/types/reader/containers/0/image",
        "/workloads",
        "/workloads/0/name",
        "/workloads/1/config",
        "/workloads/1/mounts/data",
        "/workloads/2/containers/0/image",
    ];
    assert_eq!(places, expected, "{refusals:#?}");
}
