//! The orders in `docs/examples`: each from order to running, doing what it promises, to removed,
//! with nothing left behind on the gateway.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coracle_hil::{Gateway, Options, Status, Traces, orders};
use coracle_protocol::reported::ReplicaState;
use coracle_testbed::image::{Builder, Compression, GREETING, Layer};
use coracle_testbed::place::ADDRESS;
use coracle_testbed::process::run;
use coracle_testbed::{Image, Result, http, wait_for};

use super::{SOON, tasks};

/// A gateway before and under an example.
pub(crate) struct Stage {
    pub(crate) gateway: Gateway,
    before: Traces,
}

impl Stage {
    /// A gateway on a network of its own, whose registry has `images` (name, tag).
    pub(crate) fn new(images: &[(&str, &str, Image)]) -> Self {
        Self::with_policy(images, "")
    }

    pub(crate) fn with_policy(images: &[(&str, &str, Image)], policy: &str) -> Self {
        Self::with(images, |gateway| {
            if !policy.is_empty() {
                std::fs::write(gateway.policy(), policy).unwrap();
            }
        })
    }

    /// The same with something prepared before the agent starts.
    pub(crate) fn with(images: &[(&str, &str, Image)], prepare: impl FnOnce(&mut Gateway)) -> Self {
        let options = Options { private_network: true, ..Options::default() };
        let mut gateway = Gateway::prepare(options).unwrap();
        prepare(&mut gateway);
        for (name, tag, image) in images {
            gateway.registry.push(image, name, tag).unwrap();
        }
        gateway.start_agent().unwrap();
        gateway.order(&orders::order(gateway.id(), 1, Vec::new())).unwrap();
        gateway.wait_converged(1).unwrap();
        let before = Traces::of(&gateway).unwrap();
        Self { gateway, before }
    }

    /// Orders an example, for this gateway and from its registry, with words of it replaced, and
    /// waits until all is as ordered.
    pub(crate) fn order(&mut self, file: &str, replaced: &[(&str, &str)]) -> Status {
        self.publish(2, file, replaced);
        self.gateway.wait_converged(2).unwrap()
    }

    /// The same as any generation, without waiting.
    pub(crate) fn publish(&self, generation: u64, file: &str, replaced: &[(&str, &str)]) {
        let mut text = std::fs::read_to_string(examples().join(file)).unwrap();
        let (id, registry) = (self.gateway.id().to_string(), self.gateway.registry.address());
        let numbered = format!("generation: {generation}\n");
        let usual = [
            ("3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11", id.as_str()),
            ("generation: 1\n", numbered.as_str()),
            ("registry.example", registry.as_str()),
        ];
        for (old, new) in usual.iter().chain(replaced) {
            assert!(text.contains(old), "{file} has no {old}");
            text = text.replace(old, new);
        }
        let signed = self.gateway.sign_text(generation, &text).unwrap();
        self.gateway.publish(&signed).unwrap();
    }

    /// Orders nothing, and waits until nothing is left.
    pub(crate) fn clear(&mut self) {
        let generation = self.gateway.status().unwrap().reported.generation_applied + 1;
        let nothing = orders::order(self.gateway.id(), generation, Vec::new());
        self.gateway.order(&nothing).unwrap();
        self.gateway.wait_converged(generation).unwrap();
        self.before.come_back(&self.gateway).unwrap_or_else(|error| {
            let (agent, containerd) = (self.gateway.tail(), self.gateway.containerd.log());
            panic!("{error:#}\nagent's log:\n{agent}\ncontainerd's log:\n{containerd}")
        });
    }

    /// Waits for a page that a URL on the gateway's own network leads to.
    pub(crate) fn page(&self, url: &str, wanted: &str) -> String {
        let get = || {
            let answer = self.gateway.place().in_network(|| http::get(url)).unwrap().ok()?;
            Some(answer.text()).filter(|text| text.contains(wanted))
        };
        wait_for(&format!("{wanted:?} at {url}"), SOON, get).unwrap()
    }

