use std::sync::Arc;

use coracle_core::desired::DefinitionHash;
use coracle_core::image::ImageRef;
use coracle_core::name::{ContainerName, ReplicaId, WorkloadName};
use expect_test::expect_file;

use super::*;

/// The smallest start of `web.0.main`.
pub(in crate::runtime) fn start() -> Start {
    let replica = ReplicaId { workload: WorkloadName::parse("web").unwrap(), index: 0 };
    let name = ContainerName::parse("main").unwrap();
    let container = Container {
        name: name.clone(),
        image: ImageRef::parse("registry.example/web:1").unwrap(),
        command: None,
        args: None,
        env: BTreeMap::new(),
        working_dir: None,
        user: None,
        readonly_root: false,
    };
    Start {
        id: replica.container(&name),
        replica,
        generation: 7,
        definition: DefinitionHash::from_label("0123456789abcdef0123456789abcdef"),
        network: Network::Host,
        container: Arc::new(container),
    }
}

const HOST: Host = Host { cgroup_v2: true, resolv_conf: true, hosts: true, arch: "aarch64" };

const IMAGE: &str = r#"{"config":{"Entrypoint":["/web"],"Cmd":["-p","80"],
    "Env":["PATH=/web/bin","LANG=C"],"WorkingDir":"/srv","User":"33","StopSignal":"SIGQUIT"}}"#;

fn with(change: impl FnOnce(&mut Container)) -> Start {
    let mut start = start();
    change(Arc::make_mut(&mut start.container));
    start
}

fn make(start: &Start, image: &str, host: &Host) -> Result<Value, ImageProblem> {
    let image = ImageConfig::parse(image.as_bytes())?;
    let ids = Ids { uid: 33, gid: 33, groups: vec![33, 50] };
    spec(start, &image, &ids, "/coracle/test/web.0.main", host)
}

fn strings(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|&s| s.to_owned()).collect())
}

#[test]
fn a_whole_specification() {
    let mut start = with(|c| {
        c.env.insert("LANG".into(), "C.UTF-8".into());
        c.env.insert("PORT".into(), "8080".into());
        c.readonly_root = true;
    });
    let mut host_network = make(&start, IMAGE, &HOST).unwrap();
    host_network["linux"]["seccomp"]["syscalls"][0]["names"] = "seccomp.txt".into();
    expect_file!["testdata/spec-host.json"].assert_eq(&pretty(&host_network));
    start.network = Network::None;
    let mut no_network = make(&start, IMAGE, &Host { cgroup_v2: false, ..HOST }).unwrap();
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
    let start = with(|c| {
        c.working_dir = Some("/own".into());
        c.env.insert("PATH".into(), "/own/bin".into());
    });
    let made = make(&start, IMAGE, &HOST).unwrap();
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
        Start { network: Network::None, ..start() },
    ];
    for order in orders {
        for cgroup_v2 in [true, false] {
            let made = make(&order, IMAGE, &Host { cgroup_v2, ..HOST }).unwrap();
            let process = &made["process"];
            assert_eq!(process["noNewPrivileges"], true);
            for set in ["bounding", "effective", "permitted"] {
                assert_eq!(process["capabilities"][set], json!(CAPABILITIES));
            }
            assert!(process["capabilities"]["ambient"].is_null());
            assert!(process["capabilities"]["inheritable"].is_null());
            let linux = &made["linux"];
            assert_eq!(linux["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
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
