//! The seccomp profile of a container. The default one is an allow-list; whatever is not on it fails
//! with EPERM.
//!
//! It allows what Docker's and containerd's default profiles allow to a process with the same
//! capabilities. The list itself is `seccomp.txt`.

use std::collections::BTreeSet;
use std::path::Path;

use coracle_core::desired::{Container, Seccomp};
use serde_json::{Value, json};

use super::capabilities;
use crate::seccomp_profile::{self, ProfileProblem};

/// One system call a line; `#` begins a comment. Names that an architecture or an old libseccomp
/// does not know are ignored by the OCI runtime.
const ALLOWED: &str = include_str!("seccomp.txt");

/// `CLONE_NEW*` flags of clone(2): namespaces that only a privileged process may make.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

const AF_VSOCK: u64 = 40;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

/// What personality(2) may set: PER_LINUX, PER_LINUX32, each also with UNAME26; and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// System calls that the default profile allows as well to who was given a capability: without it
/// the kernel refuses them anyway.
const WITH_CAPABILITY: [(&str, &[&str]); 13] = [
    ("CAP_BPF", &["bpf"]),
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("CAP_PERFMON", &["perf_event_open"]),
    (
        "CAP_SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("CAP_SYS_BOOT", &["reboot"]),
    ("CAP_SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("CAP_SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("CAP_SYS_PACCT", &["acct"]),
    (
        "CAP_SYS_PTRACE",
        &[
            "kcmp",
            "pidfd_getfd",
            "process_madvise",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
        ],
    ),
    ("CAP_SYS_RAWIO", &["ioperm", "iopl"]),
    ("CAP_SYS_TIME", &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    ("CAP_SYS_TTY_CONFIG", &["vhangup"]),
    ("CAP_SYSLOG", &["syslog"]),
];

/// The `linux.seccomp` object of a container on a machine of this architecture (Rust's name); `None`
/// for no filter. `named` is the file of the profile that it names, if it names one.
///
/// # Errors
/// The profile that it names cannot be used.
pub(super) fn of(
    container: &Container,
    named: Option<&Path>,
    arch: &str,
) -> Result<Option<Value>, ProfileProblem> {
    match (&container.seccomp, named) {
        (Seccomp::Default, _) => {
            let capabilities = capabilities::all(&container.capabilities);
            Ok(Some(profile(arch, &capabilities)))
        }
        (Seccomp::Unconfined, _) => Ok(None),
        (Seccomp::Named(_), Some(path)) => seccomp_profile::read(path).map(Some),
        (Seccomp::Named(name), None) => Err(ProfileProblem::NotInstalled { name: name.clone() }),
    }
}

/// The default profile for a machine of this architecture (Rust's name) and a process with these
/// capabilities.
fn profile(arch: &str, capabilities: &[&str]) -> Value {
    let with_capability = WITH_CAPABILITY.iter();
    let more: BTreeSet<&str> = with_capability
        .filter(|(name, _)| capabilities.contains(name))
        .flat_map(|(_, calls)| calls.iter().copied())
        .collect();
    let mut syscalls = vec![
        json!({ "names": allowed(), "action": "SCMP_ACT_ALLOW" }),
        conditional("socket", 0, AF_VSOCK, None, "SCMP_CMP_NE"),
    ];
    if !more.contains("clone") {
        syscalls.extend([
            conditional("clone", 0, CLONE_NAMESPACES, Some(0), "SCMP_CMP_MASKED_EQ"),
            // glibc falls back to clone only on ENOSYS.
            json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
        ]);
    }
    if !more.is_empty() {
        syscalls.push(json!({ "names": more, "action": "SCMP_ACT_ALLOW" }));
    }
    let personality = |domain| conditional("personality", 0, domain, None, "SCMP_CMP_EQ");
    syscalls.extend(PERSONALITIES.map(personality));
    let mut profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "syscalls": syscalls,
    });
    let architectures = architectures(arch);
    if !architectures.is_empty() {
        profile["architectures"] = json!(architectures);
    }
    profile
}

fn allowed() -> Vec<&'static str> {
    let names = ALLOWED.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    names.filter(|name| !name.is_empty()).collect()
}

fn conditional(name: &str, index: u32, value: u64, value_two: Option<u64>, op: &str) -> Value {
    let mut arg = json!({ "index": index, "value": value, "op": op });
    if let Some(value_two) = value_two {
        arg["valueTwo"] = value_two.into();
    }
    json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": [arg] })
}

