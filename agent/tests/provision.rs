//! `coracle provision`, as it is shipped.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use coracle_testbed::{Pki, Place, bin};

/// The gateway that `tests/trust/order.json` is for.
const GATEWAY: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";
const OTHER: &str = "11111111-9d0e-4a53-8a43-1f1d9a7f3b11";

struct Bed {
    place: Place,
    pki: Pki,
}

impl Bed {
    fn new() -> Self {
        let place = Place::new().unwrap();
        let pki = Pki::new(&place.run().join("pki")).unwrap();
        let bed = Self { place, pki };
        let config =
            format!("state_dir = {:?}\nfactory = {:?}\n", bed.path("state"), bed.path("factory"));
        fs::write(bed.path("coracle.toml"), config).unwrap();
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.run().join(name)
    }

    fn installed(&self, name: &str) -> PathBuf {
        self.path("state/identity").join(name)
    }

    /// A good identity of `gateway` in the directory `name`, its files' names after `prefix`.
    fn identity(&self, name: &str, prefix: &str, gateway: &str) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir_all(&dir).unwrap();
        let own = self.pki.client(gateway).unwrap();
        let link = "[link]\nhost = \"localhost\"\nport = 18883\n";
        let file = |name: &str| dir.join(format!("{prefix}{name}"));
        fs::write(file("gateway.toml"), format!("gateway = {gateway:?}\n{link}")).unwrap();
        fs::copy(self.pki.ca(), file("ca.pem")).unwrap();
        fs::copy(own.cert, file("cert.pem")).unwrap();
        fs::copy(own.key, file("key.pem")).unwrap();
        fs::copy("tests/trust/orders.pub", file("orders.pub")).unwrap();
        if gateway == GATEWAY {
            fs::copy("tests/trust/order.json", file("orders.json")).unwrap();
        }
        dir
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
        command.env_remove("CREDENTIALS_DIRECTORY");
        command.arg("provision").arg("--config").arg(self.path("coracle.toml")).args(args);
        command
    }

    fn provision(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn good(&self, args: &[&str]) -> String {
        let output = self.provision(args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.provision(args);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_the_factory_gave_is_installed_once_and_kept() {
    let bed = Bed::new();
    assert!(bed.good(&[]).starts_with("not provisioned"));
    bed.identity("factory", "", GATEWAY);
    let said = bed.good(&[]);
    assert!(said.starts_with(&format!("provisioned as gateway {GATEWAY}")), "{said}");
    for name in ["gateway.toml", "ca.pem", "cert.pem", "key.pem", "orders.pub", "orders.json"] {
        let given = fs::read(bed.path("factory").join(name)).unwrap();
        assert_eq!(fs::read(bed.installed(name)).unwrap(), given, "{name}");
        assert_eq!(mode(&bed.installed(name)), 0o600, "{name}");
    }
    assert_eq!(mode(&bed.path("state/identity")), 0o700);
    let before = fs::metadata(bed.installed("key.pem")).unwrap().modified().unwrap();
    assert_eq!(bed.good(&[]), format!("provisioned already as gateway {GATEWAY}\n"));
    // A certificate that was renewed since is no reason to go back to the factory's.
    let renewed = bed.pki.client("renewed").unwrap();
    fs::copy(&renewed.cert, bed.installed("cert.pem")).unwrap();
    fs::copy(&renewed.key, bed.installed("key.pem")).unwrap();
    assert!(bed.good(&[]).starts_with("provisioned already"));
    assert_eq!(fs::read(bed.installed("cert.pem")).unwrap(), fs::read(&renewed.cert).unwrap());
    assert!(fs::metadata(bed.installed("key.pem")).unwrap().modified().unwrap() >= before);
    // Nor is a factory partition that broke.
    fs::write(bed.path("factory/gateway.toml"), b"\xff").unwrap();
    assert!(bed.good(&[]).starts_with("provisioned already"));
}

#[test]
fn credentials_of_the_service_manager_come_first() {
    let bed = Bed::new();
    bed.identity("factory", "", OTHER);
    let credentials = bed.identity("credentials", "coracle.", GATEWAY);
    let output =
        bed.command(&["--json"]).env("CREDENTIALS_DIRECTORY", &credentials).output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["outcome"], "installed", "{output:?}");
    assert_eq!(said["gateway"], GATEWAY);
    assert_eq!(said["from"], credentials.display().to_string());
    assert!(bed.installed("gateway.toml").exists());
}

#[test]
fn another_gateways_identity_takes_its_place_only_when_told_to() {
    let bed = Bed::new();
    let own = bed.identity("own", "", GATEWAY);
    let other = bed.identity("other", "", OTHER);
    bed.good(&["--from", own.to_str().unwrap()]);
    let from_other = ["--from", other.to_str().unwrap()];
    let said = bed.refused(&from_other);
    assert!(said.contains(GATEWAY) && said.contains(OTHER) && said.contains("--replace"), "{said}");
    assert!(fs::read_to_string(bed.installed("gateway.toml")).unwrap().contains(GATEWAY));
    let said = bed.good(&[&from_other[..], &["--replace"]].concat());
    assert!(said.starts_with(&format!("this is gateway {OTHER} now")), "{said}");
    assert!(fs::read_to_string(bed.installed("gateway.toml")).unwrap().contains(OTHER));
    // Nothing of the one before is left.
    assert!(!bed.installed("orders.json").exists());
    assert!(!bed.path("state/.identity.coracle-new").exists());
}

#[test]
fn an_identity_that_cannot_be_used_is_refused_with_every_reason() {
    let bed = Bed::new();
    let source = bed.identity("source", "", GATEWAY);
    let args = ["--from", source.to_str().unwrap()];
    let file = |name: &str| source.join(name);
    let cases: [(&str, &[u8], &str); 8] = [
        ("gateway.toml", b"gateway = \"x\"", "gateway"),
        ("gateway.toml", b"\xff\xfe", "it is not text"),
        ("gateway.toml", &[b'#'; 300_000], "larger than"),
        ("ca.pem", b"nonsense", "ca.pem"),
        ("cert.pem", b"nonsense", "cert.pem"),
        ("key.pem", b"nonsense", "key.pem"),
        ("orders.pub", b"nonsense", "orders.pub"),
        ("orders.json", b"nonsense", "orders.json"),
    ];
    for (name, bytes, reason) in cases {
        let good = fs::read(file(name)).unwrap();
        fs::write(file(name), bytes).unwrap();
        let said = bed.refused(&args);
        assert!(said.contains(reason) && !said.contains("nonsense"), "{name}: {said}");
        assert!(!bed.path("state/identity").exists(), "{name}");
        fs::write(file(name), good).unwrap();
    }
    fs::remove_file(file("key.pem")).unwrap();
    fs::write(file("orders.pub"), "nonsense").unwrap();
    let said = bed.refused(&args);
    assert!(said.contains("key.pem") && said.contains("orders.pub"), "{said}");
    // Orders that are somebody else's.
    let other = bed.identity("other", "", OTHER);
    fs::copy("tests/trust/order.json", other.join("orders.json")).unwrap();
    let said = bed.refused(&["--from", other.to_str().unwrap()]);
    assert!(said.contains("the order is for gateway"), "{said}");
    let said = bed.refused(&["--from", bed.path("nowhere").to_str().unwrap()]);
    assert!(said.contains("no gateway.toml"), "{said}");
}

#[test]
fn what_broke_is_installed_again_and_what_others_could_read_is_closed() {
    let bed = Bed::new();
    bed.identity("factory", "", GATEWAY);
    bed.good(&[]);
    for broken in ["gateway.toml", "key.pem", "orders.pub"] {
        fs::write(bed.installed(broken), "").unwrap();
        // What a power cut in the middle of an earlier attempt left is no obstacle.
        fs::create_dir(bed.path("state/.identity.coracle-new")).unwrap();
        let said = bed.good(&[]);
        assert!(said.contains("was unusable"), "{broken}: {said}");
        assert_eq!(bed.good(&[]), format!("provisioned already as gateway {GATEWAY}\n"));
    }
    fs::set_permissions(bed.installed("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    bed.good(&[]);
    assert_eq!(mode(&bed.installed("key.pem")), 0o600);
    fs::write(bed.installed("key.pem"), "").unwrap();
    fs::remove_dir_all(bed.path("factory")).unwrap();
    let said = bed.refused(&[]);
    assert!(said.contains("cannot be used") && said.contains("key.pem"), "{said}");
}

#[test]
fn where_nothing_can_be_written_it_says_so() {
    let bed = Bed::new();
    bed.identity("factory", "", GATEWAY);
    fs::write(bed.path("state"), "a file in the way").unwrap();
    let said = bed.refused(&[]);
    assert!(said.contains("cannot") && said.contains("state/identity"), "{said}");
}

#[test]
fn keys_that_changed_since_the_first_boot_are_not_rolled_back() {
    let bed = Bed::new();
    bed.identity("factory", "", GATEWAY);
    bed.good(&[]);
    fs::copy("tests/trust/other.pub", bed.installed("orders.pub")).unwrap();
    assert_eq!(bed.good(&[]), format!("provisioned already as gateway {GATEWAY}\n"));
    let kept = fs::read(bed.installed("orders.pub")).unwrap();
    assert_eq!(kept, fs::read("tests/trust/other.pub").unwrap());
    // Unless somebody says so.
    let factory = bed.path("factory");
    bed.good(&["--from", factory.to_str().unwrap(), "--replace"]);
    let now = fs::read(bed.installed("orders.pub")).unwrap();
    assert_eq!(now, fs::read("tests/trust/orders.pub").unwrap());
}

#[test]
fn what_is_no_part_of_an_identity_is_never_removed() {
    let bed = Bed::new();
    bed.identity("factory", "", GATEWAY);
    let identity = bed.path("state/identity");
    fs::create_dir_all(&identity).unwrap();
    fs::write(identity.join("precious"), "mine").unwrap();
    let said = bed.refused(&[]);
    assert!(said.contains("precious"), "{said}");
    assert_eq!(fs::read_to_string(identity.join("precious")).unwrap(), "mine");
    for root in ["/", ".", "..", ""] {
        fs::write(bed.path("coracle.toml"), format!("identity = {root:?}\n")).unwrap();
        let said = bed.refused(&[]);
        assert!(said.contains("a directory of its own"), "{root}: {said}");
    }
}

#[test]
fn a_file_or_a_dead_link_in_its_place_is_replaced() {
    let bed = Bed::new();
    bed.identity("factory", "", GATEWAY);
    fs::create_dir(bed.path("state")).unwrap();
    fs::write(bed.path("state/identity"), "a file").unwrap();
    assert_eq!(bed.provision(&[]).status.code(), Some(0));
    assert!(bed.good(&[]).starts_with("provisioned already"));
    fs::remove_dir_all(bed.path("state/identity")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", bed.path("state/identity")).unwrap();
    assert_eq!(bed.provision(&[]).status.code(), Some(0));
    assert!(bed.good(&[]).starts_with("provisioned already"));
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let bed = Bed::new();
    let source = bed.identity("source", "", GATEWAY);
    let args = ["--from", source.to_str().unwrap()];
    for name in ["gateway.toml", "ca.pem", "cert.pem", "key.pem", "orders.pub", "orders.json"] {
        let good = fs::read(source.join(name)).unwrap();
        fs::remove_file(source.join(name)).unwrap();
        nix::unistd::mkfifo(&source.join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let said = bed.refused(&args);
        assert!(said.contains(name) && said.contains("not a regular file"), "{name}: {said}");
        fs::remove_file(source.join(name)).unwrap();
        fs::write(source.join(name), good).unwrap();
    }
}

#[test]
fn an_agent_at_work_is_not_waited_for() {
    let bed = Bed::new();
    bed.identity("factory", "", GATEWAY);
    fs::create_dir(bed.path("state")).unwrap();
    let state = fs::File::open(bed.path("state")).unwrap();
    let how = nix::fcntl::FlockArg::LockExclusive;
    let _held = nix::fcntl::Flock::lock(state, how).map_err(|(_, errno)| errno).unwrap();
    let mut child = bed.command(&[]).spawn().unwrap();
    let limit = std::time::Duration::from_secs(20);
    let ended = coracle_testbed::wait_for("coracle provision to end", limit, || {
        child.try_wait().ok().flatten()
    });
    if ended.is_err() {
        child.kill().unwrap();
    }
    assert!(ended.expect("it waits for the agent's lock").success());
}

#[test]
fn two_at_once_never_install_a_mixture() {
    let bed = Bed::new();
    let sources = [bed.identity("one", "", GATEWAY), bed.identity("two", "", OTHER)];
    for _ in 0..10 {
        let spawn = |source: &PathBuf| {
            let mut command = bed.command(&["--replace", "--from", source.to_str().unwrap()]);
            command.stdout(std::process::Stdio::null()).spawn().unwrap()
        };
        let children: Vec<_> = sources.iter().chain(&sources).map(spawn).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        let whole = sources.iter().any(|source| {
            let files = ["gateway.toml", "cert.pem", "key.pem", "orders.json"];
            files
                .iter()
                .all(|name| fs::read(source.join(name)).ok() == fs::read(bed.installed(name)).ok())
        });
        assert!(whole, "a mixture");
    }
}

#[test]
fn links_to_files_of_others_are_left_as_they_are() {
    let bed = Bed::new();
    bed.identity("factory", "", GATEWAY);
    bed.good(&[]);
    let bundle = bed.path("bundle.pem");
    fs::copy(bed.pki.ca(), &bundle).unwrap();
    fs::set_permissions(&bundle, fs::Permissions::from_mode(0o644)).unwrap();
    fs::remove_file(bed.installed("ca.pem")).unwrap();
    std::os::unix::fs::symlink(&bundle, bed.installed("ca.pem")).unwrap();
    let identity = bed.path("state/identity");
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o777)).unwrap();
    bed.good(&[]);
    assert_eq!((mode(&bundle), mode(&identity)), (0o644, 0o700));
}

#[test]
fn configurations_of_the_orders_are_judged_before_anything_is_installed() {
    let bed = Bed::new();
    let factory = bed.identity("factory", "", GATEWAY);
    let fleet = |args: &[&str]| {
        let mut command = Command::new(bin("coracle-fleet").unwrap());
        let output = command.current_dir(bed.place.run()).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    fleet(&["keygen", "--out", "orders"]);
    fs::copy(bed.path("orders.pub"), factory.join("orders.pub")).unwrap();
    let order = format!(
        r#"{{"schema":1,"gateway":"{GATEWAY}","generation":7,"types":{{"reader":{{
            "network":"host","config_template":{{"schema":{{"enum":[{{"qos":1}}]}}}},
            "containers":[{{"image":"registry.example/reader:1"}}]}}}},
            "workloads":[{{"name":"reader","type":"reader","config":{{"qos":1}}}}]}}"#
    );
    fs::write(bed.path("order.json"), order).unwrap();
    let out = factory.join("orders.json");
    fleet(&["order", "sign", "order.json", "--key", "orders.key", "--out", out.to_str().unwrap()]);
    // Nobody is there to judge.
    let config = fs::read_to_string(bed.path("coracle.toml")).unwrap();
    let without = format!("{config}[templates]\nprogram = \"/no/such/program\"\n");
    fs::write(bed.path("coracle.toml"), without).unwrap();
    let said = bed.refused(&[]);
    assert!(said.contains("/no/such/program cannot be started"), "{said}");
    assert!(!bed.installed("gateway.toml").exists());
    // The one beside the program.
    fs::write(bed.path("coracle.toml"), config).unwrap();
    assert!(bed.good(&[]).starts_with("provisioned as gateway"));
}
