//! What workloads ask for beside an image, where several parts of the agent have to go together.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use coracle_hil::gateway::{NAMESPACE, stderr};
use coracle_hil::{Gateway, orders};
use coracle_protocol::desired::{
    ConfigMap, HostPort, Limits, MountRequirement, MountSource, Network, PortRequirement, Protocol,
    Secret, Stop, Workload,
};
use coracle_protocol::{DesiredState, Refusal};
use coracle_testbed::image::Builder;
use coracle_testbed::process::is_alive;
use coracle_testbed::wait_for;

use super::examples::{Stage, seen_by, tools, variable};
use super::{SOON, sigkill};

/// The image that [`tools`] pushes.
fn image(stage: &Stage) -> String {
    stage.gateway.registry.reference("tools", "1")
}

fn order(gateway: &Gateway, generation: u64, workloads: Vec<Workload>) -> DesiredState {
    orders::order(gateway.id(), generation, workloads)
}

/// Adds a mount at `path`.
fn mounted(mut workload: Workload, name: &str, path: &str, source: MountSource) -> Workload {
    workload.mounts.insert(name.to_owned(), source);
    workload.containers[0].mounts.push(MountRequirement {
        name: name.to_owned(),
        path: path.to_owned(),
        read_only: false,
        kinds: Vec::new(),
        optional: false,
        in_place: false,
    });
    workload
}

fn in_place(mut workload: Workload) -> Workload {
    workload.containers[0].mounts[0].in_place = true;
    workload
}

fn config_map(name: &str) -> MountSource {
    MountSource { config_map: Some(name.to_owned()), ..MountSource::default() }
}

fn named(name: &str) -> MountSource {
    MountSource { named: Some(name.to_owned()), ..MountSource::default() }
}

/// Lets a container listen on `port`, with the same port of the gateway leading there.
fn listening(mut workload: Workload, port: u16) -> Workload {
    workload.network = Some(Network::Pod);
    workload.ports.insert("main".into(), HostPort { host: port, address: None });
    let listens =
        PortRequirement { name: "main".into(), port, protocol: Protocol::Tcp, optional: false };
    workload.containers[0].ports.push(listens);
    workload
}

fn memory(mut workload: Workload, mib: u64) -> Workload {
    workload.containers[0].limits = Limits { memory_mib: Some(mib), ..Limits::default() };
    workload
}

/// A pod that sleeps.
fn sleeper(stage: &Stage, name: &str) -> Workload {
    let mut workload = orders::workload(name, &image(stage));
    workload.network = Some(Network::Pod);
    workload
}

/// What a gateway says against an order.
fn refusals(gateway: &Gateway, order: &DesiredState) -> Vec<Refusal> {
    let signed = gateway.signer().unwrap().sign(order);
    let applied = gateway.apply(&signed).unwrap();
    assert!(!applied.accepted);
    applied.refusals
}

#[test]
fn a_config_map_is_changed_in_place_where_that_is_asked_and_else_by_a_new_container() {
    let mut stage = Stage::new(&[tools()]);
    let maps = |level: &str| {
        let files = [("level".to_owned(), level.to_owned())].into();
        [("settings".to_owned(), ConfigMap { files })].into()
    };
    let with = |generation, level: &str| {
        let user = |name| {
            let sleeper = sleeper(&stage, name);
            mounted(sleeper, "conf", "/etc/settings", config_map("settings"))
        };
        let workloads = vec![in_place(user("flexible")), user("rigid")];
        DesiredState { config_maps: maps(level), ..order(&stage.gateway, generation, workloads) }
    };
    let orders = [with(2, "low"), with(3, "high")];
    stage.gateway.order(&orders[0]).unwrap();
    let before = stage.gateway.wait_converged(2).unwrap();
    let [flexible, rigid] = ["flexible", "rigid"].map(|name| before.pid(name).unwrap());
    let level = |pid| std::fs::read_to_string(seen_by(pid, "/etc/settings/level")).unwrap();
    assert_eq!((level(flexible).as_str(), level(rigid).as_str()), ("low", "low"));

    stage.gateway.order(&orders[1]).unwrap();
    let after = stage.gateway.wait_converged(3).unwrap();
    assert_eq!(after.pid("flexible"), Some(flexible), "it was to go on");
    wait_for("the new file", SOON, || (level(flexible) == "high").then_some(())).unwrap();
    let replaced = after.pid("rigid").unwrap();
    assert!(replaced != rigid && !is_alive(rigid));
    assert_eq!(level(replaced), "high");
    stage.clear();
}

