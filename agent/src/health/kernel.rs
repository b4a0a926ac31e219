//! What the kernel must be able to do for containers
//! (<https://github.com/opencontainers/runc/blob/main/script/check-config.sh> lists the options).

use std::fs;
use std::path::Path;

use super::{Finding, list};

const NAME: &str = "kernel";

/// Namespaces that every container has.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

/// Modules that may be loaded when they are first needed, and what they are for.
const MODULES: [(&str, &str); 2] = [("veth", "network of pods"), ("bridge", "network of pods")];

pub(super) fn look(root: &Path) -> Finding {
    let missing = missing(root);
    match missing.is_empty() {
        true => Finding::good(NAME, "complete", "has what containers need"),
        false => Finding::bad(
            NAME,
            "features-missing",
            format!(
                "the kernel lacks {}: workloads that need it cannot run",
                list(&missing.iter().map(String::as_str).collect::<Vec<_>>())
            ),
        ),
    }
}

fn missing(root: &Path) -> Vec<String> {
    let modules = Modules::read(root);
    let mut missing = Vec::new();
    for namespace in NAMESPACES {
        if !root.join("proc/self/ns").join(namespace).exists() {
            missing.push(format!("{namespace} namespaces"));
        }
    }
    let filesystems = fs::read_to_string(root.join("proc/filesystems")).unwrap_or_default();
    let overlay = filesystems.lines().any(|line| line.split_whitespace().last() == Some("overlay"));
    if !overlay && modules.offer("overlay") != Some(true) {
        missing.push("the overlay file system".into());
    }
    if !root.join("proc/sys/kernel/seccomp/actions_avail").exists() {
        missing.push("seccomp filters".into());
    }
    // cgroup v2 controls devices by such programs alone.
    if !root.join("proc/sys/kernel/unprivileged_bpf_disabled").exists() {
        missing.push("BPF programs".into());
    }
    for (module, purpose) in MODULES {
        let loaded = root.join("sys/module").join(module).exists();
        if !loaded && modules.offer(module) == Some(false) {
            missing.push(format!("{module} ({purpose})"));
        }
    }
    missing
}

/// What `depmod` wrote of the running kernel's modules.
struct Modules {
    lists: Vec<String>,
}

impl Modules {
    fn read(root: &Path) -> Self {
        let release = fs::read_to_string(root.join("proc/sys/kernel/osrelease"));
        let dir = root.join("lib/modules").join(release.unwrap_or_default().trim());
        let lists = ["modules.builtin", "modules.dep"];
        let lists = lists.iter().filter_map(|name| fs::read_to_string(dir.join(name)).ok());
        Self { lists: lists.collect() }
    }

    /// Whether there is such a module; `None` if nobody says.
    fn offer(&self, module: &str) -> Option<bool> {
        let file = format!("/{module}.ko");
        (!self.lists.is_empty()).then(|| self.lists.iter().any(|list| list.contains(&file)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_kernel() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for namespace in NAMESPACES {
            write(&format!("proc/self/ns/{namespace}"), "");
        }
        write("proc/filesystems", "nodev\ttmpfs\n\text4\n");
        write("proc/sys/kernel/osrelease", "6.1.0\n");
        write("proc/sys/kernel/seccomp/actions_avail", "");
        write("proc/sys/kernel/unprivileged_bpf_disabled", "");
        write("lib/modules/6.1.0/modules.builtin", "kernel/net/bridge/bridge.ko\n");
        write(
            "lib/modules/6.1.0/modules.dep",
            "kernel/fs/overlayfs/overlay.ko:\nkernel/drivers/net/veth.ko:\n",
        );
        root
    }

    #[test]
    fn a_kernel_with_everything_is_good() {
        let root = a_kernel();
        assert_eq!(missing(root.path()), Vec::<String>::new());
        assert!(look(root.path()).good);
    }

    #[test]
    fn each_missing_feature_is_named() {
        let root = a_kernel();
        let path = |path: &str| root.path().join(path);
        fs::remove_file(path("proc/self/ns/net")).unwrap();
        fs::remove_file(path("proc/sys/kernel/seccomp/actions_avail")).unwrap();
        fs::remove_file(path("proc/sys/kernel/unprivileged_bpf_disabled")).unwrap();
        fs::write(path("lib/modules/6.1.0/modules.dep"), "").unwrap();
        let finding = look(root.path());
        let expected = "the kernel lacks net namespaces, the overlay file system, seccomp filters, \
                        BPF programs, veth (network of pods): workloads that need it cannot run";
        assert_eq!((finding.good, finding.message.as_str()), (false, expected));
    }

    #[test]
    fn without_lists_of_modules_only_what_can_be_seen_is_judged() {
        let root = a_kernel();
        fs::remove_dir_all(root.path().join("lib")).unwrap();
        fs::write(root.path().join("proc/filesystems"), "nodev\toverlay\n").unwrap();
        assert_eq!(missing(root.path()), Vec::<String>::new());
    }
}