/// The machine's own and those whose programs its kernel also runs; none for an architecture that
/// is not known here, where the OCI runtime then takes the native one.
fn architectures(arch: &str) -> &'static [&'static str] {
    match arch {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "x86" => &["SCMP_ARCH_X86"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "arm" => &["SCMP_ARCH_ARM"],
        "riscv64" => &["SCMP_ARCH_RISCV64"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_core::policy::DEFAULT_CAPABILITIES;

    use crate::runtime::oci::tests::start;

    #[test]
    fn the_list_is_sorted_and_holds_no_duplicates() {
        let names = allowed();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
        assert!(names.len() > 300);
    }

    #[test]
    fn what_the_field_keeps_from_containers_is_not_on_the_list() {
        let names = allowed();
        for forbidden in [
            "acct",
            "add_key",
            "bpf",
            "chroot_",
            "clock_settime",
            "clone",
            "clone3",
            "create_module",
            "delete_module",
            "finit_module",
            "fsconfig",
            "fsmount",
            "fsopen",
            "get_mempolicy",
            "init_module",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "ioperm",
            "iopl",
            "kcmp",
            "kexec_file_load",
            "kexec_load",
            "keyctl",
            "lookup_dcookie",
            "mbind",
            "mount",
            "mount_setattr",
            "move_mount",
            "move_pages",
            "nfsservctl",
            "open_by_handle_at",
            "open_tree",
            "perf_event_open",
            "personality",
            "pidfd_getfd",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "reboot",
            "request_key",
            "set_mempolicy",
            "setns",
            "settimeofday",
            "socket",
            "stime",
            "swapoff",
            "swapon",
            "sysfs",
            "syslog",
            "umount",
            "umount2",
            "unshare",
            "uselib",
            "userfaultfd",
            "ustat",
            "vhangup",
            "vm86",
            "vm86old",
        ] {
            assert!(!names.contains(&forbidden), "{forbidden}");
        }
    }

    #[test]
    fn conditions_are_as_the_field_has_them() {
        let profile = profile("aarch64", &DEFAULT_CAPABILITIES);
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(profile["architectures"], json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]));
        let of = |name: &str| {
            let rules = profile["syscalls"].as_array().unwrap().iter();
            rules.filter(|rule| rule["names"] == json!([name])).cloned().collect::<Vec<_>>()
        };
        assert_eq!(of("clone3")[0]["errnoRet"], ENOSYS);
        assert_eq!(of("clone")[0]["args"][0]["value"], 2_114_060_288_u64);
        assert_eq!(of("socket")[0]["args"][0]["op"], "SCMP_CMP_NE");
        assert_eq!(of("personality").len(), 5);
        assert!(super::profile("s390x", &[])["architectures"].is_null());
    }

    #[test]
    fn a_capability_brings_the_system_calls_that_it_is_for() {
        let names = |profile: &Value| {
            let rules = profile["syscalls"].as_array().unwrap().iter();
            let plain = rules
                .filter(|rule| rule["args"].is_null() && rule["action"] == "SCMP_ACT_ALLOW")
                .flat_map(|rule| rule["names"].as_array().unwrap());
            plain.map(|name| name.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
        };
        let usual = names(&profile("aarch64", &DEFAULT_CAPABILITIES));
        assert_eq!(usual.len(), allowed().len());
        let time = names(&profile("aarch64", &["CAP_SYS_TIME"]));
        let more: Vec<_> = time.difference(&usual).collect();
        assert_eq!(more, ["clock_settime", "clock_settime64", "settimeofday", "stime"]);
        let admin = profile("aarch64", &["CAP_SYS_ADMIN", "CAP_SYSLOG"]);
        assert!(names(&admin).contains("clone3"));
        assert!(!admin.to_string().contains("errnoRet\":38"));
    }

    #[test]
    fn a_container_has_the_profile_that_it_asks_for() {
        let mut container = (*start().container).clone();
        assert!(of(&container, None, "aarch64").unwrap().is_some());
        container.seccomp = Seccomp::Unconfined;
        assert_eq!(of(&container, None, "aarch64").unwrap(), None);
        container.seccomp = Seccomp::Named("strict".into());
        let error = of(&container, None, "aarch64").unwrap_err();
        assert!(matches!(error, ProfileProblem::NotInstalled { .. }), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("strict.json");
        std::fs::write(&file, r#"{"defaultAction":"SCMP_ACT_LOG","syscalls":[]}"#).unwrap();
        let own = of(&container, Some(&file), "aarch64").unwrap().unwrap();
        assert_eq!(own["defaultAction"], "SCMP_ACT_LOG");
    }
}