#[test]
fn a_container_that_takes_too_much_memory_is_said_to() {
    let mut stage = Stage::new(&[tools()]);
    // tail keeps the last line, and there is only one.
    let greedy = orders::script("greedy", &image(&stage), "tail -n 1 /dev/zero");
    let order = order(&stage.gateway, 2, vec![memory(greedy, 8)]);
    stage.gateway.order(&order).unwrap();
    let exit = stage.gateway.wait("the end for want of memory", SOON, |status| {
        status.replica("greedy")?.last_exit.clone().filter(|exit| exit.out_of_memory)
    });
    assert_eq!(exit.unwrap().code, 137);
    let page = stage.gateway.coracle(&["status"]).unwrap();
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(page.contains("out of memory"), "{page}");
    stage.clear();
}

#[test]
fn an_order_that_this_gateway_cannot_fulfil_is_refused_before_anything_changes() {
    let mut stage = Stage::new(&[tools()]);
    let first = order(&stage.gateway, 2, vec![listening(sleeper(&stage, "first"), 7000)]);
    stage.gateway.order(&first).unwrap();
    let pid = stage.gateway.wait_converged(2).unwrap().pid("first").unwrap();
    let listener =
        stage.gateway.place().in_network(|| TcpListener::bind(("127.0.0.1", 7001))).unwrap();
    let host = MountSource { host: Some("/etc".into()), ..MountSource::default() };
    let workloads = vec![
        listening(sleeper(&stage, "listener"), 7001),
        memory(sleeper(&stage, "large"), 700_000),
        memory(sleeper(&stage, "larger"), 800_000),
        mounted(sleeper(&stage, "curious"), "etc", "/host", host),
    ];
    let bad = order(&stage.gateway, 3, workloads);
    let found = refusals(&stage.gateway, &bad);
    let of = |code: &str| found.iter().find(|refusal| refusal.code.as_str() == code).unwrap();
    assert_eq!(found.len(), 3, "{found:#?}");
    assert_eq!(of("port-in-use").path, "/workloads/0/ports/main");
    assert!(of("not-enough-memory").message.contains("1500000 MiB"), "{found:#?}");
    assert!(of("not-allowed").path.starts_with("/workloads/3/"), "{found:#?}");
    let status = stage.gateway.status().unwrap();
    assert_eq!((status.reported.generation_applied, status.pid("first")), (2, Some(pid)));
    assert_eq!(status.reported.workloads.len(), 1);

    // What the orders in force take is theirs to give.
    drop(listener);
    let moved = vec![listening(sleeper(&stage, "second"), 7000), bad.workloads[0].clone()];
    let good = order(&stage.gateway, 3, moved);
    stage.gateway.order(&good).unwrap();
    stage.gateway.wait_converged(3).unwrap();
    stage.clear();
}

