//! Native services: the gateway's own files as root file system.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle::runtime::{NativeRoot, Root, Runtime as _, Surroundings, native_owner};
use coracle_core::desired::Container;
use coracle_core::observed::Task;
use coracle_core::plan::Start;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::time::{sleep, timeout};

use crate::bed::{Bed, SOON, alive, kill_process, order, stop};
use crate::on_every_containerd;

on_every_containerd!(
    a_service_can_write_to_its_own_directory_and_to_nothing_else,
    a_service_lives_dies_and_is_restarted_as_a_container_is,
    software_may_be_a_file_system_of_its_own,
);

/// Installed software and a service's directory.
struct Native {
    dir: PathBuf,
    root: NativeRoot,
}

impl Native {
    fn new(dir: &Path) -> Self {
        let software = dir.join("native/software");
        let artifact_dir = software.join("org.example/gauge/1");
        let runtime_dir = dir.join("native/runtime/line-1/alice/gauge/a");
        fs::create_dir_all(artifact_dir.join("bin")).unwrap();
        fs::create_dir_all(&runtime_dir).unwrap();
        fs::write(dir.join("store"), "orders").unwrap();
        let masked = PathBuf::from("/etc/hostname");
        let empty = dir.join("empty");
        fs::create_dir(&empty).unwrap();
        // Nobody but root gets through here, unless something is mounted over it.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        let program = artifact_dir.join("bin/run");
        fs::write(&program, "#!/bin/sh\n. \"$1\" >\"$CORACLE_RUNTIME/said\" 2>&1\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o555)).unwrap();
        let (uid, gid) = native_owner(None).unwrap();
        chown(&runtime_dir, Some(uid), Some(gid)).unwrap();
        let root = NativeRoot {
            artifact: "org.example:gauge:1".into(),
            root: "/".into(),
            artifact_dir,
            software_dir: software,
            runtime_dir,
            hidden: vec![dir.to_owned()],
            masked: vec![masked],
            empty,
        };
        Self { dir: dir.to_owned(), root }
    }

    /// An order to run this script with the service's program.
    fn order(&self, script: &str, change: impl FnOnce(&mut Container)) -> Start {
        let text = script.replace("DIR", self.dir.to_str().unwrap());
        fs::write(self.root.runtime_dir.join("script"), text).unwrap();
        let _ = fs::remove_file(self.root.runtime_dir.join("said"));
        order("gauge", |container| {
            container.command = Some(vec!["bin/run".into(), "${runtime}/script".into()]);
            container.readonly_root = true;
            change(container);
        })
    }

    async fn said(&self, wanted: &str) -> String {
        let file = self.root.runtime_dir.join("said");
        let said = async {
            loop {
                match fs::read_to_string(&file) {
                    Ok(said) if said.contains(wanted) => return said,
                    _ => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let said = timeout(SOON, said).await;
        said.unwrap_or_else(|_| panic!("{wanted:?} in {:?}", fs::read_to_string(&file)))
    }

    async fn start(&self, bed: &Bed, start: &Start) -> u32 {
        let root = Root::Native(self.root.clone());
        bed.runtime.start(start, &root, &Surroundings::default()).await.unwrap()
    }
}

const LOOK: &str = r#"
echo "user $(id -u):$(id -g) in $(pwd)"
for file in DIR/native/software/new DIR/native/software/org.example/gauge/1/bin/run /etc/new \
        /usr/new DIR/native/new DIR/new; do
    echo x 2>/dev/null >"$file" || { (echo x >"$file") 2>&1 | sed 's/.*: /cannot: /'; }
done
echo mine >"$CORACLE_RUNTIME/mine" && echo "wrote mine"
echo x >/tmp/x && echo "wrote tmp"
[ -e DIR/store ] && echo "sees the store"
[ -e /run/containerd ] && echo "sees containerd"
[ -s /etc/hostname ] && echo "sees what is masked"
ls -A /run | sed 's/^/run has /'
[ -e /proc/1/root/etc/passwd ] && echo "sees the gateway's files"
echo "level $LEVEL"
echo looked
exec sleep 86400
"#;

async fn look(bed: &Bed, native: &Native, user: Option<&str>) -> String {
    let start = native.order(LOOK, |container| container.user = user.map(str::to_owned));
    let around =
        Surroundings { env: [("LEVEL".to_owned(), "7".to_owned())].into(), ..Default::default() };
    let root = Root::Native(native.root.clone());
    let pid = bed.runtime.start(&start, &root, &around).await.unwrap();
    let said = native.said("looked").await;
    assert!(alive(pid));
    bed.runtime.stop(&stop(&start, Duration::ZERO)).await.unwrap();
    bed.assert_empty();
    said
}

async fn a_service_can_write_to_its_own_directory_and_to_nothing_else(bed: Bed) {
    let native = Native::new(bed.place().data());
    let said = look(&bed, &native, None).await;
    let runtime = native.root.runtime_dir.display();
    assert!(said.contains(&format!("user 65534:65534 in {runtime}\n")), "{said}");
    for good in ["wrote mine", "wrote tmp", "sees the gateway's files", "level 7"] {
        assert!(said.contains(good), "{good}: {said}");
    }
    for bad in ["sees the store", "sees containerd", "run has", "sees what is masked"] {
        assert!(!said.contains(bad), "{bad}: {said}");
    }
    assert_eq!(fs::read_to_string(native.root.runtime_dir.join("mine")).unwrap(), "mine\n");

    // As root it is the kernel alone that refuses.
    let said = look(&bed, &native, Some("root")).await;
    assert!(said.contains("user 0:0"), "{said}");
    assert_eq!(said.matches("cannot: Read-only file system").count(), 6, "{said}");
    for path in ["/etc/new", "/usr/new"] {
        assert!(!Path::new(path).exists(), "{path}");
    }
    assert!(!native.root.software_dir.join("new").exists());
}

async fn a_service_lives_dies_and_is_restarted_as_a_container_is(bed: Bed) {
    let native = Native::new(bed.place().data());
    let mut events = bed.follow().await;
    let start = native.order("echo began; exec sleep 86400", |_| {});
    let pid = native.start(&bed, &start).await;
    native.said("began").await;
    assert_eq!(bed.task(&start.id).await, Some(Task::Running { pid }));
    let root = Root::Native(native.root.clone());
    let second = bed.runtime.start(&start, &root, &Surroundings::default()).await;
    assert!(second.is_err(), "two at once");

    let command = ["/bin/sh", "-c", "[ \"$(pwd)\" = \"$CORACLE_RUNTIME\" ]"].map(String::from);
    assert_eq!(bed.runtime.exec(&start.id, &command, SOON).await.unwrap(), 0);

    kill_process(pid);
    assert_eq!(events.exited(&start.id).await.1.code, 137);
    let again = native.start(&bed, &start).await;
    assert_ne!(again, pid);

    // What was a service may become a container, and the other way round.
    kill_process(again);
    events.exited(&start.id).await;
    let container = Start {
        container: Arc::new(Container { command: None, ..(*start.container).clone() }),
        ..start.clone()
    };
    let third = bed.start(&container).await;
    kill_process(third);
    events.exited(&start.id).await;
    native.start(&bed, &start).await;
    bed.runtime.stop(&stop(&start, Duration::ZERO)).await.unwrap();
    bed.assert_empty();
    assert!(native.root.runtime_dir.join("said").exists(), "its directory stays");
}

async fn software_may_be_a_file_system_of_its_own(bed: Bed) {
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    let dir = tempfile::Builder::new().prefix("coracle-native").tempdir_in("/var/tmp").unwrap();
    assert_eq!(device(dir.path()), device(Path::new("/")), "it is on the root file system");
    let (prefix, disk) = (dir.path().join("data"), dir.path().join("disk"));
    fs::create_dir(&prefix).unwrap();
    fs::create_dir(&disk).unwrap();
    for of_its_own in [false, true] {
        if of_its_own {
            // A mount is what counts, here and where containerd is, which has mounts of its own.
            mount(Some(&disk), &prefix, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            let mut command = bed.containerd.inside("/bin/mount");
            assert!(command.arg("--bind").args([&disk, &prefix]).status().unwrap().success());
        }
        let native = Native::new(&prefix);
        let said = look(&bed, &native, Some("root")).await;
        assert_eq!(said.matches("cannot: Read-only file system").count(), 6, "{said}");
        assert!(said.contains("wrote mine") && !said.contains("sees the store"), "{said}");
        assert_eq!(fs::read_to_string(prefix.join("store")).unwrap(), "orders");
        if of_its_own {
            umount2(&prefix, MntFlags::MNT_DETACH).unwrap();
            assert!(!disk.join("native/software/new").exists());
        }
    }
}
