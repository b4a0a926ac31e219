use std::sync::Arc;

use coracle_core::artifact::Software;
use coracle_core::desired::{DefinitionHash, Pod};
use coracle_core::image::ImageRef;
use coracle_core::name::{ContainerName, ReplicaId, WorkloadName};
use coracle_core::policy::DEFAULT_CAPABILITIES;
use expect_test::expect_file;

use super::*;
use crate::runtime::{devices, seccomp};

/// A pod of one container.
pub(in crate::runtime) fn pod(network: Network, container: Container) -> Arc<Pod> {
    Arc::new(Pod {
        network,
        containers: vec![Arc::new(container)],
        ports: Vec::new(),
        identity: None,
        in_place: "".into(),
        native: None,
    })
}

/// The smallest start of `web.0.main`.
pub(in crate::runtime) fn start() -> Start {
    let replica = ReplicaId { workload: WorkloadName::parse("web").unwrap(), index: 0 };
    let name = ContainerName::parse("main").unwrap();
    let container = Container {
        name: name.clone(),
        software: Software::Image(ImageRef::parse("registry.example/web:1").unwrap()),
        command: None,
        args: None,
        env: BTreeMap::new(),
        working_dir: None,
        user: None,
        readonly_root: false,
        mounts: Vec::new(),
        limits: Default::default(),
        devices: Vec::new(),
        capabilities: Default::default(),
        seccomp: Default::default(),
        probes: Default::default(),
    };
    Start {
        id: replica.container(&name),
        replica,
        generation: 7,
        definition: DefinitionHash::from_label("0123456789abcdef0123456789abcdef"),
        pod: pod(Network::Host, container.clone()),
        container: Arc::new(container),
        shares_ports: false,
        remains: false,
    }
}

pub(in crate::runtime) const HOST: Host = Host {
    cgroup_v2: true,
    resolv_conf: true,
    hosts: true,
    pids_limit: true,
    swap_limit: true,
    arch: "aarch64",
};

const IMAGE: &str = r#"{"config":{"Entrypoint":["/web"],"Cmd":["-p","80"],
    "Env":["PATH=/web/bin","LANG=C"],"WorkingDir":"/srv","User":"33","StopSignal":"SIGQUIT"}}"#;

fn with(change: impl FnOnce(&mut Container)) -> Start {
    let mut start = start();
    change(Arc::make_mut(&mut start.container));
    start
}

fn make(start: &Start, image: &str, host: &Host) -> Result<Value, ImageProblem> {
    make_in(&Surroundings::default(), start, image, host)
}

fn make_in(
    surroundings: &Surroundings,
    start: &Start,
    image: &str,
    host: &Host,
) -> Result<Value, ImageProblem> {
    let devices = devices::look_up(&surroundings.devices).unwrap();
    let named = surroundings.seccomp.as_deref();
    let seccomp = seccomp::of(&start.container, named, host.arch).unwrap();
    spec(Parts {
        native: None,
        start,
        image: &ImageConfig::parse(image.as_bytes())?,
        surroundings,
        devices: &devices,
        seccomp: seccomp.as_ref(),
        ids: &Ids { uid: 33, gid: 33, groups: vec![33, 50] },
        cgroup: "/coracle/test/web.0.main",
        host,
    })
}

fn variables(env: &[(&str, &str)]) -> Surroundings {
    let env = env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    Surroundings { env, ..Surroundings::default() }
}

fn strings(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|&s| s.to_owned()).collect())
}