#[test]
fn workloads_find_each_other_by_name_also_at_a_new_address() {
    let mut stage = Stage::new(&[("tools", "1", Builder::curl().unwrap().build().unwrap())]);
    let page = |text: &str| {
        let script =
            format!("mkdir /pages; echo {text} >/pages/index.html; exec httpd -f -h /pages");
        let mut server = orders::script("server", &image(&stage), &script);
        server.network = Some(Network::Pod);
        server
    };
    let script = "while true; do curl -s -m 2 http://server/; sleep 0.2; done";
    let mut client = orders::script("client", &image(&stage), script);
    client.network = Some(Network::Pod);
    let orders = [("one", 2), ("two", 3)].map(|(text, generation)| {
        order(&stage.gateway, generation, vec![page(text), client.clone()])
    });
    stage.gateway.order(&orders[0]).unwrap();
    let before = stage.gateway.wait_converged(2).unwrap();
    stage.said("client", "one");
    let address = |status: &coracle_hil::Status| status.replica("server").unwrap().address;
    assert!(address(&before).is_some());

    stage.gateway.order(&orders[1]).unwrap();
    let after = stage.gateway.wait_converged(3).unwrap();
    stage.said("client", "two");
    assert_ne!(address(&before), address(&after));
    assert_eq!(before.pid("client"), after.pid("client"), "the client was to go on");
    stage.clear();
}