    /// Waits until a container said something.
    pub(crate) fn said(&self, name: &str, wanted: &str) -> String {
        let text = || self.gateway.logs(&[name]).ok().filter(|text| text.contains(wanted));
        wait_for(&format!("{wanted:?} of {name}"), SOON, text).unwrap_or_else(|error| {
            panic!("{error:#}; it said {:?}", self.gateway.logs(&[name, "--all"]));
        })
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples")
}

/// The image of small tools that some examples name.
pub(crate) fn tools() -> (&'static str, &'static str, Image) {
    ("tools", "1", Image::busybox().unwrap())
}

pub(crate) fn web() -> (&'static str, &'static str, Image) {
    ("web", "1", Image::lighttpd().unwrap())
}

/// The variables of a process.
pub(crate) fn variable(pid: i32, name: &str) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut variables = text.split('\0').filter_map(|line| line.split_once('='));
    variables.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

/// A path as a process sees it.
pub(crate) fn seen_by(pid: i32, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{path}"))
}

/// A number in a file of the process's cgroup, by its name in version 1 and in version 2.
pub(crate) fn limit(pid: i32, v1: (&str, &str), v2: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (controller, file) = if unified { ("", v2) } else { v1 };
    let path = text
        .lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .find(|(controllers, _)| controllers.split(',').any(|one| one == controller));
    let (_, path) = path.unwrap();
    let dir = format!("/sys/fs/cgroup/{controller}{path}");
    std::fs::read_to_string(format!("{dir}/{file}")).unwrap().trim().to_owned()
}

pub(crate) fn memory_limit(pid: i32) -> String {
    limit(pid, ("memory", "memory.limit_in_bytes"), "memory.max")
}

/// The process id of a container, by its id.
pub(crate) fn pid_of(gateway: &Gateway, container: &str) -> i32 {
    tasks(gateway).into_iter().find(|(id, _)| id == container).unwrap().1
}

fn network_of(pid: i32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()
}

#[test]
fn a_web_server() {
    let mut stage = Stage::new(&[web()]);
    let status = stage.order("web.yaml", &[]);
    stage.page("http://127.0.0.1:8080/", GREETING);
    let url = format!("http://{ADDRESS}:8080/");
    let outside = stage.gateway.place().from_outside(|| http::get(&url)).unwrap().unwrap();
    assert!(outside.text().starts_with(GREETING), "{outside:?}");

    let pid = status.pid("web").unwrap();
    assert_eq!(memory_limit(pid), (64 << 20).to_string());
    assert_eq!(limit(pid, ("pids", "pids.max"), "pids.max"), "32");
    let quota = limit(pid, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    assert!(quota.starts_with("50000"), "{quota}");
    let writing = |path: &str| std::fs::write(seen_by(pid, path), "x");
    assert!(writing("/var/www/x").is_err());
    writing("/tmp/x").unwrap();
    stage.clear();
}

#[test]
fn a_pod_with_a_sidecar() {
    let mut stage = Stage::new(&[web(), tools()]);
    let status = stage.order("sidecar.yaml", &[]);
    stage.page("http://127.0.0.1:8081/", "of dashboard-0");
    stage.said("dashboard.0.writer", "page");
    let url = format!("http://{ADDRESS}:8081/");
    assert!(stage.gateway.place().from_outside(|| http::get(&url)).unwrap().is_err());
    let pids =
        ["server", "writer"].map(|name| pid_of(&stage.gateway, &format!("dashboard.0.{name}")));
    assert_eq!(network_of(pids[0]), network_of(pids[1]));
    let containers = &status.replica("dashboard").unwrap().containers;
    assert!(containers.len() == 2 && containers.iter().all(|c| c.state == ReplicaState::Running));
    stage.clear();
}

#[test]
fn a_broker_and_a_reader() {
    let mut stage = Stage::new(&[
        ("mosquitto", "2", Builder::mosquitto().unwrap().build().unwrap()),
        ("mqtt-tools", "1", Builder::mosquitto_clients().unwrap().build().unwrap()),
    ]);
    stage.order("broker.yaml", &[]);
    let publish = || {
        let mut command = stage.gateway.place().command("mosquitto_pub");
        let words = ["-h", "127.0.0.1", "-p", "1883", "-t", "hall/temperature", "-q", "1"];
        command.args(words).args(["-m", "21.5"]);
        run(&mut command, Duration::from_secs(5)).ok()?;
        let volumes = stage.gateway.state_dir.join("volumes/named");
        let read = std::fs::read_to_string(volumes.join("readings/readings")).ok()?;
        read.contains("21.5").then_some(())
    };
    wait_for("a reading to arrive", SOON, publish).unwrap();

    // Before the broker was there it may have ended and been started again.
    let pid = stage.gateway.status().unwrap().pid("reader").unwrap();
    let config = std::fs::read(seen_by(pid, "/etc/coracle/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["broker"]["host"], "broker");
    assert_eq!(variable(pid, "TOPIC").as_deref(), Some("hall/temperature"));
    assert_eq!(variable(pid, "BROKER_PORT").as_deref(), Some("1883"));
    assert_eq!(memory_limit(pid), (48 << 20).to_string());
    stage.clear();
    // Named volumes stay.
    assert!(stage.gateway.state_dir.join("volumes/named/readings/readings").exists());
}

#[test]
fn users_of_devices_under_a_policy() {
    let policy = std::fs::read_to_string(examples().join("policy.toml")).unwrap();
    let mut stage = Stage::with_policy(&[tools()], &policy);
    let status = stage.order("device.yaml", &[]);
    // A message of the kernel begins with numbers: "6,339,5140900,-;NET: ...".
    stage.said("kernel-log", ",-;");
    stage.said("sampler", "0000000 ");
    let pid = status.pid("kernel-log").unwrap();
    assert!(!seen_by(pid, "/dev/hwrng").exists() && !seen_by(pid, "/dev/kmsg").exists());
    let capabilities = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    // CAP_SYSLOG is number 34, and the only one.
    assert!(capabilities.contains("CapEff:\t0000000400000000"), "{capabilities}");
    stage.clear();
}

#[test]
fn a_job() {
    let mut stage = Stage::new(&[tools()]);
    stage.order("job.yaml", &[]);
    let ended = stage.gateway.wait("the job to be done", SOON, |status| {
        let job = status.replica("prepare")?;
        (job.state == ReplicaState::Completed).then(|| job.last_exit.clone())
    });
    assert_eq!(ended.unwrap().map(|exit| exit.code), Some(0));
    stage.said("prepare", "prepared");
    let file = stage.gateway.state_dir.join("volumes/named/site-data/prepared");
    let prepared = std::fs::metadata(&file).unwrap().modified().unwrap();
    stage.gateway.kill_agent().unwrap();
    stage.gateway.start_agent().unwrap();
    stage.gateway.wait_converged(2).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), prepared, "it ran again");
    stage.clear();
}

/// An image that expects what it needs in variables, and no arguments.
fn collector() -> Result<Image> {
    let script =
        b"#!/bin/sh\n[ $# = 0 ] || exit 64\ntrap exit TERM\necho \"$SERVICE_NAME is up\"\n\
        while true; do sleep 1; done\n";
    let layer = Layer::new().file("/usr/bin/collector", 0o755, script);
    let builder = Builder::busybox(Compression::Gzip)?.layer(layer, Compression::Gzip);
    builder.entrypoint(&["/usr/bin/collector"]).cmd(&[]).build()
}

#[test]
fn an_image_with_variables_of_its_own_choosing() {
    let mut stage = Stage::new(&[("collector", "4", collector().unwrap())]);
    let sealed = stage.gateway.seal("mqtt-password", "s3cret & more").unwrap();
    let status = stage.order("variables.yaml", &[(stand_in("variables.yaml").as_str(), &sealed)]);
    stage.said("collector", "hall-3/collector is up");
    let pid = status.pid("collector").unwrap();
    let id = stage.gateway.id();
    let expected = [
        ("SERVICE_NAME", "hall-3/collector".to_owned()),
        ("TENANT", "acme".to_owned()),
        ("MQTT_URL", "mqtts://broker.example:8883".to_owned()),
        ("MQTT_CLIENT_ID", format!("{id}-collector-0")),
        ("MQTT_USERNAME", "acme-hall-3".to_owned()),
        ("MQTT_PASSWORD", "s3cret & more".to_owned()),
        ("GREETING", "costs $5 in ${HOME}".to_owned()),
    ];
    for (name, value) in expected {
        assert_eq!(variable(pid, name).as_ref(), Some(&value), "{name}");
    }
    let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(arguments.ends_with("\0/usr/bin/collector\0"), "{arguments:?}");
    stage.clear();
}

/// The sealed text that stands in an example.
fn stand_in(file: &str) -> String {
    let text = std::fs::read_to_string(examples().join(file)).unwrap();
    let (_, rest) = text.split_once("sealed: ").unwrap();
    rest.lines().next().unwrap().to_owned()
}

#[test]
fn a_workload_that_proves_who_it_is() {
    let image = Builder::curl().unwrap().build().unwrap();
    let mut stage = Stage::new(&[("http-tools", "1", image)]);
    let sealed = stage.gateway.seal("upload-key", "open sesame").unwrap();
    let file = "identity.yaml";
    let status = stage.order(file, &[(stand_in(file).as_str(), &sealed)]);
    stage.said("uploader.0", "ready to upload");
    stage.said("uploader.1", "ready to upload");
    let pid = status.pid("uploader").unwrap();
    let answer = |path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(seen_by(pid, path)).unwrap()).unwrap()
    };
    let (token, key) = (answer("/tmp/token"), answer("/tmp/key"));
    assert_eq!(key["value"], "open sesame");
    // A JWT: header, claims and signature. What it says is its pod's, and its signature by a key that
    // the gateway tells.
    let parts: Vec<_> = token["token"].as_str().unwrap().split('.').collect();
    let part = |at: usize| -> serde_json::Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[at]).unwrap()).unwrap()
    };
    let (header, claims) = (part(0), part(1));
    assert_eq!(claims["aud"], "storage.example");
    let whose = claims["sub"].as_str().unwrap();
    assert!(whose.ends_with("/project/acme/workload/uploader/replica/0"), "{whose}");
    let keys = stage.gateway.coracle(&["identity", "keys"]).unwrap().stdout;
    let keys: serde_json::Value = serde_json::from_slice(&keys).unwrap();
    assert_eq!(keys["keys"][0]["kid"], header["kid"]);
    stage.clear();
}