#[test]
fn a_whole_specification() {
    let mut start = with(|c| c.readonly_root = true);
    let around = variables(&[("LANG", "C.UTF-8"), ("PORT", "8080")]);
    let mut host_network = make_in(&around, &start, IMAGE, &HOST).unwrap();
    host_network["linux"]["seccomp"]["syscalls"][0]["names"] = "seccomp.txt".into();
    expect_file!["testdata/spec-host.json"].assert_eq(&pretty(&host_network));
    start.pod = pod(Network::None, (*start.container).clone());
    let mut no_network =
        make_in(&around, &start, IMAGE, &Host { cgroup_v2: false, ..HOST }).unwrap();
    no_network["linux"]["seccomp"] = "as above".into();
    expect_file!["testdata/spec-none.json"].assert_eq(&pretty(&no_network));
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

#[test]
fn command_and_arguments_as_in_kubernetes() {
    let both = r#"{"config":{"Entrypoint":["e"],"Cmd":["c"]}}"#;
    type List = &'static [&'static str];
    let cases: [(&str, Option<List>, Option<List>, List); 8] = [
        (both, None, None, &["e", "c"]),
        (both, Some(&["x"]), None, &["x"]),
        (both, None, Some(&["a"]), &["e", "a"]),
        (both, None, Some(&[]), &["e"]),
        (both, Some(&["x"]), Some(&["a", "b"]), &["x", "a", "b"]),
        (r#"{"config":{"Cmd":["c"]}}"#, None, None, &["c"]),
        (r#"{"config":{"Cmd":["c"],"Entrypoint":null}}"#, None, None, &["c"]),
        (r#"{}"#, Some(&["x"]), None, &["x"]),
    ];
    for (image, command, args, wanted) in cases {
        let start = with(|c| {
            c.command = command.and_then(strings);
            c.args = args.and_then(strings);
        });
        let made = make(&start, image, &HOST).unwrap();
        assert_eq!(made["process"]["args"], json!(wanted), "{image} {command:?} {args:?}");
    }
}

#[test]
fn nothing_to_run_is_refused() {
    for image in
        [r#"{}"#, r#"{"config":{}}"#, r#"{"config":{"Cmd":[]}}"#, r#"{"config":{"Cmd":[""]}}"#]
    {
        let error = make(&start(), image, &HOST).unwrap_err();
        assert!(matches!(error, ImageProblem::NoCommand), "{image}");
    }
    assert!(matches!(make(&start(), "[]", &HOST), Err(ImageProblem::Config(_))));
}

#[test]
fn environment_and_directory() {
    let bare = r#"{"config":{"Cmd":["c"],"Env":null}}"#;
    let made = make(&start(), bare, &HOST).unwrap();
    assert_eq!(made["process"]["env"], json!([DEFAULT_PATH]));
    assert_eq!(made["process"]["cwd"], "/");
    let start = with(|c| c.working_dir = Some("/own".into()));
    let made = make_in(&variables(&[("PATH", "/own/bin")]), &start, IMAGE, &HOST).unwrap();
    assert_eq!(made["process"]["env"], json!(["PATH=/own/bin", "LANG=C"]));
    assert_eq!(made["process"]["cwd"], "/own");
}

#[test]
fn the_user_is_the_containers_or_else_the_images() {
    let image = ImageConfig::parse(IMAGE.as_bytes()).unwrap();
    assert_eq!(image.user(&start().container), "33");
    assert_eq!(image.user(&with(|c| c.user = Some("web".into())).container), "web");
    assert_eq!(ImageConfig::default().user(&start().container), "");
}

#[test]
fn no_privileges_whatever_the_order() {
    let orders = [
        start(),
        with(|c| c.user = Some("0".into())),
        with(|c| c.readonly_root = true),
        Start { pod: pod(Network::None, (*start().container).clone()), ..start() },
    ];
    for order in orders {
        for cgroup_v2 in [true, false] {
            let made = make(&order, IMAGE, &Host { cgroup_v2, ..HOST }).unwrap();
            let process = &made["process"];
            assert_eq!(process["noNewPrivileges"], true);
            for set in ["bounding", "effective", "permitted"] {
                assert_eq!(process["capabilities"][set], json!(DEFAULT_CAPABILITIES));
            }
            assert!(process["capabilities"]["ambient"].is_null());
            assert!(process["capabilities"]["inheritable"].is_null());
            let linux = &made["linux"];
            assert_eq!(linux["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
            assert_eq!(linux["resources"]["pids"]["limit"], 1024);
            assert!(linux["devices"].is_null());
            assert_eq!(linux["resources"]["devices"][0], json!({"allow": false, "access": "rwm"}));
            let kinds: Vec<_> = linux["namespaces"].as_array().unwrap().iter().collect();
            for kind in ["pid", "ipc", "uts", "mount"] {
                assert!(kinds.contains(&&json!({ "type": kind })), "{kind}");
            }
            for mount in made["mounts"].as_array().unwrap() {
                assert!(mount["options"].as_array().unwrap().contains(&json!("nosuid")), "{mount}");
            }
        }
    }
}