#[test]
fn what_containers_said_is_shown_also_of_the_run_before_and_without_an_agent() {
    let mut stage = Stage::new(&[tools()]);
    let script = "echo begun; echo trouble >&2; trap 'echo ended; exit 3' TERM; \
                  while true; do sleep 0.1; done";
    let talker = orders::script("talker", &image(&stage), script);
    let order = order(&stage.gateway, 2, vec![talker]);
    stage.gateway.order(&order).unwrap();
    let status = stage.gateway.wait_converged(2).unwrap();
    stage.said("talker", "trouble");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(status.pid("talker").unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let second = stage.gateway.wait_replaced("talker", status.pid("talker").unwrap()).unwrap();
    let previous = || {
        let said = stage.gateway.logs(&["talker", "--previous"]).ok()?;
        said.contains("ended").then_some(said)
    };
    let said = wait_for("the run before", SOON, previous).unwrap();
    assert!(said.contains("begun") && said.contains("trouble"), "{said}");
    let stderr = stage.gateway.logs(&["talker", "--previous", "--stream", "stderr"]).unwrap();
    assert!(stderr.contains("trouble") && !stderr.contains("begun"), "{stderr}");

    stage.gateway.stop_agent().unwrap();
    sigkill(second);
    stage.said("talker.0.main", "begun");
    stage.gateway.start_agent().unwrap();
    stage.gateway.wait_replaced("talker", second).unwrap();
    stage.clear();
}

/// Applies an order, kills the agent after a while, and starts it again.
fn killed_after(gateway: &mut Gateway, order: &DesiredState, millis: u64) {
    let signed = gateway.signer().unwrap().sign(order);
    assert!(gateway.apply(&signed).unwrap().accepted);
    // Nothing is waited for but time, which is what varies here.
    assert!(wait_for("", Duration::from_millis(millis), || None::<()>).is_err());
    gateway.kill_agent().unwrap();
    gateway.start_agent().unwrap();
    gateway.wait_converged(order.generation).unwrap();
}

#[test]
fn an_agent_killed_while_pods_start_or_go_leaves_nothing_behind() {
    let mut stage = Stage::new(&[tools()]);
    for (round, millis) in (1..).zip([20, 60, 120, 250, 500]) {
        let pods = [("a", 7101), ("b", 7102), ("c", 7103)];
        let pods = pods.map(|(name, port)| {
            let mut pod = listening(sleeper(&stage, name), port);
            pod.stop = Some(Stop { grace_seconds: 0, ..Stop::default() });
            pod
        });
        let pods = order(&stage.gateway, round * 10, pods.into());
        killed_after(&mut stage.gateway, &pods, millis);
        let nothing = order(&stage.gateway, round * 10 + 1, Vec::new());
        killed_after(&mut stage.gateway, &nothing, millis / 2);
        stage.clear();
    }
}

#[test]
fn a_named_volume_survives_its_workload_until_it_is_removed() {
    let mut stage = Stage::new(&[tools()]);
    let script =
        "echo \"$VERSION\" >>/data/versions; trap exit TERM; while true; do sleep 0.1; done";
    let version = |generation: u64| {
        let mut keeper = orders::script("keeper", &image(&stage), script);
        keeper.containers[0].env.insert("VERSION".into(), format!("v{generation}"));
        order(&stage.gateway, generation, vec![mounted(keeper, "data", "/data", named("kept"))])
    };
    let orders = [version(2), version(3)];
    let file = stage.gateway.state_dir.join("volumes/named/kept/versions");
    let versions = |wanted: &str| {
        let read = || std::fs::read_to_string(&file).ok().filter(|text| text == wanted);
        wait_for(wanted, SOON, read).unwrap()
    };
    for (order, wanted) in orders.iter().zip(["v2\n", "v2\nv3\n"]) {
        stage.gateway.order(order).unwrap();
        stage.gateway.wait_converged(order.generation).unwrap();
        versions(wanted);
    }
    let volumes = |stage: &Stage| {
        let output = stage.gateway.coracle(&["volumes", "--json"]).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let listed = volumes(&stage);
    assert!(listed.contains("kept") && listed.contains("keeper"), "{listed}");
    let remove = |stage: &Stage| {
        let output = stage.gateway.coracle(&["volumes", "rm", "--yes", "kept"]).unwrap();
        output.status.success().then_some(()).ok_or(stderr(&output))
    };
    let refused = remove(&stage).unwrap_err();
    assert!(refused.contains("keeper"), "{refused}");
    stage.clear();
    versions("v2\nv3\n");
    // The orders before the newest ones may come back.
    remove(&stage).unwrap_err();
    stage.clear();
    remove(&stage).unwrap();
    assert!(!file.exists() && !volumes(&stage).contains("kept"));
}

#[test]
fn a_secret_is_had_by_its_process_and_appears_nowhere_else() {
    const VALUE: &str = "xyzzy-plugh-7391";
    let mut stage = Stage::new(&[tools()]);
    let sealed = stage.gateway.seal("password", VALUE).unwrap();
    let source = MountSource { secret: Some("password".into()), ..MountSource::default() };
    let mut user = mounted(sleeper(&stage, "user"), "password", "/run/password", source);
    user.containers[0].env.insert("PASSWORD".into(), "<${secret.password}>".into());
    let mut order = order(&stage.gateway, 2, vec![user]);
    order.secrets.insert("password".into(), Secret { sealed });
    stage.gateway.order(&order).unwrap();
    let pid = stage.gateway.wait_converged(2).unwrap().pid("user").unwrap();
    assert_eq!(variable(pid, "PASSWORD"), Some(format!("<{VALUE}>")));
    assert_eq!(std::fs::read_to_string(seen_by(pid, "/run/password")).unwrap(), VALUE);

    let said = |args: &[&str]| {
        let output = stage.gateway.coracle(args).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for args in [&["status", "--json"][..], &["status"], &["events", "--json"], &["ps"]] {
        assert!(!said(args).contains(VALUE), "{args:?}");
    }
    assert!(!stage.gateway.agent_log().contains(VALUE));
    assert!(!stage.gateway.containerd.log().contains(VALUE));
    let id = ["--namespace", NAMESPACE, "containers", "info", "user.0.main"];
    let info = stage.gateway.containerd.ctr(&id).unwrap();
    assert!(info.contains("PASSWORD") && !info.contains(VALUE), "{info}");
    // On the disk: what containerd keeps, what the agent keeps.
    for dir in [stage.gateway.containerd.root(), &stage.gateway.state_dir] {
        assert_eq!(holding(dir, VALUE), Vec::<String>::new());
    }
    stage.clear();
    assert_eq!(holding(&stage.gateway.runtime_dir(), VALUE), Vec::<String>::new());
}

/// Files below a directory that hold a text.
fn holding(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(holding(&path, text));
        } else if kind.is_file() {
            let bytes = std::fs::read(&path).unwrap_or_default();
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}
