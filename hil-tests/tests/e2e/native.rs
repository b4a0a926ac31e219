//! Native services on a real gateway: real software from ZIPs that a web server has, updated, taken
//! back, interrupted.

use std::fs;

use coracle_hil::native::Repository;
use coracle_hil::{Status, orders};
use coracle_protocol::reported::{ReplicaState, UpdateState};
use coracle_testbed::faulty::Fault;
use coracle_testbed::process::is_alive;
use coracle_testbed::{http, wait_for};

use super::examples::{Stage, tools};
use super::{LONG, SOON, converged};

const EXAMPLE: &str = "native.yaml";

struct Plant {
    stage: Stage,
    repository: Repository,
}

impl Plant {
    fn new() -> Self {
        let mut repository = None;
        let stage = Stage::with(&[tools()], |gateway| {
            let made = Repository::start(gateway.place()).unwrap();
            gateway.lines = made.lines();
            made.publish_lighttpd("org.example.web:lighttpd:1.4").unwrap();
            made.publish_counter("1.0.0", "first", 0).unwrap();
            repository = Some(made);
        });
        Self { stage, repository: repository.unwrap() }
    }

    fn page(&self, path: &str, wanted: &str) -> String {
        let url = format!("http://127.0.0.1:8082/{path}");
        let place = self.stage.gateway.place();
        let get = || {
            let answer = place.in_network(|| http::get(&url)).unwrap().ok()?;
            Some(answer.text()).filter(|text| text.contains(wanted))
        };
        wait_for(&format!("{wanted:?} at {url}"), LONG, get)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.stage.gateway.tail()))
    }

    fn publish(&self, generation: u64, replaced: &[(&str, &str)]) {
        self.stage.publish(generation, EXAMPLE, replaced);
    }

    /// Waits until the container's half has been taken back, with the other one or by it.
    fn rolled_back(&mut self, generation: u64) -> Status {
        let taken_back = |status: &Status| {
            let update = status.workload("container")?.update.as_ref()?;
            (update.state == UpdateState::RolledBack
                && status.reported.generation_applied == generation
                && status.replica("container")?.state == ReplicaState::Running)
                .then(|| status.clone())
        };
        self.stage.gateway.wait("the update to be taken back", LONG, taken_back).unwrap()
    }

    fn installed(&self) -> Vec<String> {
        let mut found = Vec::new();
        let software = self.stage.gateway.state_dir.join("native/software");
        for group in fs::read_dir(software).into_iter().flatten().flatten() {
            for name in fs::read_dir(group.path()).into_iter().flatten().flatten() {
                for version in fs::read_dir(name.path()).into_iter().flatten().flatten() {
                    let parts = [&group, &name, &version].map(|it| it.file_name());
                    let parts = parts.iter().map(|it| it.to_string_lossy().into_owned());
                    found.push(parts.collect::<Vec<_>>().join(":"));
                }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn real_software_runs_answers_and_writes_only_where_it_may() {
    let mut plant = Plant::new();
    let status = plant.stage.order(EXAMPLE, &[]);
    plant.stage.page("http://127.0.0.1:8081/", "hello from the files of lighttpd");
    let said = plant.page("version", "first");
    assert_eq!(said, "counted on counter: first as 65534");
    let wrote: serde_json::Value = serde_json::from_str(&plant.page("write", "artifact")).unwrap();
    assert_eq!(wrote["artifact"], "EROFS");
    assert_eq!(wrote["root"], "EROFS");
    assert_eq!(wrote["runtime"], "written");
    plant.stage.said("counter", "version first listens on 8082");
    assert_eq!(plant.installed(), ["org.example.web:lighttpd:1.4", "org.example:counter:1.0.0"]);
    let artifact = status.workload("counter").unwrap().image.clone();
    assert_eq!(artifact, "org.example:counter:1.0.0");

    // What is mounted on the gateway later does not come in, nor does its end go out.
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", status.pid("pages").unwrap()));
    let mounts = mounts.unwrap();
    assert!(mounts.lines().count() > 5 && !mounts.contains(" master:"), "{mounts}");
    assert!(!mounts.contains(" shared:"), "{mounts}");

    // It is restarted as a container is, and finds what it kept.
    assert_eq!(plant.page("count", "1"), "1");
    let pid = status.pid("counter").unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    assert_eq!(plant.page("count", "2"), "2");
    // Another agent restarts nothing.
    let before = converged(&mut plant.stage.gateway, 2);
    plant.stage.gateway.kill_agent().unwrap();
    plant.stage.gateway.start_agent().unwrap();
    let after = converged(&mut plant.stage.gateway, 2);
    for name in ["pages", "counter", "container"] {
        assert_eq!(before.pid(name), after.pid(name), "{name}");
    }
    // What it changed stays over a new start; what the order changed comes.
    let runtime = plant.stage.gateway.state_dir.join("native/runtime/line-1/alice");
    fs::write(runtime.join("pages/a/lighttpd.conf"), "# mine\nserver.port = 1\n").unwrap();
    plant.stage.clear();
    assert_eq!(fs::read_to_string(runtime.join("counter/a/count")).unwrap(), "2");
    assert!(fs::read_to_string(runtime.join("pages/a/lighttpd.conf")).unwrap().contains("mine"));
}

#[test]
fn a_unit_of_both_worlds_is_updated_and_taken_back_as_one() {
    let mut plant = Plant::new();
    plant.repository.publish_counter("2.0.0", "second", 0).unwrap();
    plant.repository.publish_counter("3.0.0", "crash", 0).unwrap();
    plant.repository.publish_counter("4.0.0", "sick", 0).unwrap();
    // What is ready counts as good at once, and what is not for so long not at all.
    let update = "unit: plant\n    update: { min_ready_seconds: 0, healthy_within_seconds: 15 }\n";
    let quick = ("unit: plant\n", update);
    let first = plant.stage.order(EXAMPLE, &[quick]);
    plant.publish(3, &[("counter:1.0.0", "counter:2.0.0"), quick]);
    let second = converged(&mut plant.stage.gateway, 3);
    plant.page("version", "second");
    assert_eq!(first.pid("pages"), second.pid("pages"), "what is as before goes on");

    for (generation, version) in [(4, "3.0.0"), (5, "4.0.0")] {
        let artifact = format!("counter:{version}");
        let changes =
            [("counter:1.0.0", artifact.as_str()), ("sleep, infinity", "sleep, \"86400\""), quick];
        plant.publish(generation, &changes);
        let status = plant.rolled_back(generation);
        plant.page("version", "second");
        let update = status.workload("container").unwrap().update.clone().unwrap();
        let reason = format!("{update:?}");
        assert!(reason.contains("counter, which is of the same unit"), "{reason}");
        let container = status.replica("container").unwrap();
        assert_eq!(container.state, ReplicaState::Running);
        // A process that was just begun is runc's for a moment.
        let command = format!("/proc/{}/cmdline", container.pid.unwrap());
        let went_back = || fs::read_to_string(&command).ok()?.contains("infinity").then_some(());
        coracle_testbed::wait_for("the container to go back as well", SOON, went_back).unwrap();
    }
    // What mends the one half brings the other one along.
    plant
        .publish(6, &[("counter:1.0.0", "counter:2.0.0"), ("sleep, infinity", "sleep, \"86400\"")]);
    let status = converged(&mut plant.stage.gateway, 6);
    let pid = status.pid("container").unwrap();
    assert!(fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("86400"));
    assert!(is_alive(pid));
}

#[test]
fn a_download_goes_on_over_drops_and_a_killed_agent() {
    let mut plant = Plant::new();
    let (path, hex) = plant.repository.publish_counter("2.0.0", "second", 4 << 20).unwrap();
    plant.stage.order(EXAMPLE, &[]);
    plant.repository.server().fail(&path, 1, Fault::CutAfter(1 << 20));
    plant.repository.server().fail(&path, 1, Fault::StallAfter(1 << 20));
    let pinned = format!("counter:2.0.0\n      sha256: \"{hex}\"");
    plant.publish(3, &[("counter:1.0.0", &pinned)]);
    let twice = || (plant.repository.server().count(&path) >= 2).then_some(());
    wait_for("the download to stall", SOON, twice).unwrap();
    plant.stage.gateway.kill_agent().unwrap();
    plant.page("version", "first");
    plant.stage.gateway.start_agent().unwrap();
    converged(&mut plant.stage.gateway, 3);
    plant.page("version", "second");
    let requests = plant.repository.server().requests();
    let ranges: Vec<_> =
        requests.into_iter().filter(|seen| seen.path == path).map(|seen| seen.range).collect();
    assert!(ranges.len() == 3 && ranges[1..].iter().all(Option::is_some), "{ranges:?}");
}

#[test]
fn an_artifact_that_cannot_be_had_leaves_what_runs_running() {
    let mut plant = Plant::new();
    let first = plant.stage.order(EXAMPLE, &[]);
    let (path, hex) = plant.repository.publish_counter("2.0.0", "second", 0).unwrap();
    // Of another content than ordered.
    let pinned = format!("counter:2.0.0\n      sha256: \"{}\"", "0".repeat(64));
    for (generation, to, why) in
        [(3, "counter:7.7.7".to_owned(), "org.example:counter:7.7.7"), (4, pinned, "digest")]
    {
        plant.publish(generation, &[("counter:1.0.0", &to)]);
        let said = plant.stage.gateway.wait("it to be said", LONG, |status| {
            let update = status.workload("counter")?.update.as_ref()?;
            update.reason.clone().filter(|reason| reason.contains(why))
        });
        let said = said.unwrap();
        assert!(said.contains("artifact org.example:counter:"), "{said}");
        let now = plant.stage.gateway.status().unwrap();
        assert_eq!(now.pid("counter"), first.pid("counter"), "the old one runs on");
        plant.page("version", "first");
    }
    assert!(plant.repository.server().count(&path) > 0);
    let good = format!("counter:2.0.0\n      sha256: \"{hex}\"");
    plant.publish(5, &[("counter:1.0.0", &good)]);
    converged(&mut plant.stage.gateway, 5);
    plant.page("version", "second");
    let id = plant.stage.gateway.id();
    plant.stage.gateway.order(&orders::order(id, 6, Vec::new())).unwrap();
    converged(&mut plant.stage.gateway, 6);
    plant.stage.gateway.order(&orders::order(id, 7, Vec::new())).unwrap();
    converged(&mut plant.stage.gateway, 7);
    let none = || plant.installed().is_empty().then_some(());
    wait_for("artifacts that no order names to go", LONG, none).unwrap();
}
