//! The seccomp profile of every container: an allow-list; whatever is not on it fails with EPERM.
//!
//! It allows what Docker's and containerd's default profiles allow to a process with the default
//! capabilities. The list itself is `seccomp.txt`.

use serde_json::{Value, json};

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

/// The `linux.seccomp` object for a machine of this architecture (Rust's name).
pub(super) fn profile(arch: &str) -> Value {
    let mut syscalls = vec![
        json!({ "names": allowed(), "action": "SCMP_ACT_ALLOW" }),
        conditional("socket", 0, AF_VSOCK, None, "SCMP_CMP_NE"),
        conditional("clone", 0, CLONE_NAMESPACES, Some(0), "SCMP_CMP_MASKED_EQ"),
        // glibc falls back to clone only on ENOSYS.
        json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
    ];
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
        let profile = profile("aarch64");
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
        assert!(super::profile("s390x")["architectures"].is_null());
    }
}
